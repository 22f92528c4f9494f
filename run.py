"""A run's folder and a program's command line, so that rest.py can stay Algorithm 1.

    runs/toy/
      config.json     all settings, versions, seed
      metrics.jsonl   one object per event
      samples.txt     fixed test sources with their outputs and scores, after each step
      steps/          what each finished step made: weights and rows (.pt), pairs (a folder)
      checkpoint.pt   where the unfinished step stands
      policy.pt, reward.pt, results.json, *.png                     what comes out in the end

A run is a row of named steps. Each draws only from generators that its own seeds make, so to resume
is to load what the finished steps made, and to do the others: `run.step(name, make)` does both.
How files are written and read is storage.py's business.

Left out: anything remote.
"""

import argparse
import ctypes
import dataclasses
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
import typing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import parallel
from pairs import Pairs, size_of
from parallel import by_first, first, world
from storage import (FORMAT, Checkpoint, Journal, UserError, load, locked, read_json, save,
                     write)


class Stopped(Exception):
    """The step named by --stop-after is done."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


# ------------------------------------------------------------------------------------- settings


def setting(default, text, choices=None, low=None, high=None):
    """A dataclass field that knows its line of help, and what values make sense for it."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices,
                                                        "low": low, "high": high})


LARGEST = 2**31 - 1  # of whole numbers that have no other bound: what they count is an int32


def check_settings(settings):
    """UserError for the first value, or part of a tuple, outside of its field's bounds or set."""
    for field in dataclasses.fields(settings):
        low, high, choices = (field.metadata.get(k) for k in ("low", "high", "choices"))
        given, (kind, _) = getattr(settings, field.name), plain_type(field.type)
        if choices and given not in choices:
            raise UserError(f"--{field.name.replace('_', '-')} {given}: must be one of "
                            + ", ".join(choices))
        for value in given if isinstance(given, tuple) else (given,):
            if wrong := what_is_wrong(value, kind, low, high):
                raise UserError(f"--{field.name.replace('_', '-')} {value}: must be {wrong}")


def what_is_wrong(value, kind, low, high):
    """What a value of this kind must be, if it is not; else None."""
    if not isinstance(value, (int, float) if kind is float else kind):
        return f"of type {kind.__name__}"
    if kind is float and not math.isfinite(value):
        return "a finite number"
    if low is not None and value < low:
        return f"at least {low}" + (f" and at most {high}" if high is not None else "")
    high = LARGEST if high is None and kind is int else high
    if high is not None and value > high:
        return f"at most {high}"
    return None


@dataclasses.dataclass
class RunSettings:
    """Where a run lies and how it goes on."""

    out: str = setting("", "folder of the run (default: a new numbered one under runs/)")
    resume: bool = setting(False, "go on with the run in that folder, or start it if there is none")
    stop_after: str = setting("", "stop when this step is done (bc, reward, grow-1, score-1, "
                              "improve-1-0, ...); --resume goes on")
    show: int = setting(0, "show so many kept and dropped pairs of each filter of a run, and end",
                        low=0)
    device: str = setting("", "cpu or cuda (default: cuda where there is one)")
    debug: bool = setting(False, "show where in the program an error came up")


class Parser(argparse.ArgumentParser):
    """A command line whose faults are one line, without the list of all flags before it."""

    def error(self, message):
        self.exit(2, f"error: {' '.join(message.split())}; --help lists all flags\n")


def parse(cls, argv=None, description="", **named):
    """An instance of the dataclass `cls` from the command line; an unknown flag is an error.

    named: tables of named sets of defaults, {name: {setting: value}}, each chosen by the flag that
    the table is passed as; the first of a table is its default, and later tables win.
    """
    parser = Parser(description=description, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag, table in named.items():
        parser.add_argument("--" + flag, choices=list(table), default=next(iter(table)),
                            help=f"named set of defaults: {flag}")
    for field in dataclasses.fields(cls):
        kind, many = plain_type(field.type)
        how = ({"action": argparse.BooleanOptionalAction} if kind is bool else
               {"type": kind, "choices": field.metadata.get("choices")})
        if many:
            how["nargs"] = "+"
        parser.add_argument("--" + field.name.replace("_", "-"), default=field.default,
                            help=field.metadata.get("help", "-"), **how)
    if named:
        chosen, _ = parser.parse_known_args(argv)
        for flag, table in named.items():
            parser.set_defaults(**table[getattr(chosen, flag)])
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
                  if k not in named})


def plain_type(annotation):
    """int -> (int, False); tuple[int, ...] -> (int, True)"""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def guarded(main):
    """Run a program: what a person can mend is one line on standard error and exit code 2."""
    keep_memory()
    try:
        signal.signal(signal.SIGTERM, terminate)
        parallel.start()
        try:
            main()
        except Stopped as stop:  # all processes stop at the same step
            print(stop)
        parallel.end()
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if "--debug" in sys.argv or isinstance(error, RuntimeError) and not of_memory(error):
            raise
        if first() or not getattr(error, "told_by_first", False):
            lines = str(error).splitlines()
            text = (f"not enough memory for these settings{': '.join(['', *lines[:1]])}"
                    if of_memory(error) else " ".join(lines))
            print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if first():
            print(f"\nstopped{Run.latest.how_to_go_on() if Run.latest else ''}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def of_memory(error):
    """Whether there was no room for an array; PyTorch has no exception of its own for a CPU's."""
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or isinstance(error, RuntimeError) and any(text in str(error) for text in said))


def terminate(number, frame):
    raise Terminated


def keep_memory():
    """Let glibc keep the memory of a freed tensor for the next one.

    By default it gives large blocks back to the kernel, which has to clear every page when it hands
    them out again: 6 to 15 % of a training step at width 128 (`python -m benchmarks.memory`). With
    another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**26)


# --------------------------------------------------------------------------------------- folder

NOT_COMPARED = {field.name for field in dataclasses.fields(RunSettings)}


class Run:
    """The folder of one run: opened, or gone on with."""

    latest = None  # of this process

    def __init__(self, settings, program):
        self.folder = by_first(lambda: choose_folder(settings, program))
        if not settings.show:
            by_first(lambda: self.claim(program))
        changed = self.check_config(settings, program)
        self.stop_after = settings.stop_after
        self.journal, self.at_work = None, None  # the step that is being made
        self.checkpoint = Checkpoint(self.folder / "checkpoint.pt", self.mark_saved)
        if first() and not settings.show:
            self.journal = Journal(self.folder / "metrics.jsonl", self.is_true)
        events = self.journal.events if self.journal else []
        self.times = {e["step"]: e["seconds"] for e in events if e["event"] in Journal.MARKS}
        self.warned = {e["kind"] or e["text"] for e in events if e["event"] == "warning"}
        self.begin, self.done = time.monotonic(), set()
        self.before = sum(self.times.values())  # seconds spent by earlier processes
        if changed:
            self.warn(f"begun with {', '.join(changed)}: from here on the results may differ from "
                      "those of a run in one go")
        Run.latest = self

    def claim(self, program):
        """The folder is there, is ours alone, and holds a run that has made something, or nothing.

        What is left of a run that ended before its first step was saved, over a file that is not
        there for instance, is cleared away.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = locked(self.folder)
        found = {path.name for path in self.folder.iterdir()}
        others = found - {"config.json.tmp", "steps", "tokenizer.json"}  # a run's, or part of one
        if "config.json" in found:
            self.read_config(program)
            for path in self.folder.rglob("*.tmp"):  # of a save in which a process was killed
                path.unlink()
            if not begun(self.folder):
                for name in ("tokenizer.json", "metrics.jsonl", "config.json"):
                    (self.folder / name).unlink(missing_ok=True)
        elif others:
            raise UserError(f"{self.folder} holds something else than a run: {min(others)}")

    def read_config(self, program):
        """config.json, if it is of this program; else UserError."""
        old = read_json(self.folder / "config.json", program=str, settings=dict, environment=dict)
        known = {"program": old["program"], "format": old.get("format")}
        compare(self.folder, known, {"program": program, "format": FORMAT})
        return old

    def check_config(self, settings, program):
        """Compare with config.json, or write it -> what else an earlier process had otherwise."""
        now = {"python": platform.python_version(), "torch": torch.__version__,
               "numpy": np.__version__, "threads": torch.get_num_threads()}
        changed = []
        if by_first((self.folder / "config.json").exists):
            old = self.read_config(program)
            if settings.show:  # then the run's own settings need not be said again
                restore(settings, old["settings"])
            compare(self.folder, compared(old["settings"]), compared(settings))
            changed = [f"{name} {value}, now {now.get(name)}"
                       for name, value in old["environment"].items() if value != now.get(name)]
        elif settings.show:
            raise UserError(f"{self.folder} holds no run: nothing to show")
        else:
            self.save_json("config.json", {"program": program, "format": FORMAT,
                                           "settings": plain(settings), "environment": now})
        (self.folder / "steps").mkdir(exist_ok=True)
        return changed

    def is_true(self, mark):
        """Whether what the journal says was saved has been saved."""
        step = self.folder / "steps" / mark["step"]
        if step.exists() or step.with_name(step.name + ".pt").exists():
            return True
        if mark["event"] == "part":
            return size_of(unfinished(step))["parts"] > mark["part"]
        return mark["event"] == "checkpoint" and mark["number"] == self.checkpoint.number

    def mark_saved(self, number):
        self.log("checkpoint", step=self.at_work, number=number, seconds=self.seconds_at_work())

    def step(self, name, make):
        """What make() makes, a dict of tensors and plain values: made once, then kept."""
        file = self.folder / "steps" / f"{name}.pt"

        def make_file():
            made = make()
            self.log("step", step=name, seconds=self.seconds_at_work())
            save(file, made)

        self.once(name, file, make_file)
        return load(file)

    def pairs(self, name, makes, look=None):
        """The Pairs that the functions `makes` make, one part each, one after the other.

        A part is kept as soon as it is made, and not made again. look(pairs) is called when all are
        there, by the first of several processes.
        """
        folder = self.folder / "steps" / name

        def make():
            done = by_first(lambda: size_of(unfinished(folder))["parts"])
            for k, make_part in enumerate(makes[done:], done):
                part = make_part()
                self.log("part", step=name, part=k, seconds=self.seconds_at_work())
                part.append_to(unfinished(folder))
            if first():
                if look is not None:
                    look(Pairs.load(unfinished(folder)))
                self.log("step", step=name, seconds=self.seconds_at_work())
                unfinished(folder).rename(folder)

        self.once(name, folder, make)
        return Pairs.load(folder)

    def once(self, name, path, make):
        """Call make(), which makes `path`, unless it is there.

        Raises Stopped if the step of --stop-after is done: what it made has been shown by now.
        """
        if self.stop_after in self.done:
            raise Stopped(f"{self.stop_after} is done; --resume --out {self.folder} goes on")
        if not by_first(path.exists):
            self.at_work, self.since = name, time.monotonic() - self.seconds(name)
            self.checkpoint.step = name
            make()
            self.times[name] = self.seconds_at_work()
            by_first(path.exists)  # and so all have waited for it
            self.checkpoint.remove()
            self.at_work = None
        self.done.add(name)

    def seconds(self, name):
        """That a step has taken, in all processes that worked on it."""
        return self.times.get(name, 0.0)

    def seconds_at_work(self):
        return time.monotonic() - self.since

    def log(self, event, **values):
        """One more event, by the first process."""
        if not first():
            return
        if self.journal is not None:
            self.journal.add(event, **values)
        if event == "grow":
            of_data = values["reward_data"]
            tqdm.write("Grow {grow}: mean reward {0:.1f} of samples{1}; {distinct:.0%} distinct, "
                       "{truncated:.1%} cut off; entropy {entropy:.2f}; {tokens_per_second:.0f} "
                       "tokens/s".format(100 * values["reward_samples"], "" if of_data is None
                                         else f", {100 * of_data:.1f} of D", **values))

    def warn(self, text, kind=None):
        """Say and log it: each text once in a run, or each kind, where there is one."""
        if (kind or text) not in self.warned and first():
            self.warned.add(kind or text)
            self.log("warning", text=text, kind=kind)
            tqdm.write("warning: " + text)

    def logger(self, step):
        """-> log(event) for `fit`."""
        def log(event):
            self.log("train", step=step, **event)
            if "not_finite" in event:
                tqdm.write(f"warning: {step}: update {event['update']} is left out, as its loss or "
                           "its gradient is not finite")

        return log

    def elapsed(self):
        """Seconds of the whole run, the finished steps of interrupted processes included."""
        return self.before + time.monotonic() - self.begin

    def progress(self, title):
        """Wraps an iterable in a progress bar."""
        return lambda items: tqdm(items, desc=title, leave=False, dynamic_ncols=True,
                                  disable=not first() or None)

    def how_to_go_on(self):
        """Said when a run is stopped from outside."""
        command = ([Path(sys.executable).name] if world() == 1 else
                   ["torchrun", f"--nproc_per_node={world()}"]) + sys.argv
        command += [] if "--resume" in command else ["--resume"]
        if not any(word.split("=")[0] == "--out" for word in command):
            command += ["--out", str(self.folder)]
        return f" in {self.at_work or 'between two steps'}; to go on: {shlex.join(command)}"

    def save_json(self, name, content):
        write(self.folder / name, lambda f: f.write(json.dumps(content, indent=1).encode()))

    def save_weights(self, name, model):
        config = model.config if hasattr(model, "config") else model.body.config
        save(self.folder / name, {"config": dataclasses.asdict(config),
                                  "weights": model.state_dict()})

    def append(self, name, text):
        if not first():
            return
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text)


def valid(make, *args):
    """make(*args), its ValueError being something that the person at the keyboard can mend."""
    try:
        return make(*args)
    except ValueError as error:
        raise UserError(str(error)) from None


def begun(folder):
    """Whether there is a run that has made anything from which another process could go on."""
    return (folder / "config.json").exists() and (
        (folder / "checkpoint.pt").exists() or any((folder / "steps").glob("*")))


def choose_folder(settings, program):
    """--out; else the newest numbered folder to resume, or a new one."""
    if settings.out:
        folder = Path(settings.out)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder} is a file, not a folder")
        if begun(folder) and not (settings.resume or settings.show):
            raise UserError(f"{folder} holds a run already: --resume goes on with it, "
                            "another --out starts a new one")
        return folder
    numbers = [int(path.name.rpartition("-")[2]) for path in Path("runs").glob(f"{program}-*")
               if path.name.removeprefix(f"{program}-").isdecimal()]
    number = max(numbers, default=0)
    if settings.resume or settings.show:
        return Path("runs") / f"{program}-{max(number, 1)}"
    while True:
        number += 1
        folder = Path("runs") / f"{program}-{number}"
        try:
            folder.mkdir(parents=True)  # and so it is ours, if two are started at once
            return folder
        except FileExistsError:
            continue


def plain(settings):
    """Settings as JSON would give them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def restore(settings, saved):
    """Take over all saved settings but those of the command line itself."""
    for name, value in saved.items():
        if name not in NOT_COMPARED:
            setattr(settings, name, tuple(value) if isinstance(value, list) else value)
    check_settings(settings)


def compared(settings):
    """The settings by which a run is known: all but those of RunSettings, where it lies and so on.

    settings: a dataclass, or what config.json has of one.
    """
    values = settings if isinstance(settings, dict) else plain(settings)
    return {name: value for name, value in values.items() if name not in NOT_COMPARED}


def compare(folder, saved, now):
    """UserError naming what differs between the values something was made with, and those now."""
    changed = [f"{name} was {saved.get(name)}, now {now.get(name)}" for name in {**saved, **now}
               if saved.get(name) != now.get(name)]
    if changed:
        raise UserError(f"{folder} was begun with other settings: {'; '.join(changed)}")


def unfinished(folder):
    """Where the parts of Pairs lie until all are there."""
    return folder.with_name(folder.name + ".unfinished")


def choose_device(name):
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu or cuda")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}, but this PyTorch sees "
                            f"{torch.cuda.device_count() or 'no'} CUDA device")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of torchrun's on this machine
        if here > torch.cuda.device_count():
            raise UserError(f"{here} processes on a machine with {torch.cuda.device_count()} CUDA "
                            "device: each needs its own")
        torch.cuda.set_device(parallel.rank() % torch.cuda.device_count())
    return device

