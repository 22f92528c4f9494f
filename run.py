"""A run's folder and a program's command line, so that rest.py can stay Algorithm 1.

    runs/toy/
      config.json     all settings, versions, seed
      metrics.jsonl   one object per event
      samples.txt     fixed test sources with their outputs and scores, after each step
      steps/          what each finished step made: weights and rows (.pt), pairs (a folder)
      checkpoint.pt   where the unfinished step stands, if it is one `fit` (PPO is many)
      policy.pt, reward.pt, results.json, *.png                     what comes out in the end

A run is a row of named steps. Each draws only from generators that its own seeds make, so to resume
is to load what the finished steps made, and to do the others: `run.step(name, make)` does both.

Left out: a lock against a run that is started twice, and anything remote.
"""

import argparse
import ctypes
import dataclasses
import json
import platform
import sys
import time
import typing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import parallel
from pairs import Pairs, size_of, write
from parallel import by_first, first


class UserError(Exception):
    """Something that the person at the keyboard can mend. Shown as one line, exit code 2."""


class Stopped(Exception):
    """The step named by --stop-after is done."""


# ------------------------------------------------------------------------------------- settings


def setting(default, text, choices=None, low=None, high=None):
    """A dataclass field that knows its line of help, and what values make sense for it."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices,
                                                        "low": low, "high": high})


def check_settings(settings):
    """UserError for the first value, or part of a tuple, outside of its field's bounds or set."""
    for field in dataclasses.fields(settings):
        low, high, choices = (field.metadata.get(k) for k in ("low", "high", "choices"))
        given = getattr(settings, field.name)
        if choices and given not in choices:
            raise UserError(f"--{field.name.replace('_', '-')} {given}: must be one of "
                            + ", ".join(choices))
        for value in given if isinstance(given, tuple) else (given,):
            if low is not None and not value >= low or high is not None and not value <= high:
                raise UserError(f"--{field.name.replace('_', '-')} {value}: must be at least {low}"
                                + (f" and at most {high}" if high is not None else ""))


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


def parse(cls, argv=None, description="", **named):
    """An instance of the dataclass `cls` from the command line; an unknown flag is an error.

    named: tables of named sets of defaults, {name: {setting: value}}, each chosen by the flag that
    the table is passed as; the first of a table is its default, and later tables win.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
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
        parallel.start()
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop)
    except KeyboardInterrupt:
        print("\nstopped; --resume with the same --out goes on", file=sys.stderr)
        sys.exit(130)


def keep_memory():
    """Let glibc keep the memory of a freed tensor for the next one.

    By default it gives large blocks back to the kernel, which has to clear every page when it hands
    them out again: a sixth of a training step at width 128 (`python -m benchmarks.memory`). With
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

    def __init__(self, settings, program):
        self.folder = by_first(lambda: choose_folder(settings, program))
        self.stop_after, self.checkpoint = settings.stop_after, self.folder / "checkpoint.pt"
        old = self.folder / "config.json"
        begun = by_first(old.exists)
        if settings.show and not begun:
            raise UserError(f"{self.folder} holds no run: nothing to show")
        if settings.show:  # then the run's own settings need not be said again
            restore(settings, json.loads(old.read_text())["settings"])
        elif begun:
            compare(json.loads(old.read_text())["settings"], plain(settings), self.folder)
        (self.folder / "steps").mkdir(parents=True, exist_ok=True)
        if not begun:
            self.save_json("config.json", {
                "program": program, "settings": plain(settings),
                "versions": {"python": platform.python_version(), "torch": torch.__version__,
                             "numpy": np.__version__}, "threads": torch.get_num_threads()})
        self.times = {e["step"]: e["seconds"] for e in self.events() if e["event"] == "step"}
        self.begin, self.done = time.monotonic(), set()
        self.before = sum(self.times.values())  # seconds spent by earlier processes

    def events(self):
        """The objects of metrics.jsonl; a last line that a pulled plug cut off is taken away."""
        if not first():
            return []
        metrics = self.folder / "metrics.jsonl"
        content = metrics.read_bytes() if metrics.exists() else b""
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            write(metrics, lambda f: f.write(whole + newline))
        return [json.loads(line) for line in whole.splitlines()]

    def step(self, name, make):
        """What make() makes, a dict of tensors and plain values: made once, then kept."""
        file = self.folder / "steps" / f"{name}.pt"

        def make_file():
            made = make()
            write(file, lambda f: torch.save(made, f))

        self.once(name, file, make_file)
        return torch.load(file, weights_only=True, map_location="cpu")

    def pairs(self, name, makes, look=None):
        """The Pairs that the functions `makes` make, one part each, one after the other.

        A part is kept as soon as it is made, and not made again. look(pairs) is called when all are
        there, by the first of several processes.
        """
        folder = self.folder / "steps" / name
        unfinished = folder.with_name(name + ".unfinished")

        def make():
            for make_part in makes[by_first(lambda: size_of(unfinished)["parts"]) :]:
                make_part().append_to(unfinished)
            if first():
                if look is not None:
                    look(Pairs.load(unfinished))
                unfinished.rename(folder)

        self.once(name, folder, make)
        return Pairs.load(folder)

    def once(self, name, path, make):
        """Call make(), which makes `path`, unless it is there.

        Raises Stopped if the step of --stop-after is done: what it made has been shown by now.
        """
        if self.stop_after in self.done:
            raise Stopped(f"{self.stop_after} is done; --resume --out {self.folder} goes on")
        if not by_first(path.exists):
            begin = time.monotonic()
            make()
            self.times[name] = time.monotonic() - begin
            self.log("step", step=name, seconds=self.times[name])
            by_first(path.exists)  # and so all have waited for it
        self.done.add(name)

    def seconds(self, name):
        return self.times.get(name, 0.0)

    def log(self, event, **values):
        if not first():
            return
        line = json.dumps({"event": event, **values})
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(line + "\n")
        if event == "warning":
            tqdm.write("warning: " + values["text"])
        if event == "grow":
            of_data = values["reward_data"]
            tqdm.write("Grow {grow}: mean reward {0:.1f} of samples{1}; {distinct:.0%} distinct, "
                       "{truncated:.1%} cut off; entropy {entropy:.2f}; {tokens_per_second:.0f} "
                       "tokens/s".format(100 * values["reward_samples"], "" if of_data is None
                                         else f", {100 * of_data:.1f} of D", **values))

    def logger(self, step):
        return lambda event: self.log("train", step=step, **event)

    def elapsed(self):
        """Seconds of the whole run, the finished steps of interrupted processes included."""
        return self.before + time.monotonic() - self.begin

    def progress(self, title):
        """Wraps an iterable in a progress bar."""
        return lambda items: tqdm(items, desc=title, leave=False, dynamic_ncols=True,
                                  disable=not first() or None)

    def save_json(self, name, content):
        write(self.folder / name, lambda f: f.write(json.dumps(content, indent=1).encode()))

    def save_weights(self, name, model):
        config = model.config if hasattr(model, "config") else model.body.config
        content = {"config": dataclasses.asdict(config), "weights": model.state_dict()}
        write(self.folder / name, lambda f: torch.save(content, f))

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


def choose_folder(settings, program):
    """--out; else the newest numbered folder to resume, or a new one."""
    if settings.out:
        folder = Path(settings.out)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder} is a file, not a folder")
        if (folder / "config.json").exists() and not (settings.resume or settings.show):
            raise UserError(f"{folder} holds a run already: --resume goes on with it, "
                            "another --out starts a new one")
        return folder
    numbers = [int(path.name.rpartition("-")[2]) for path in Path("runs").glob(f"{program}-*")
               if path.name.removeprefix(f"{program}-").isdecimal()]
    newest = max(numbers, default=0)
    number = max(newest, 1) if settings.resume or settings.show else newest + 1
    return Path("runs") / f"{program}-{number}"


def plain(settings):
    """Settings as JSON would give them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def restore(settings, saved):
    """Take over all saved settings but those of the command line itself."""
    for name, value in saved.items():
        if name not in NOT_COMPARED:
            setattr(settings, name, tuple(value) if isinstance(value, list) else value)


def compare(old, new, folder):
    """A run goes on only with the settings that it was begun with."""
    changed = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new}
               if k not in NOT_COMPARED and old.get(k) != new.get(k)]
    if changed:
        raise UserError(f"{folder} was begun with other settings: {'; '.join(changed)}")


def choose_device(name):
    if name and name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {name}, but this PyTorch sees no CUDA device")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.cuda.set_device(parallel.rank() % torch.cuda.device_count())
    return device

