"""Settings as dataclasses, and a command line made from them.

    @dataclass
    class Settings(Machine):
        '''My program'''
        lr: float = setting(1e-3, "peak learning rate", low=0)

    settings = parse(Settings, argv)           # --lr 0.01, --help, one line for what is wrong

A class that inherits several others has all their settings as flat flags; `--help` shows them in
groups, one for each class, under the first line of its docstring.
"""

import argparse
import dataclasses
import json
import math
import typing

import numpy as np

from infra.errors import UserError

LARGEST = 2**31 - 1  # of whole numbers without another bound: what they count is an int32


def setting(default, text, choices=None, low=None, high=None, free=False):
    """A dataclass field with its line of help and the values that are allowed.

    choices: a set, or a function that returns one. free: a run may be gone on with another value.
    """
    return dataclasses.field(default=default, metadata={
        "help": text, "choices": choices, "low": low, "high": high, "free": free})


@dataclasses.dataclass
class Machine:
    """Memory and speed: these change no result but by rounding"""

    sample_batch_size: int = setting(1024, "outputs sampled at once", low=1)
    accumulate: int = setting(1, "training batches that make one update", low=1)
    precision: str = setting("float32", "of training and sampling",
                             choices=("float32", "bfloat16"))
    compile: bool = setting(False, "torch.compile the policy's training and decoding steps")

    def decoding(self):
        """Arguments of `sample_outputs` that change how fast it is, and how precise."""
        return {"batch_size": self.sample_batch_size, "precision": self.precision,
                "compile": self.compile}


@dataclasses.dataclass
class RunSettings:
    """Where a run is kept, and how it goes on"""

    out: str = setting("", "folder of the run (default: a new numbered one under runs/)")
    resume: bool = setting(False, "go on with the run in that folder, or start it if there is none")
    stop_after: str = setting("", "stop when this step is done (bc, reward, grow-1, score-1, "
                              "improve-1-0, ...); --resume goes on")
    show: int = setting(0, "show so many kept and dropped pairs of each filter of a run, and end",
                        low=0)
    device: str = setting("", "cpu or cuda (default: cuda where there is one)")
    debug: bool = setting(False, "show where in the program an error came up")


RUN_ONLY = {field.name for field in dataclasses.fields(RunSettings)}


# --------------------------------------------------------------------------------------- checks


def check_settings(settings):
    """Bring values to their fields' types (numpy's numbers, lists, a number for a tuple of one).

    UserError, a ValueError, for the first one of another type, or out of its bounds.
    """
    for field in dataclasses.fields(settings):
        kind, many = plain_type(field.type)
        given = getattr(settings, field.name)
        if many:
            given = tuple(given) if isinstance(given, (tuple, list, np.ndarray)) else (given,)
            given = tuple(as_python(value, kind) for value in given)
        else:
            given = as_python(given, kind)
        setattr(settings, field.name, given)
        choices = choices_of(field)
        if choices and given not in choices:
            raise UserError(f"--{flag(field.name)} {given}: must be one of " + ", ".join(choices))
        for value in given if many else (given,):
            if wrong := range_error(value, kind, *map(field.metadata.get, ("low", "high"))):
                raise UserError(f"--{flag(field.name)} {value}: must be {wrong}")


def choices_of(field):
    """The values that a field may have, if they are a set: given as such, or as a function."""
    choices = field.metadata.get("choices")
    return tuple(choices()) if callable(choices) else choices


def flag(name):
    return name.replace("_", "-")


def as_python(value, kind):
    """A number of numpy's as Python's; all else as it is."""
    if isinstance(value, np.generic):
        value = value.item()
    whole = isinstance(value, float) and kind is int and value.is_integer()
    return int(value) if whole else value


def range_error(value, kind, low=None, high=None):
    """What a value of this kind must be, if it is not; else None."""
    if (not isinstance(value, (int, float) if kind is float else kind)
            or isinstance(value, bool) and kind is not bool):
        return f"of type {kind.__name__}"
    if kind is float and not math.isfinite(value):
        return "a finite number"
    if low is not None and value < low:
        return f"at least {low}" + (f" and at most {high}" if high is not None else "")
    high = LARGEST if high is None and kind is int else high
    if high is not None and value > high:
        return f"at most {high}"
    return None


def plain_type(annotation):
    """int -> (int, False); tuple[int, ...] -> (int, True)"""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def plain(settings):
    """Settings as JSON would give them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


# --------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, without the list of all flags before it."""

    def error(self, message):
        self.exit(2, f"error: {' '.join(message.split())}; --help lists all flags\n")


def parse(cls, argv=None, description="", first=(), **tables):
    """An instance of the dataclass `cls` from the command line; an unknown flag is an error.

    first: the settings that --help shows first. tables: named sets of defaults, {name: {setting:
    value}}, each chosen by the flag that the table is passed as, which may be a setting too; the
    first of a table is its default, and later tables win.
    """
    parser = Parser(description=description, allow_abbrev=False, usage="%(prog)s [--flag value]",
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    top = parser.add_argument_group("the settings that matter most")
    known = {field.name: field for field in dataclasses.fields(cls)}
    fields = {name: field for name, field in known.items() if name not in tables}
    for name, table in tables.items():
        text = known[name].metadata["help"] if name in known else "named set of defaults"
        top.add_argument("--" + name, choices=list(table), default=next(iter(table)), help=text)
    for name in first:
        add_flag(top, fields[name])
    owner = {name: base for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    for base in cls.__mro__:  # a setting stands with the class that had it first
        own = [name for name in fields if owner[name] is base and name not in first]
        group = parser.add_argument_group(base.__doc__.split("\n")[0]) if own else None
        for name in own:
            add_flag(group, fields[name])
    if tables:
        chosen, _ = parser.parse_known_args(argv)
        for name, table in tables.items():
            parser.set_defaults(**table[getattr(chosen, name)])
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
                  if k in known})


def add_flag(group, field):
    kind, many = plain_type(field.type)
    how = ({"action": argparse.BooleanOptionalAction} if kind is bool else
           {"type": kind, "choices": choices_of(field)})
    if many:
        how["nargs"] = "+"
    group.add_argument("--" + flag(field.name), default=field.default,
                       help=field.metadata.get("help", "-"), **how)
