"""What a run keeps on disk: written as a whole or not at all, and read without running any code.

    atomic_write(path, put)        # put(file) writes it; `path` is then whole, or as it was
    save(path, content)            # tensors and plain values
    content = load(path)           # and back; refused if the file is damaged, or of another format
    lock = locked(folder)          # until lock.release() no other process may work there
    checkpoint = Checkpoint(...)   # where an unfinished step stands
    events = EventLog(...)         # metrics.jsonl

A process may be killed at any moment, and the disk may be full. So each file is written beside,
flushed, and renamed; and the event log is cut back to the last thing that was really saved.

Left out: keeping more than the last checkpoint, and file systems without rename or flock.
"""

import contextlib
import json
import os
import time
import warnings
import weakref
from pathlib import Path

import torch

from infra.errors import UserError
from infra.processes import is_main, on_main

try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None

FORMAT = 2  # of everything that a run keeps; a change that old files do not fit into raises it


# ---------------------------------------------------------------------------------------- files


def atomic_write(path, put):
    """Call put(file) on a file beside `path`, then rename: `path` is whole, or as it was.

    Of several processes only the main one does so. UserError if it cannot be done.
    """
    if not is_main():
        return
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            put(file)
            flush(file)
        os.replace(beside, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        error = error.__context__ or error  # torch.save makes a RuntimeError of a full disk,
        if not isinstance(error, Exception):  # and of a Ctrl-C
            raise error from None
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', error)}); check "
                        "the folder, its permissions and the free space") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def flush(file):
    """Until the disk has it, and not only the kernel: so that it outlives a loss of power."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder):
    """The same for the names in a folder, which a rename has changed."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def save(path, content):
    """A dict of tensors and plain values."""
    atomic_write(path, lambda file: torch.save({"format": FORMAT, "content": content}, file))


def load(path, device="cpu"):
    """What `save` wrote. UserError if it is missing, damaged, or not of this program's format.

    torch's weights_only makes of a file nothing but tensors and plain values, whatever is in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error says it all
            whole = torch.load(path, weights_only=True, map_location=device)
        saved, content = whole["format"], whole["content"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError:
        raise
    except Exception as error:  # there is no end to what torch.load raises for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: damaged, or not of this program ({reason})") from None
    if not isinstance(saved, int) or saved != FORMAT:
        raise UserError(f"{path} has format {saved} of this program's files, and not {FORMAT}")
    return content


def fits(record, kinds):
    """Whether a record is a dict in which values of these kinds, {name: type}, are to be found."""
    return isinstance(record, dict) and all(isinstance(record.get(name, ...), kind)
                                            for name, kind in kinds.items())


def read_json(path, **kinds):
    """The dict that a JSON file holds. UserError if it is missing or damaged.

    kinds: of what type its values must be; there may be others.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:  # not JSON, or not even text
        raise UserError(f"{path}: damaged ({error})") from None
    if not fits(record, kinds):
        raise UserError(f"{path}: damaged (it should hold {', '.join(kinds)})")
    return record


def load_weights(model, weights):
    """Into the model, in place. UserError if they are of a model of another size."""
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    given = {name: tuple(x.shape) for name, x in weights.items()}
    for name in {**own, **given}:
        if own.get(name) != given.get(name):
            raise UserError(f"saved weights of another model: {name} is {given.get(name)} there, "
                            f"and {own.get(name)} in a {type(model).__name__} of these settings")
    model.load_state_dict(weights)


# ----------------------------------------------------------------------------------------- lock

LOCKS = {}  # of this process, by folder


class Lock:
    """A folder that this process works in, alone, until it has released it as often as it asked."""

    def __init__(self, path):
        self.path, self.held = path, 0
        self.number = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.number)
            raise UserError(f"{path}: another process is at work there") from None
        LOCKS[path] = self

    def release(self):
        self.held -= 1
        if self.held == 0:
            del LOCKS[self.path]
            os.close(self.number)


def locked(folder):
    """The lock of a folder, which this process may ask for more than once; None where there is
    no flock, and in all processes but the main one."""
    if fcntl is None or not is_main():
        return None
    path = Path(folder).resolve()
    lock = LOCKS.get(path) or Lock(path)
    lock.held += 1
    return lock


# ----------------------------------------------------------------------------------- checkpoint


class Checkpoint:
    """Where the unfinished step of a run stands: one file, written over from time to time."""

    EVERY = 60.0  # seconds between two saves, at least ...
    SHARE = 0.02  # ... and as many as keep saving below this share of the time

    def __init__(self, path, note=None):
        """note(number): a method called just before save `number` is made."""
        self.path = path
        self.note = weakref.WeakMethod(note) if note else lambda: None  # or a cycle would form
        self.found = load(path) if on_main(path.exists) else None
        self.number = self.found["number"] if self.found else 0
        self.step = None  # of the run: set by it
        self.saved, self.cost = time.monotonic(), 0.0

    def load(self, name):
        """What an earlier process saved last, if it did so in this step and by this name."""
        found, self.found = self.found, None
        same = found is not None and (found["step"], found["name"]) == (self.step, name)
        return found["content"] if same else None

    def due(self):
        return time.monotonic() - self.saved > max(self.EVERY, self.cost / self.SHARE)

    def save(self, name, content):
        begin = time.monotonic()
        self.number += 1
        if note := self.note():
            note(self.number)
        save(self.path, {"step": self.step, "name": name, "number": self.number,
                         "content": content})
        self.saved = time.monotonic()
        self.cost = self.saved - begin

    def remove(self):
        """The step is finished."""
        self.found = None
        if is_main():
            self.path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ event log


class EventLog:
    """metrics.jsonl: one JSON object for each event, in the order in which they happened.

    Some events are marks: they say that something is saved, and are written just before it is.
    is_true(mark) tells whether it was. On opening, all behind the last true mark is cut off: it
    is of work that was lost when a process was killed, and that will be done, and told, again.
    """

    MARKS = ("step", "part", "checkpoint")
    READ = {"step": {"step": str, "seconds": (int, float)},  # what is read again of some events
            "part": {"step": str, "seconds": (int, float), "part": int},
            "checkpoint": {"step": str, "seconds": (int, float), "number": int},
            "warning": {"text": str, "kind": (str, type(None))}}

    def __init__(self, path, is_true):
        self.path, content = path, path.read_bytes() if path.exists() else b""
        seen, kept, at, end = [], 0, 0, 0
        for line in content.split(b"\n")[:-1]:
            try:
                event = self.parsed(line)
            except (ValueError, RecursionError):  # torn by a loss of power
                break
            seen.append(event)
            at += len(line) + 1
            if event["event"] in self.MARKS and is_true(event):
                kept, end = len(seen), at
        self.events = seen[:kept]  # those of earlier processes
        if end < len(content):
            os.truncate(path, end)

    def parsed(self, line):
        """The event that a line holds; ValueError if it holds none."""
        event = json.loads(line)
        if not fits(event, {"event": str}) or not fits(event, self.READ.get(event["event"], {})):
            raise ValueError("not an event")
        return event

    def add(self, event, **values):
        """Write a line; a mark's also reaches the disk before this returns."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")
            if event in self.MARKS:
                flush(file)
