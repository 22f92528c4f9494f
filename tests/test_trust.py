"""What is promised of a run: killed at any moment it goes on exactly, and nothing bad is read.

A run is killed in a child process that is forked from this one, which has torch loaded already.
"""

import contextlib
import json
import os
import pickle
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import figures
import storage
import train_mt
import train_toy
from model import Config, Transformer
from pairs import Pairs
from run import Run, RunSettings, guarded
from storage import Checkpoint, UserError, load, save
from test_train_mt import TINY as TINY_MT
from test_train_mt import corpus  # noqa: F401 (a fixture)
from test_train_toy import TINY

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def forked(work, quiet=True):
    """work() in a child process -> its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if quiet:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            work()
        code = 0
    finally:
        os._exit(code)


def died(child):
    """Wait for it -> None if it was killed, or its exit code."""
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def kill_at_operation(number):
    """Be killed at the so-manieth flush or rename of this process, before or after it."""
    left = [number]

    def counted(function):
        def call(*args):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


def timeless(value):
    """Without what a clock has measured."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items()
                if not k.endswith("seconds") and k != "tokens_per_second"}
    return [timeless(x) for x in value] if isinstance(value, list) else value


def lines_of(folder):
    """metrics.jsonl without seconds, and without the checkpoints that came when they came."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [timeless(line) for line in lines if line["event"] != "checkpoint"]


def assert_same_run(a, b):
    results = [timeless(json.loads((x / "results.json").read_text())) for x in (a, b)]
    assert results[0] == results[1]
    assert lines_of(a) == lines_of(b)
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()
    for name in ("policy.pt", "reward.pt"):
        one, two = (load(x / name)["weights"] for x in (a, b))
        assert all(torch.equal(one[k], two[k]) for k in one | two), name
    assert not [path for path in b.rglob("*") if path.suffix == ".tmp"]
    assert not (b / "checkpoint.pt").exists()


def killed_again_and_again(main, folder, kills, seed):
    """Start and resume main(folder, "--resume"), killed so many times; then let it end."""
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        operation = rng.randrange(1, 30) if rng.random() < 0.5 else None
        often = rng.random() < 0.7  # else as rarely as usual, which is never in so short a run

        def work():
            if operation:
                kill_at_operation(operation)
            if often:
                Checkpoint.EVERY, Checkpoint.SHARE = -1.0, 1e9
            main(folder, "--resume")

        child = forked(work)
        if not operation:
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
        assert died(child) is None, f"it came to its end after {killed} kills"
        killed += 1
    assert died(forked(lambda: main(folder, "--resume"))) == 0


def toy(folder, *flags):
    train_toy.main([*TINY, "--out", str(folder), *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A little run that was never killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert died(forked(lambda: toy(folder))) == 0
    return folder


def test_killed_at_twenty_random_moments(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: True)
    killed_again_and_again(toy, tmp_path / "run", kills=20, seed=1)
    assert_same_run(whole, tmp_path / "run")
