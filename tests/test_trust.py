"""What is promised of a run: killed at any moment it goes on exactly, and nothing bad is read.

A run is killed in a child process that is forked from this one, which has torch loaded already.
"""

import contextlib
import itertools
import json
import math
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

import numpy as np
import pytest
import torch

from infra import measures
from infra import figures
from infra import report
import rest
import infra.run as run_module
from infra import storage
import train_mt
import train_toy
from infra import checks
from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.run import Run
from infra.settings import RunSettings
from infra.storage import Checkpoint, load
from infra.text import Tokenizer
from infra.trainer import Training, fit
from model import Transformer
from reward import RewardModel
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


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: [])


# -------------------------------------------------------------------------------------- resuming


def test_killed_at_twenty_random_moments(whole, tmp_path, no_figures):
    killed_again_and_again(toy, tmp_path / "run", kills=20, seed=1)
    assert_same_run(whole, tmp_path / "run")


def test_a_translation_run_killed_again_and_again(corpus, tmp_path, no_figures):  # noqa: F811
    def mt(folder, *flags):
        train_mt.main([*TINY_MT, "--data", str(corpus), "--out", str(folder), *flags])

    assert died(forked(lambda: mt(tmp_path / "whole"))) == 0
    killed_again_and_again(mt, tmp_path / "run", kills=8, seed=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_the_smoke_preset_killed_at_twenty_random_moments(tmp_path, no_figures):
    """With the data that --data of the environment variable REST_DATA names: Multi30k's files."""
    data = os.environ.get("REST_DATA")
    if not data:
        pytest.skip("REST_DATA names no folder")

    def smoke(folder, *flags):
        train_mt.main(["--preset", "smoke", "--data", data, "--out", str(folder), *flags])

    assert died(forked(lambda: smoke(tmp_path / "whole"))) == 0
    killed_again_and_again(smoke, tmp_path / "run", kills=20, seed=3)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_is_loaded_and_reported(whole, tmp_path, no_figures, capsys):
    shutil.copytree(whole, tmp_path / "run")
    steps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/steps").iterdir()}
    toy(tmp_path / "run", "--resume")
    assert "ReST (2,1)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/steps").iterdir()} == steps
    assert_same_run(whole, tmp_path / "run")


def test_the_same_seed_gives_the_same_run(whole, tmp_path, no_figures, monkeypatch):
    """Without figures, with evaluations in between, and whatever else draws random numbers."""
    step = rest.improve_step

    def with_more(policy, D_g, kept, task, settings, *others):
        new, row = step(policy, D_g, kept, task, settings, *others)
        measures.evaluate(new, new, task, settings)
        torch.rand(7), np.random.rand(7), random.random()
        return new, row

    monkeypatch.setattr(rest, "improve_step", with_more)
    assert died(forked(lambda: toy(tmp_path / "run"))) == 0
    assert_same_run(whole, tmp_path / "run")


# ----------------------------------------------------------------------------- stopped from outside


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_says_how_to_go_on(number, code, tmp_path):
    program = [sys.executable, train_toy.__file__, *TINY, "--out", "my run", "--bc-updates", "9999"]
    around = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    running = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               text=True, **around)
    while not (tmp_path / "my run/steps").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(number)
    last = running.communicate(timeout=60)[1].splitlines()[-1]
    assert running.returncode == code
    where, command = last.split("; to go on: ")
    assert where == "stopped in bc"
    words = shlex.split(command)
    assert words[1:] == [*program[1:], "--resume"] and words.count("--out") == 1
    with pytest.raises(subprocess.TimeoutExpired):  # and so it goes on, until it is stopped again
        subprocess.run([sys.executable, *words[1:]], capture_output=True, timeout=4, **around)


# ---------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KB, and a function that makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "rest", str(place)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(place)], check=True)
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # some of it may be mapped


def test_a_full_disk_loses_nothing(whole, small_disk, no_figures, capsys):
    place, grow = small_disk
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda: toy(place / "run", "--resume"))
        assert stop.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (place / "run/results.json").exists()
    grow()
    toy(place / "run", "--resume")
    assert_same_run(whole, place / "run")


# --------------------------------------------------------------------------------- what is refused


def refused(capsys, call):
    """The line on standard error of a call that must end with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run_cli(call)
    error = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    return error


def test_a_folder_belongs_to_one_process(tmp_path):
    def hold():
        run = Run(RunSettings(out=str(tmp_path / "run")), "x")
        (tmp_path / "held").touch()
        time.sleep(60)
        run.seconds("nothing")

    child = forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    with pytest.raises(UserError, match="another process is at work"):
        Run(RunSettings(out=str(tmp_path / "run"), resume=True), "x")
    os.kill(child, signal.SIGKILL)
    died(child)
    first = Run(RunSettings(out=str(tmp_path / "run"), resume=True), "x")
    again = Run(RunSettings(out=str(tmp_path / "run"), resume=True), "x")  # the same process may
    assert first.lock is again.lock


def test_two_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    children = [forked(lambda: Run(RunSettings(), "x")) for _ in range(6)]
    assert [died(child) for child in children] == 6 * [0]
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"x-{n}" for n in range(1, 7)]


def test_a_folder_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("dear to someone")
    assert "thesis.tex" in refused(capsys, lambda: toy(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_program_another_format_another_size(whole, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    said = refused(capsys, lambda: Run(RunSettings(out=str(run), resume=True), "mt"))
    assert "program was toy, now mt" in said
    assert "d_model was 16, now 32" in refused(capsys, lambda: toy(run, "--resume", "--d-model",
                                                                   "32"))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT", storage.FORMAT + 1)
        assert "bc.pt has format 1 " in refused(capsys, lambda: load(run / "steps/bc.pt"))
        patch.setattr(run_module, "FORMAT", storage.FORMAT)
        assert "format was 1, now 2" in refused(capsys, lambda: toy(run, "--resume"))
    other = tmp_path / "other/steps"
    other.mkdir(parents=True)
    shutil.copy(whole / "steps/bc.pt", other)
    said = refused(capsys, lambda: toy(tmp_path / "other", "--d-model", "32"))
    assert "16) there" in said and "32) in a Transformer" in said


def test_another_number_of_threads_is_said(whole, tmp_path, no_figures, capsys):
    shutil.copytree(whole, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["environment"]["threads"] = 7
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    toy(tmp_path / "run", "--resume")
    assert "begun with threads 7, now 1" in "".join(capsys.readouterr())


class Bomb:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def torch_bomb(path, trace):
    torch.save({"format": storage.FORMAT, "content": Bomb(trace)}, path)


def plain_bomb(path, trace):
    path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))


@pytest.mark.parametrize("bomb", [torch_bomb, plain_bomb])
@pytest.mark.parametrize("file", [
    "steps/bc.pt", "steps/improve-1-1.pt", "checkpoint.pt", "config.json", "policy.pt", "reward.pt",
    "steps/score-1/size.json", "results.json"])
def test_no_code_is_run_from_a_file(bomb, file, whole, tmp_path, capsys):
    run, trace = tmp_path / "run", tmp_path / "trace"
    shutil.copytree(whole, run)
    bomb(run / file, trace)
    assert pickle.loads(pickle.dumps(Bomb(tmp_path / "armed"))) and (tmp_path / "armed").exists()

    def read():
        if file == "results.json":
            return report.over_runs([run])
        if file in ("policy.pt", "reward.pt"):
            cls = Transformer if file == "policy.pt" else RewardModel
            return train_mt.load(run / file, cls, "cpu")
        toy(run, "--resume")

    assert Path(file).name in refused(capsys, read)
    assert not trace.exists()


@pytest.mark.parametrize("bomb", [torch_bomb, plain_bomb])
def test_no_code_is_run_from_the_log_or_a_tokenizer(bomb, whole, tmp_path, no_figures, capsys):
    run, trace = tmp_path / "run", tmp_path / "trace"
    shutil.copytree(whole, run)
    bomb(run / "metrics.jsonl", trace)
    bomb(run / "tokenizer.json", trace)
    toy(run, "--resume")  # of a log that is none nothing is left
    assert "tokenizer.json" in refused(capsys, lambda: Tokenizer.load(run / "tokenizer.json"))
    assert not trace.exists()


def test_what_is_damaged_is_named(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    tokens = run / "steps/grow-1/tokens.int32"
    tokens.write_bytes(tokens.read_bytes()[:-40])
    assert "tokens.int32: damaged" in refused(capsys, lambda: toy(run, "--resume"))
    torn = run / "steps/bc.pt"
    torn.write_bytes(torn.read_bytes()[:2000])
    assert "bc.pt: damaged" in refused(capsys, lambda: toy(run, "--resume"))


def test_debug_shows_where_it_came_from(monkeypatch):
    def main():
        raise UserError("no")

    monkeypatch.setattr(sys, "argv", ["train_toy.py", "--debug"])
    with pytest.raises(UserError):
        run_cli(main)


# ---------------------------------------------------------------------------- training goes wrong


def a_fit(bad, updates=12, log=None, checkpoint=None):
    """A net after `fit`, the updates in `bad` having no finite loss; and what fit returned."""
    torch.manual_seed(0)
    net, calls = torch.nn.Linear(2, 1), itertools.count()

    def loss_of(index, progress):
        loss = net(torch.ones(len(index), 2)).square().sum()
        return loss * (math.nan if next(calls) in bad else 1.0)

    hp = Training(updates=updates, batch_tokens=40, warmup=0, lr=0.01)
    done = fit(net, loss_of, np.full(100, 10), np.ones(100), hp, 0, log=log, checkpoint=checkpoint,
               sources=np.arange(100) + 1000)
    return torch.cat([x.detach().flatten() for x in net.parameters()]), done


def test_an_update_that_is_not_finite_is_left_out_and_reported():
    seen = []
    weights, done = a_fit({3, 4, 8}, log=seen.append)
    assert weights.isfinite().all() and done["units"] == 4 * (12 - 3)
    assert [event["update"] for event in seen] == [3, 4, 8]
    for event in seen:
        assert len(event["not_finite"]) == 4 and min(event["not_finite"]) >= 1000
    assert not torch.equal(weights, a_fit(set())[0])


def test_after_several_in_a_row_it_ends_with_the_last_good_state_kept(tmp_path, save_always):
    with pytest.raises(UserError, match="5 updates in a row .* update 8, on sources 1"):
        a_fit({4, 5, 6, 7, 8}, checkpoint=Checkpoint(tmp_path / "c.pt"))
    kept = load(tmp_path / "c.pt")["content"]
    assert all(x.isfinite().all() for x in kept["model"].values())
    with pytest.raises(UserError, match="2 updates in a row"):
        a_fit({0, 1}, updates=2)  # PPO's rounds have few


class Ear:
    """A run that hears warnings."""

    def __init__(self):
        self.said = []

    def warn(self, text, kind=None):
        self.said.append(kind or text)


WELL = {"entropy": 1.0, "truncated": 0.1, "distinct": 0.8}


@pytest.mark.parametrize("change, said", [
    ({}, []), ({"entropy": 0.01}, ["entropy"]), ({"truncated": 0.9}, ["truncated"]),
    ({"distinct": 0.13}, ["distinct"])])
def test_a_collapsed_policy_is_seen(change, said):
    ear = Ear()
    D_g = Pairs.of(range(8), 8 * [[5, 2]], reward=np.linspace(0, 0.7, 8))
    checks.grown(D_g, WELL | change, rest.Settings(samples=8), ear)
    assert ear.said == said


@pytest.mark.parametrize("kept, improve, said", [
    ([1, 0, 1, 0], 1, []), ([1, 1, 1, 1], 1, ["everything"]), ([1, 1, 1, 1], 0, []),
    ([1, 1, 0, 0], 1, ["no D"]),
    ([0, 0, 0, 0], 1, ["improve-1-1: the filter kept nothing, so it is skipped"])])
def test_a_filter_that_is_none_is_seen(kept, improve, said):
    ear, kept = Ear(), np.array(kept, bool)
    D_g = Pairs.of(range(4), 4 * [[5, 2]], reward=np.zeros(4))
    D_g.human[2:] = True
    row = {"grow": 1, "improve": improve, "kept_data": float(kept[2:].mean())}
    checks.filtered(D_g, kept, row, rest.Settings(), ear)
    assert ear.said == said


@pytest.mark.parametrize("rewards, metrics, said", [
    ([0.5, 0.6], [0.5, 0.6], []), ([0.5, 0.6], [0.5, 0.495], []), ([0.5, 0.6], [0.5, 0.4], 1),
    ([0.6, 0.5], [0.5, 0.4], []), ([0.5, 0.6, 0.62], [0.5, 0.6, 0.55], 1)])
def test_a_reward_that_is_gamed_is_seen(rewards, metrics, said):
    for names, scale in ((("reward", "oracle"), 1), (("val_greedy_reward", "val_chrf"), 100)):
        ear = Ear()
        rows = [dict(zip(names, (r, scale * m))) for r, m in zip(rewards, metrics)]
        checks.measured(rows, ear)
        assert ear.said == (["hacking"] if said else [])


def test_the_rows_of_a_run_are_looked_at(tmp_path):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    rows = report.Report(run, ["reward"], lambda policy, row: [])
    for reward, oracle in ((0.5, 0.5), (0.6, 0.4)):
        rows.add({"name": "PPO", "reward": reward, "oracle": oracle}, None)
    assert run.warned == {"hacking"}


def test_a_new_D_g_is_looked_at(whole, tmp_path):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    D_g = Pairs.load(whole / "steps/score-1")
    samples = Pairs.of([0, 1], [[5, 2], [6, 2]], logprobs=[np.zeros(2), np.zeros(2)])
    rest.look_at(D_g, samples, rest.Settings(), 1, run)
    assert "entropy" in run.warned


def test_a_lost_update_is_said(tmp_path, capsys):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    a_fit({3}, log=run.logger("bc"))
    assert "bc: update 3 is left out" in "".join(capsys.readouterr())


def test_saving_keeps_below_its_share_of_the_time(tmp_path, monkeypatch):
    clock, checkpoint = [1000.0], Checkpoint(tmp_path / "c.pt")
    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    checkpoint.saved = clock[0]
    checkpoint.note = lambda number: clock.__setitem__(0, clock[0] + 3)  # a save of three seconds
    checkpoint.save("a", {})
    for later, due in ((61, False), (149, False), (151, True)):
        monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0] + later)
        assert checkpoint.due() == due


def test_the_log_is_cut_back_to_the_last_checkpoint_that_was_made(tmp_path, monkeypatch):
    def ended(*paths):
        raise KeyboardInterrupt

    def work(run):
        for update in (1, 2):
            run.log("train", step="a", update=update)
            if update == 2:  # it ends between the mark and what the mark says
                monkeypatch.setattr(storage.os, "replace", ended)
            run.checkpoint.save("x", {"update": update})

    with pytest.raises(KeyboardInterrupt):
        run = Run(RunSettings(out=str(tmp_path / "run")), "x")
        run.step("a", lambda: work(run))
    monkeypatch.undo()
    assert "train checkpoint train checkpoint".split() == [e["event"] for e in lines(tmp_path)]
    again = Run(RunSettings(out=str(tmp_path / "run"), resume=True), "x")
    assert "train checkpoint".split() == [e["event"] for e in lines(tmp_path)]
    assert again.checkpoint.number == 1 and again.seconds("a") > 0


def lines(tmp_path):
    text = (tmp_path / "run/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
