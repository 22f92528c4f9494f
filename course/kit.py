"""What an exercise is, and how an answer is checked.

An exercise takes functions of the project and makes holes of them. Nothing stands twice: the
starter file, the solution and the wrong answers that students give are all made from the project's
own source at the moment they are asked for.

    starter     imports, signatures and docstrings; the bodies raise NotImplementedError
    solution    the same with the project's bodies
    mistake     the solution with one edit, and what to tell a student who made it

A check puts the student's functions in the place of the project's, runs the exercise's stages, and
compares what comes out with what comes out of the project. Where it differs, it is compared with
what each known mistake gives: so the message names the mistake, and is itself tested.
"""

import ast
import builtins
import functools
import importlib
import inspect
import sys
import textwrap
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

HOLE = 'raise NotImplementedError("your code")'


class Wrong(Exception):
    """What a stage raises to say in its own words what is wrong with an answer."""


@dataclass
class Mistake:
    """A wrong answer: the solution with `old`, which it has once, replaced by `new`."""

    old: str
    new: str
    says: str  # to the student


@dataclass
class Exercise:
    """The functions that become holes, and how an answer is checked."""

    name: str  # on the command line
    goal: str  # what one can do afterwards
    functions: tuple  # "losses.gold", "model.DecoderLayer.step", or a class
    stages: dict  # title -> probe(answer) -> dict of outputs; or it raises Wrong
    mistakes: tuple
    hints: tuple
    minutes: int
    difficulty: int  # 1 to 3
    points: int
    after: tuple = ()  # exercises to do before
    given: int = 0  # statements of the first function that are no hole
    withheld: tuple = ()  # names that the solution uses and the starter does not import
    note: str = ""  # what else to know, at the head of the starter
    run: Callable = None  # (folder, answer's text): makes the runs that a question is about

    # ------------------------------------------------------------------------------ its three texts

    def starter(self):
        """The file that a student begins with."""
        holes = [hole(source(name), self.given if k == 0 else 0)
                 for k, name in enumerate(self.functions)]
        used = [imports(self.functions, self.withheld), signatures(self.functions, self.withheld)]
        return "\n\n".join([self.head(), "\n\n".join(filter(None, used)) + "\n", *holes])

    def solution(self):
        return "\n\n".join([imports(self.functions) + "\n", *map(source, self.functions)])

    def wrong(self, mistake):
        """The solution with a mistake in it."""
        text = self.solution()
        if text.count(mistake.old) != 1:
            raise ValueError(f"{self.name}: {mistake.old!r} stands {text.count(mistake.old)} times "
                             "in the solution, and a mistake replaces what stands there once")
        return text.replace(mistake.old, mistake.new)

    def head(self):
        where = " and ".join(self.functions)
        text = (f"{self.goal} Write {where}, about {self.minutes} minutes. Then: "
                f"python -m course check {self.name}")
        text = textwrap.fill(f'"""{text}', 100)
        return f'{text}\n\n{self.note}\n"""' if self.note else f'{text}"""'

    # ------------------------------------------------------------------------------------ its check

    def check(self, text, where="your file"):
        """A student's text -> (titles of the stages passed, "" or what is wrong)."""
        passed = []
        for title, probe in self.stages.items():
            got = self.outcome(text, probe, where)
            expected = self.outcome(self.solution(), probe)
            if isinstance(expected, Failed):
                raise RuntimeError(f"{self.name}, {title}: the solution fails: {expected}")
            if difference(got, expected):
                return passed, self.diagnosis(text, where, got, expected, title)
            passed.append(title)
        return passed, ""

    def outcome(self, text, probe, where="the solution"):
        """What a stage says of an answer: its outputs; or how it failed."""
        try:
            answer = load(text, where)
            with in_place(self.functions, answer):
                return probe(answer)
        except Wrong as wrong:
            return Failed("", str(wrong))
        except NotImplementedError as error:
            return Failed(line_of(error, where), f"still a hole, to be filled in {where}")
        except Exception as error:  # a student's code may raise anything
            return Failed(line_of(error, where), f"{type(error).__name__}: {error}")

    def diagnosis(self, text, where, got, expected, title):
        """What to tell a student whose answer fails at a stage.

        It is what the mistake says that comes out alike there; if several do, the one that does so
        at the most stages.
        """
        alike = [mistake for mistake in self.mistakes if not difference(
            got, self.outcome(self.wrong(mistake), self.stages[title]))]
        if len(alike) > 1:
            outcomes = [(probe, self.outcome(text, probe, where)) for probe in self.stages.values()]
            alike.sort(key=lambda mistake: sum(
                bool(difference(outcome, self.outcome(self.wrong(mistake), probe)))
                for probe, outcome in outcomes))
        return alike[0].says if alike else difference(got, expected)


@dataclass
class Questions(Exercise):
    """An exercise without functions of the project: a form to fill in, and stages that raise."""

    form: str = ""  # what a student begins with
    key: str = ""  # the same, rightly filled in

    def starter(self):
        return self.form

    def solution(self):
        return self.key

    def check(self, text, where="your file"):
        passed = []
        for title, probe in self.stages.items():
            outcome = self.outcome(text, probe, where)
            if isinstance(outcome, Failed):
                return passed, str(outcome)
            passed.append(title)
        return passed, ""


@dataclass
class Failed:
    """An answer that gave no outputs."""

    place: str  # "line 7, in gold: "
    text: str

    def __str__(self):
        return self.place + self.text


# ------------------------------------------------------------------------------------- their source


def find(name):
    """ "model.DecoderLayer.step" -> (the object that has it, its last name)."""
    module, *inner, last = name.split(".")
    owner = importlib.import_module(module)
    for part in inner:
        owner = getattr(owner, part)
    return owner, last


@functools.cache
def source(name):
    owner, last = find(name)
    return textwrap.dedent(inspect.getsource(getattr(owner, last)))


def hole(text, given=0):
    """A function's signature, docstring and first `given` statements, and a hole; of a class, the
    same for each of its functions."""
    lines, node = text.splitlines(), ast.parse(text).body[0]
    functions = [part for part in [node, *getattr(node, "body", [])]
                 if isinstance(part, ast.FunctionDef)]
    for function in reversed(functions):
        body = function.body
        documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        keep = body[: documented + given]
        begin = keep[-1].end_lineno if keep else body[0].lineno - 1
        lines[begin : function.end_lineno] = [body[0].col_offset * " " + HOLE]
    return "\n".join(lines) + "\n"


@functools.cache
def imports(functions, without=()):
    """The import lines for the names that some functions use."""
    own = {name.rpartition(".")[2] for name in functions}
    lines = set()
    for name in functions:
        module = importlib.import_module(name.partition(".")[0])
        lines |= {import_line(module, used)
                  for used in names_used(source(name)) - own - set(without)
                  if hasattr(module, used)}
    return "\n".join(sorted(lines, key=lambda line: (line[0] == "f", line)))


def names_used(text):
    """The global names that a piece of code reads."""
    names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    own = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return {name.id for name in names} - own - set(dir(builtins))


def signatures(functions, without=()):
    """Of the project's functions that a starter imports: how each is called, and what for."""
    lines = []
    for line in imports(functions, without).splitlines():
        module, _, name = line.removeprefix("from ").partition(" import ")
        found = getattr(importlib.import_module(module), name, None) if name else None
        ours = module.partition(".")[0] not in sys.stdlib_module_names
        if ours and inspect.isfunction(found) and found.__doc__:
            lines.append(f"# {name}{inspect.signature(found)}: {found.__doc__.splitlines()[0]}")
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="#     ") for line in lines)


def import_line(module, name):
    """The line that gives a file the same name as the module has it: as the module itself imports
    it, or from there."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    as_name = f" as {alias.asname}" if alias.asname else ""
                    start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                    return f"{start}import {alias.name}{as_name}"
    return f"from {module.__name__} import {name}"


def load(text, where):
    """What a file defines, by name."""
    answer = {"__name__": "answer", "__file__": where}
    exec(compile(text, where, "exec"), answer)
    return answer


@contextmanager
def in_place(functions, answer):
    """The answer's functions in the place of the project's."""
    own = []
    try:
        for name in functions:
            owner, last = find(name)
            if last not in answer:
                raise Wrong(f"there is no {last} in it: has it another name?")
            own.append((owner, last, getattr(owner, last)))
            setattr(owner, last, answer[last])
        yield
    finally:
        for owner, last, function in reversed(own):
            setattr(owner, last, function)


# ----------------------------------------------------------------------------------- what comes out


def line_of(error, where):
    """ "line 7, in gold: ", the last place in the student's file; "" if there is none."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    places = [frame for frame in traceback.extract_tb(error.__traceback__)
              if frame.filename == where]
    return f"line {places[-1].lineno}, in {places[-1].name}: " if places else ""


def difference(got, expected):
    """ "" if two outcomes are equal but for rounding; else the first difference, in words."""
    if isinstance(got, Failed) or isinstance(expected, Failed):
        both = isinstance(got, Failed) and isinstance(expected, Failed)
        return "" if both and got.text == expected.text else str(got)
    for name, value in expected.items():
        if isinstance(value, (str, list)):
            if got[name] != value:
                return difference_in_steps(name, got[name], value)
            continue
        if got[name] is None:
            return f"{name}: nothing came back; is a return missing?"
        a, b = as_array(got[name]), as_array(value)
        if a is None or a.shape != b.shape:
            shape = "no number" if a is None else f"of shape {a.shape}"
            return f"{name} is {shape}; it should be of shape {b.shape}"
        scale = np.abs(b).max(initial=1, where=np.isfinite(b))
        near = np.isclose(a, b, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)
        if not near.all():
            at = tuple(int(i) for i in np.argwhere(~near)[0])
            place = f"{name}[{', '.join(map(str, at))}]" if at else name
            return f"{place} is {a[at]:.6g}; it should be {b[at]:.6g}"
    return ""


def as_array(value):
    try:
        value = value.detach().numpy() if hasattr(value, "detach") else value
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None


def difference_in_steps(name, got, expected):
    if isinstance(expected, str):
        return f"{name} is {got!r}; it should be {expected!r}"
    for k, step in enumerate(expected):
        if k >= len(got):
            return f"{name}: ends after {k} steps; the next should be {step}"
        if got[k] != step:
            return f"{name}, step {k + 1}: {got[k]}; it should be {step}"
    return f"{name}: goes on with {got[len(expected)]} where nothing more should come"
