"""The folder of a run, so that what was computed is never computed again.

    runs/toy/
      config.json     all settings, versions, seed, and hashes of what the run was made from
      metrics.jsonl   one object per event
      samples.txt     fixed test sources with their outputs and scores, after each step
      steps/          what each finished step made: weights and rows (.pt), pairs (a folder)
      checkpoint.pt   where the unfinished step stands
      policy.pt, reward.pt, results.json, *.png, index.html         what comes out in the end

A run is a list of named steps. Each draws only from generators that its own seeds make, so to
resume is to load what the finished steps made, and to do the others:

    saved = run.begin("bc")                        # None: it has not been done yet
    if saved is None:
        saved = run.end({"policy": weights})       # a dict of tensors and plain values

    for item in run.parts("grow-1", items):        # the items that are still to do
        run.add(pairs)                             # one part of the step's Pairs, kept at once
    samples = run.pairs("grow-1")

`InMemory` has the same methods and keeps nothing. How files are written and read is storage.py's
business. Left out: anything remote.
"""

import dataclasses
import hashlib
import json
import platform
import shlex
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from infra.errors import UserError
from infra.pairs import Pairs, size_of
from infra.processes import is_main, on_main, world_size
from infra.progress import bar
from infra.settings import RUN_ONLY, check_settings, plain
from infra.storage import (FORMAT, Checkpoint, EventLog, atomic_write, load, locked, read_json,
                           save)


class Stopped(Exception):
    """The step named by --stop-after is done."""


class InMemory:
    """A run that keeps nothing: `rest.rest(bc, task, settings)` in a notebook."""

    def __init__(self):
        self.events, self.warned, self.checkpoint, self.times = [], set(), None, {}

    def begin(self, name):
        self.at_work, self.since = name, time.monotonic()

    def end(self, made):
        self.times[self.at_work] = self.seconds_at_work()
        return made

    def parts(self, name, items, look=None):
        self.begin(name)
        self.made = []
        yield from items
        pairs = Pairs.join(self.made)
        for array in vars(pairs).values():
            array.flags.writeable = False  # as what is read from disk
        if look is not None:
            look(pairs)
        self.last = self.end(pairs)

    def add(self, pairs):
        self.made.append(pairs)

    def pairs(self, name):
        """The Pairs of the step that has just been made."""
        return self.last

    def bind(self, **parts):
        pass

    def log(self, event, **values):
        self.events.append({"event": event, **values})

    def logger(self, step):
        return lambda event: self.log("train", step=step, **event)

    def warn(self, text, kind=None):
        if (kind or text) not in self.warned:
            self.warned.add(kind or text)
            self.log("warning", text=text, kind=kind)
            tqdm.write("warning: " + text)

    def seconds(self, name):
        return self.times.get(name, 0.0)

    def seconds_at_work(self):
        return time.monotonic() - self.since

    def progress(self, title):
        return lambda items: items


class Run:
    """The folder of one run: opened, or gone on with. To be closed, or used in a `with`."""

    latest = None  # of this process: a weak reference

    def __init__(self, settings, program):
        self.settings = settings
        self.folder = on_main(lambda: choose_folder(settings, program))
        self.close = lambda: None  # give the folder back
        try:
            if not settings.show:
                on_main(lambda: self.claim(program))
            self.open(settings, program)
        except BaseException:
            self.close()
            raise

    def open(self, settings, program):
        changed = self.check_config(settings, program)
        self.stop_after = settings.stop_after
        self.event_log, self.at_work = None, None  # the step that is being made
        self.checkpoint = Checkpoint(self.folder / "checkpoint.pt", self.mark_saved)
        if is_main() and not settings.show:
            self.event_log = EventLog(self.folder / "metrics.jsonl", self.is_true)
        events = self.event_log.events if self.event_log else []
        self.times = {e["step"]: e["seconds"] for e in events if e["event"] in EventLog.MARKS}
        self.warned = {e["kind"] or e["text"] for e in events if e["event"] == "warning"}
        self.start, self.done = time.monotonic(), set()
        self.before = sum(self.times.values())  # seconds spent by earlier processes
        if changed:
            self.warn(f"begun with {', '.join(changed)}: from here on the results may differ from "
                      "those of a run in one go")
        Run.latest = weakref.ref(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # ------------------------------------------------------------------------- whose folder is it

    def claim(self, program):
        """Lock the folder; it must hold a run of this program, or nothing.

        What is left of a run that ended before its first step was saved, over a file that is not
        there for instance, is cleared away.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (lock := locked(self.folder)) is not None:
            self.close = weakref.finalize(self, lock.release)  # at the latest
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
        self.config = {"program": program, "format": FORMAT, "settings": plain(settings),
                       "environment": now, "made_from": {}}
        changed = []
        if on_main((self.folder / "config.json").exists):
            old = self.read_config(program)
            free = may_change(settings, old["settings"])
            if settings.show:  # then the run's own settings need not be given again
                restore(settings, old["settings"], free)
            compare(self.folder, *(without(s, free) for s in (old["settings"], plain(settings))))
            changed = [f"{name} {value}, now {now.get(name)}"
                       for name, value in old["environment"].items() if value != now.get(name)]
            self.config = old  # until a step is made by other settings
        elif settings.show:
            raise UserError(f"{self.folder} holds no run: nothing to show")
        else:
            self.save_json("config.json", self.config)
        (self.folder / "steps").mkdir(exist_ok=True)
        return changed

    def bind(self, **parts):
        """Refuse, by name, to go on with other data or another reward than the run began with.

        parts: name -> a hash of what the run is made from, or some numbers that tell it from
        others but for rounding; kept in config.json.
        """
        known = self.config.setdefault("made_from", {})
        other = [name.replace("_", " ") for name in parts
                 if name in known and not same(known[name], parts[name])]
        if other:
            raise UserError(f"{self.folder} was begun with other data: {', '.join(other)} "
                            f"{'is' if len(other) == 1 else 'are'} not the same; another --out "
                            "starts a new run")
        if not self.settings.show and not parts.keys() <= known.keys():
            known.update(parts | known)
            self.save_json("config.json", self.config)

    def is_true(self, mark):
        """Whether what the event log says was saved has been saved."""
        step = self.folder / "steps" / mark["step"]
        if step.exists() or step.with_name(step.name + ".pt").exists():
            return True
        if mark["event"] == "part":
            return size_of(unfinished(step))["parts"] > mark["part"]
        return mark["event"] == "checkpoint" and mark["number"] == self.checkpoint.number

    def mark_saved(self, number):
        self.log("checkpoint", step=self.at_work, number=number, seconds=self.seconds_at_work())

    # -------------------------------------------------------------------------------------- steps

    def begin(self, name):
        """What the step made when it was done; None if it is to be done now, and then `end`ed."""
        file = self.folder / "steps" / f"{name}.pt"
        if self.is_done(name, file):
            return load(file)

    def end(self, made):
        """Keep what the step has made, a dict of tensors and plain values; returns it."""
        file = self.folder / "steps" / f"{self.at_work}.pt"
        self.log("step", step=self.at_work, seconds=self.seconds_at_work())
        save(file, made)
        self.leave(file)
        return load(file)

    def parts(self, name, items, look=None):
        """Yields those of the items whose part is not made yet; each is followed by one `add`.

        look(pairs) is called when all parts are there, in the main process.
        """
        folder = self.folder / "steps" / name
        if self.is_done(name, folder):
            return
        done = on_main(lambda: size_of(unfinished(folder))["parts"])
        for self.part in range(done, len(items)):
            yield items[self.part]
        if is_main():
            if look is not None:
                look(Pairs.load(unfinished(folder)))
            self.log("step", step=name, seconds=self.seconds_at_work())
            unfinished(folder).rename(folder)
        self.leave(folder)

    def add(self, pairs):
        """One more part of the step that is being made."""
        self.log("part", step=self.at_work, part=self.part, seconds=self.seconds_at_work())
        pairs.append_to(unfinished(self.folder / "steps" / self.at_work))

    def pairs(self, name):
        """All parts of a step as one."""
        return Pairs.load(self.folder / "steps" / name)

    def is_done(self, name, path):
        """Whether the step has made `path`; if not, it is begun.

        Raises Stopped if the step of --stop-after is done: what it made has been shown by now.
        """
        if self.stop_after in self.done:
            raise Stopped(f"{self.stop_after} is done; --resume --out {self.folder} goes on")
        if on_main(path.exists):
            self.done.add(name)
            return True
        self.at_work, self.since = name, time.monotonic() - self.seconds(name)
        self.checkpoint.step = name
        return False

    def leave(self, path):
        """The step that was begun has made `path`."""
        self.times[self.at_work] = self.seconds_at_work()
        settings = self.config["settings"] | without(plain(self.settings), ())
        if self.config["settings"] != settings:
            self.config["settings"] = settings
            self.save_json("config.json", self.config)
        on_main(path.exists)  # and so all have waited for it
        self.checkpoint.remove()
        self.done.add(self.at_work)
        self.at_work = None

    def forget(self, name):
        """Let a step be done again."""
        on_main(lambda: (self.folder / "steps" / f"{name}.pt").unlink(missing_ok=True))
        self.times.pop(name, None)
        self.done.discard(name)

    # ------------------------------------------------------------------------------------- events

    def seconds(self, name):
        """That a step has taken, in all processes that worked on it."""
        return self.times.get(name, 0.0)

    def seconds_at_work(self):
        return time.monotonic() - self.since

    def elapsed(self):
        """Seconds of the whole run, the finished steps of interrupted processes included."""
        return self.before + time.monotonic() - self.start

    def log(self, event, **values):
        """One more event, by the main process."""
        if not is_main():
            return
        if self.event_log is not None:
            self.event_log.add(event, **values)
        if event == "grow":
            of_data = values["reward_data"]
            of_data = "" if of_data is None else f", {100 * of_data:.1f} of D"
            tqdm.write("Grow {grow}: mean reward {0:.1f} of samples{1}; {distinct:.0%} distinct, "
                       "{truncated:.1%} cut off; -log π {nll:.2f} a token; "
                       "{tokens_per_second:.0f} tokens/s".format(
                           100 * values["reward_samples"], of_data, **values))

    def warn(self, text, kind=None):
        """Print and log it: each text once in a run, or each kind, where there is one."""
        if (kind or text) not in self.warned and is_main():
            self.warned.add(kind or text)
            self.log("warning", text=text, kind=kind)
            tqdm.write("warning: " + text)

    def logger(self, step):
        """-> log(event) for a Trainer."""
        def log(event):
            self.log("train", step=step, **event)
            if "not_finite" in event:
                tqdm.write(f"warning: {step}: update {event['update']} is left out, as its loss or "
                           "its gradient is not finite")

        return log

    def progress(self, title):
        """Wraps an iterable in a progress bar."""
        return lambda items: bar(items, desc=title, disable=not is_main())

    def resume_command(self):
        """Printed when a run is stopped from outside."""
        command = ([Path(sys.executable).name] if world_size() == 1 else
                   ["torchrun", f"--nproc_per_node={world_size()}"]) + sys.argv
        command += [] if "--resume" in command else ["--resume"]
        if not any(word.split("=")[0] == "--out" for word in command):
            command += ["--out", str(self.folder)]
        return f" in {self.at_work or 'between two steps'}; to go on: {shlex.join(command)}"

    # -------------------------------------------------------------------------------------- files

    def save_json(self, name, content):
        text = json.dumps(content, indent=1).encode()
        atomic_write(self.folder / name, lambda file: file.write(text))

    def save_weights(self, name, model):
        config = model.config if hasattr(model, "config") else model.body.config
        save(self.folder / name, {"config": dataclasses.asdict(config),
                                  "weights": model.state_dict()})

    def save_text(self, name, text):
        atomic_write(self.folder / name, lambda file: file.write(text.encode()))


def hash_of(*parts):
    """Of arrays, lists of arrays, strings and bytes: the same content has the same hash."""
    digest = hashlib.sha256()
    for part in parts:
        items = part if isinstance(part, (list, tuple)) else [part]
        for x in items:
            data = x if isinstance(x, bytes) else x.encode() if isinstance(x, str) else (
                np.ascontiguousarray(x).tobytes())
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def same(a, b):
    """Two hashes, or two lists of numbers but for rounding."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and np.allclose(a, b, atol=2e-3)
    return a == b


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


def restore(settings, saved, free=()):
    """Take over all saved settings but those of the command line itself, and those that are free
    to change and given: where the data lies now."""
    given = {field.name for field in dataclasses.fields(settings)
             if getattr(settings, field.name) != field.default}
    for name, value in saved.items():
        if name not in RUN_ONLY and not (name in free and name in given):
            setattr(settings, name, tuple(value) if isinstance(value, list) else value)
    check_settings(settings)


def may_change(settings, saved):
    """The settings that may differ from the saved ones of a run that is gone on with.

    The free ones; and the numbers of Grows and Improves, if there are only more.
    """
    free = {field.name for field in dataclasses.fields(settings) if field.metadata.get("free")}
    if not hasattr(settings, "improves") or getattr(settings, "refresh", False):
        return free
    try:
        old = dataclasses.replace(settings, grow=saved["grow"], improve=tuple(saved["improve"]))
    except (KeyError, TypeError, ValueError):  # a damaged config.json: compared as it is
        return free
    now = improve_steps(settings)
    more = all(step == next(now, None) for step in improve_steps(old))
    return free | ({"grow", "improve"} if more else set())


def improve_steps(settings):
    """Yields (g, i) of each Improve."""
    for g in range(1, settings.grow + 1):
        yield from ((g, i) for i in settings.improves(g))


def without(settings, names):
    """Saved settings, less those by which a run is not known."""
    return {k: v for k, v in settings.items() if k not in RUN_ONLY and k not in names}


def compare(folder, saved, now):
    """UserError naming what differs between the values something was made with, and those now."""
    changed = [f"{name} was {saved.get(name)}, now {now.get(name)}" for name in {**saved, **now}
               if saved.get(name) != now.get(name)]
    if changed:
        raise UserError(f"{folder} was begun with other settings: {'; '.join(changed)}")


def unfinished(folder):
    """Where the parts of Pairs lie until all are there."""
    return folder.with_name(folder.name + ".unfinished")
