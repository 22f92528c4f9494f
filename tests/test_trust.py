"""What is promised of a run: killed at any moment it goes on exactly, and nothing bad is read.

A run is killed in a child process that is forked from this one, which has torch loaded already.
"""

import contextlib
import io
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
import torch._dynamo  # noqa: F401 (the first optimiser does so; here, before any child is forked)

import infra.run as run_module
import rest
import train_mt
import train_toy
from infra import checks, figures, measures, report, storage
from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.run import InMemory, Run
from infra.settings import RunSettings, parse
from infra.storage import Checkpoint, load
from infra.text import Tokenizer
from infra.trainer import Trainer, Training
from infra.translate import load_model
from model import Transformer
from reward import RewardModel
from test_train_mt import TINY as TINY_MT
from test_train_mt import corpus  # noqa: F401 (a fixture)
from test_train_toy import STEPS, TINY

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
SHORT = [*TINY, "--bc-updates", "10", "--reward-updates", "8"]  # so that kills reach what follows


def forked(work, errors=os.devnull):
    """work() in a child process -> its number. errors: the file for its standard error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as out, open(errors, "w") as err:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                work()
        code = 0
    except SystemExit as stop:
        code = stop.code
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


def save_at_every_update():
    Checkpoint.EVERY, Checkpoint.SHARE = -1.0, math.inf


def killed_again_and_again(main, folder, kills, seed, whole, begin=lambda: None):
    """Start and resume main(folder, "--resume"), killed so many times; then let it end.

    Each time that it comes to its end it must be as `whole`, a run that was never killed. begin():
    what there is at first.
    """
    rng = random.Random(seed)
    begin()
    while kills:
        operation = rng.randrange(1, 30) if rng.random() < 0.5 else None
        often = rng.random() < 0.7  # else as rarely as usual, which is never in so short a run

        def work():
            if operation:
                kill_at_operation(operation)
            if often:
                save_at_every_update()
            main(folder, "--resume")

        child = forked(work)
        if not operation:
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
        if died(child) is None:
            kills -= 1
        else:  # a fast machine: once more from the start
            assert_same_run(whole, folder)
            shutil.rmtree(folder)
            begin()
    assert died(forked(lambda: main(folder, "--resume"))) == 0
    assert_same_run(whole, folder)


def toy(folder, *flags):
    train_toy.main([*SHORT, "--out", str(folder), *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A little run that was never killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert died(forked(lambda: toy(folder))) == 0
    return folder


def copy_of(whole, folder, steps):
    """A finished run once more, without what comes of it at its end, as if only these were done."""
    shutil.copytree(whole, folder)
    for name in ("results.json", "policy.pt", "reward.pt"):
        (folder / name).unlink()
    for path in (folder / "steps").iterdir():
        if path.stem not in steps:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: [])


# -------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
@pytest.mark.parametrize("done, kills", [(0, 7), (7, 7), (12, 6)])
def test_killed_at_twenty_random_moments(whole, tmp_path, no_figures, done, kills):
    """Of the first steps, of those after so many, and of the last ones."""
    def begin():
        if done:
            copy_of(whole, tmp_path / "run", STEPS[:done])

    killed_again_and_again(toy, tmp_path / "run", kills, done, whole, begin)


@pytest.mark.slow
def test_a_translation_run_killed_again_and_again(corpus, tmp_path, no_figures):  # noqa: F811
    def mt(folder, *flags):
        train_mt.main([*TINY_MT, *"--no-ppo --improve 1 --best-of 1".split(), "--data", str(corpus),
                       "--out", str(folder), *flags])

    assert died(forked(lambda: mt(tmp_path / "whole"))) == 0
    killed_again_and_again(mt, tmp_path / "run", 8, 2, tmp_path / "whole")


@pytest.mark.slow
def test_the_smoke_preset_killed_at_twenty_random_moments(tmp_path, no_figures):
    """With the data that --data of the environment variable REST_DATA names: Multi30k's files."""
    data = os.environ.get("REST_DATA")
    if not data:
        pytest.skip("REST_DATA names no folder")

    def smoke(folder, *flags):
        train_mt.main(["--preset", "smoke", "--data", data, "--out", str(folder), *flags])

    assert died(forked(lambda: smoke(tmp_path / "whole"))) == 0
    killed_again_and_again(smoke, tmp_path / "run", 20, 3, tmp_path / "whole")


def test_a_finished_run_is_loaded_and_reported(whole, tmp_path, no_figures, capsys):
    shutil.copytree(whole, tmp_path / "run")
    steps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/steps").iterdir()}
    toy(tmp_path / "run", "--resume")
    assert "ReST (2,1)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/steps").iterdir()} == steps
    assert_same_run(whole, tmp_path / "run")


def test_it_can_be_stopped_after_every_step(whole):
    settings = parse(train_toy.Settings, SHORT)
    assert {path.stem for path in (whole / "steps").iterdir()} <= set(checks.step_names(settings))


def test_the_same_seed_gives_the_same_run(whole, tmp_path, no_figures, monkeypatch):
    """Without figures, with evaluations in between, and whatever else draws random numbers."""
    step = rest.improve_step

    def with_more(policy, D_g, kept, task, settings, *others):
        new, row = step(policy, D_g, kept, task, settings, *others)
        measures.evaluate(new, new, task, settings)
        torch.rand(7), np.random.rand(7), random.random()
        return new, row

    monkeypatch.setattr(rest, "improve_step", with_more)
    copy_of(whole, tmp_path / "run", STEPS[:6])
    assert died(forked(lambda: toy(tmp_path / "run", "--resume"))) == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.fixture
def copied(whole, tmp_path):
    return copy_of(whole, tmp_path / "run", STEPS)


def results(folder):
    return timeless(json.loads((folder / "results.json").read_text()))


def test_more_grows_and_improves_go_on_with_a_finished_run(whole, copied, no_figures, capsys):
    """What was done stays as it was; the last policy is another now, and so its best of N."""
    toy(copied, "--resume", "--grow", "3", "--improve", "2", "2", "1")
    old, new = results(whole), results(copied)
    steps = [(row["grow"], row["improve"]) for row in new["rows"] if row["name"] == "ReST"]
    assert steps == [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]
    assert new["rows"][:5] == old["rows"][:5] and new["rows"][-1] == old["rows"][-1]  # PPO
    last, left = load(copied / "steps/improve-3-1.pt")["policy"], load(copied / "policy.pt")
    assert all(torch.equal(left["weights"][k], x) for k, x in last.items())
    for policy, same in (("BC", True), ("ReST", False)):
        a, b = ([e for e in x["best_of_n"] if e["policy"] == policy] for x in (old, new))
        assert len(a) == len(b) == 3 and (a == b) == same
    toy(copied, "--resume", "--grow", "3", "--improve", "2", "2", "1")  # its settings are these now
    assert results(copied) == new
    assert "grow was 3, now 2" in refused(capsys, lambda: toy(copied, "--resume"))


def test_another_best_of_goes_on_with_a_finished_run(whole, copied, no_figures):
    toy(copied, "--resume", "--best-of", "2")
    old, new = results(whole), results(copied)
    assert new["rows"] == old["rows"]
    assert [(e["policy"], e["n"]) for e in new["best_of_n"]] == [
        (policy, n) for policy in ("BC", "ReST") for n in (1, 2)]


@pytest.mark.parametrize("flags, said", [
    ("--grow 1", "grow was 2, now 1"), ("--improve 1 1", "improve was [2, 1], now [1, 1]"),
    ("--improve 3 1", "improve was [2, 1], now [3, 1]"), ("--no-unfiltered", "unfiltered was True"),
    ("--grow 3 --improve 1 1 4", "grow was 2, now 3; improve was [2, 1], now [1, 1, 4]"),
    ("--grow 3 --lr 0.1", "lr was 0.004, now 0.1")])
def test_fewer_or_other_steps_are_refused(copied, capsys, flags, said):
    before = (copied / "config.json").read_bytes()
    assert said in refused(capsys, lambda: toy(copied, "--resume", *flags.split()))
    assert (copied / "config.json").read_bytes() == before


def test_settings_that_nothing_was_made_by_are_not_kept(copied, capsys, monkeypatch):
    """A resume with more Grows that is refused, for its data say, leaves the run as it was."""
    def bind(run, **parts):
        raise UserError("other data")

    before = (copied / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "bind", bind)
        assert "other data" in refused(capsys, lambda: toy(copied, "--resume", "--grow", "3"))
    assert (copied / "config.json").read_bytes() == before


# ------------------------------------------------------------------------- nothing can be printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_some_letters_ends_nothing(copied, no_figures, monkeypatch, encoding):
    for flags, said in ((["--resume"], "ReST (2,1)"), (["--show", "1"], "? = ")):
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", out)
        run_cli(lambda: toy(copied, *flags))
        assert said in out.buffer.getvalue().decode(encoding)
    assert (copied / "results.json").exists() and (copied / "policy.pt").exists()


def test_a_closed_pipe_is_quiet_and_ends_nothing(whole, copied, no_figures, tmp_path):
    """As of `python train_toy.py | head -1`."""
    def main():
        read, write = os.pipe()
        os.close(read)
        sys.stdout = open(write, "w", buffering=1)
        run_cli(lambda: toy(copied, "--resume"))
        sys.stdout.close()  # as at a program's end

    assert died(forked(main, tmp_path / "errors")) == 0
    assert (tmp_path / "errors").read_text() == ""
    assert_same_run(whole, copied)


def test_all_is_saved_before_the_end_is_printed(copied, no_figures, monkeypatch):
    def interrupted(entries):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "best_of_n_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy(copied, "--resume")
    assert {"results.json", "policy.pt", "reward.pt"} <= {x.name for x in copied.iterdir()}


@pytest.mark.parametrize("backend, drawn", [
    ("nonsense", False), pytest.param("module://not.there", True, marks=pytest.mark.slow)])
def test_a_broken_matplotlib_ends_nothing(backend, drawn, copied, tmp_path):
    pytest.importorskip("matplotlib")
    (copied / "improve.png").unlink()

    def main():
        for name in [name for name in sys.modules if name.startswith("matplotlib")]:
            del sys.modules[name]  # it reads its backend when it is imported
        os.environ["MPLBACKEND"] = backend
        with open(tmp_path / "out", "w") as out, contextlib.redirect_stdout(out):
            run_cli(lambda: toy(copied, "--resume"))

    assert died(forked(main)) == 0
    assert (copied / "improve.png").exists() == drawn
    assert ("no figures: matplotlib does not work: " in (tmp_path / "out").read_text()) != drawn


# ----------------------------------------------------------------------------- stopped from outside


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_says_how_to_go_on(number, code, tmp_path, monkeypatch):
    """And so it goes on, until it is stopped again."""
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("my run/checkpoint.pt")
    words = program = ["train_toy.py", *TINY, "--out", "my run", "--bc-updates", "9999"]

    def main():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
        save_at_every_update()
        sys.argv = words
        run_cli(train_toy.main)

    before, deadline = 0, time.monotonic() + 120
    for _ in range(2):
        child = forked(main, tmp_path / "errors")
        while not checkpoint.exists() or load(checkpoint)["number"] <= before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child, number)
        assert died(child) == code
        before = load(checkpoint)["number"]
        where, command = Path("errors").read_text().splitlines()[-1].split("; to go on: ")
        assert where == "stopped in bc"
        _, *words = shlex.split(command)
        assert words == [*program, "--resume"] and words.count("--out") == 1


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
    for run in (first, again):
        assert not is_free(tmp_path / "run")
        run.close()
    assert is_free(tmp_path / "run")


def is_free(folder):
    """Whether another process gets the folder of a run."""
    def ask():
        storage.LOCKS.clear()  # a child has what its parent had
        Run(RunSettings(out=str(folder), resume=True), "x")

    return died(forked(ask)) == 0


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
        assert "bc.pt has format 2 " in refused(capsys, lambda: load(run / "steps/bc.pt"))
        patch.setattr(run_module, "FORMAT", storage.FORMAT)
        assert "format was 2, now 3" in refused(capsys, lambda: toy(run, "--resume"))
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
            return load_model(run / file, cls, "cpu")
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


def a_training(bad, updates=12, **trainer_args):
    """A net after a training whose updates in `bad` have no finite loss, and what came of it."""
    torch.manual_seed(0)
    net, hp = torch.nn.Linear(2, 1), Training(updates=updates, batch_tokens=40, warmup=0, lr=0.01)
    with Trainer(net, np.full(100, 10), np.ones(100), hp, 0, names=np.arange(100) + 1000,
                 **trainer_args) as trainer:
        while not trainer.is_done():
            for index in trainer.next_update():
                loss = net(torch.ones(len(index), 2)).square().sum()
                trainer.backward(loss * (math.nan if trainer.update in bad else 1.0))
            trainer.step()
    return torch.cat([x.detach().flatten() for x in net.parameters()]), trainer.result()


def test_an_update_that_is_not_finite_is_left_out_and_reported():
    seen = []
    weights, done = a_training({3, 4, 8}, log=seen.append)
    assert weights.isfinite().all() and done["tokens"] == 4 * (12 - 3)
    assert [event["update"] for event in seen] == [3, 4, 8]
    for event in seen:
        assert len(event["not_finite"]) == 4 and min(event["not_finite"]) >= 1000
    assert not torch.equal(weights, a_training(set())[0])


def test_after_several_in_a_row_it_ends_with_the_last_good_state_kept(tmp_path, save_always):
    with pytest.raises(UserError, match="5 updates in a row .* update 8, on sources 1"):
        a_training({4, 5, 6, 7, 8}, checkpoint=Checkpoint(tmp_path / "c.pt"))
    kept = load(tmp_path / "c.pt")["content"]
    assert all(x.isfinite().all() for x in kept["model"].values())
    with pytest.raises(UserError, match="2 updates in a row"):
        a_training({0, 1}, updates=2)  # PPO's rounds have few
    assert a_training({0, 1, 2, 3, 5, 6, 7, 8})[1]["tokens"] == 4 * 4  # never five in a row


def said_by(run):
    """The warnings of a run in memory."""
    return [e["kind"] or e["text"] for e in run.events if e["event"] == "warning"]


WELL = [[5 + k, 2] for k in range(8)]


LOW = [0, *7 * [0.5]]  # rewards whose median lies above their mean


@pytest.mark.parametrize("targets, logprob, rewards, said", [
    (WELL, -1, LOW, []), (WELL, -0.01, LOW, ["collapsed"]), (8 * [[5, 2]], -1, LOW, ["distinct"]),
    ([[5 + k, 6] for k in range(8)], -1, LOW, ["truncated"]),
    (WELL, -1, [1, 1, 0.6, *5 * [0.5]],
     ["the first threshold 0.500 is not above the mean reward 0.637 of D_g"]),
    (WELL, -1, [1, *7 * [0.5]], []),  # the threshold is not, but all that is kept is
    (WELL, -1, 8 * [0.5], [])])  # nothing is kept, of which check_filter speaks
def test_a_collapsed_policy_is_seen(targets, logprob, rewards, said):
    run = InMemory()
    samples = Pairs.of(8 * [0], targets, logprobs=8 * [np.full(2, logprob)])
    D_g = Pairs.of(range(8), 8 * [[5, 2]], reward=rewards)
    checks.log_grow(D_g, samples, rest.select, rest.Settings(samples=8), 1, run)
    assert said_by(run) == said


@pytest.mark.parametrize("kept, improve, said", [
    ([1, 0, 1, 0], 1, []), ([1, 1, 1, 1], 1, ["everything"]), ([1, 1, 1, 1], 0, []),
    ([1, 1, 0, 0], 1, ["no D"]),
    ([0, 0, 0, 0], 1, ["improve-1-1: the filter kept nothing, so it is skipped"])])
def test_a_filter_that_is_none_is_seen(kept, improve, said):
    run, kept = InMemory(), np.array(kept, bool)
    D_g = Pairs.of(range(4), 4 * [[5, 2]], reward=np.zeros(4))
    D_g.human[2:] = True
    row = {"grow": 1, "improve": improve, "kept_data": float(kept[2:].mean())}
    checks.check_filter(D_g, kept, row, rest.Settings(), run)
    assert said_by(run) == said


@pytest.mark.parametrize("rewards, metrics, said", [
    ([0.5, 0.6], [0.5, 0.6], []), ([0.5, 0.6], [0.5, 0.495], []), ([0.5, 0.6], [0.5, 0.4], 1),
    ([0.6, 0.5], [0.5, 0.4], []), ([0.5, 0.6, 0.62], [0.5, 0.6, 0.55], 1)])
def test_a_reward_that_is_gamed_is_seen(rewards, metrics, said):
    for names, scale in ((("reward", "oracle"), 1), (("val_greedy_reward", "val_chrf"), 100)):
        run = InMemory()
        rows = [{"name": name} | dict(zip(names, (r, scale * m)))
                for name, r, m in zip(("BC", "ReST", "ReST"), rewards, metrics)]
        checks.check_reward_hacking(rows, run)
        assert said_by(run) == (["hacking"] if said else [])


@pytest.mark.parametrize("way, said", [
    ("BC 0.5 0.5, ReST 0.6 0.7, PPO 0.8 0.6", False),  # PPO has not come by ReST's policy
    ("BC 0.5 0.5, PPO 0.6 0.7, ReST 0.8 0.6", False), ("BC 0.5 0.65, ReST 0.6 0.7, PPO 0.8 0.6", 1),
    ("BC 0.5 0.5, ReST 0.6 0.7, PPO 0.6 0.7, PPO 0.8 0.6", True),
    ("BC 0.5 0.5, ReST 0.6 0.7, ReST 0.8 0.6, PPO 0.7 0.7", False)])
def test_a_method_is_compared_with_bc_and_with_its_own_way(way, said):
    run, rows = InMemory(), [row.split() for row in way.split(", ")]
    checks.check_reward_hacking([{"name": name, "reward": float(r), "oracle": float(m)}
                                 for name, r, m in rows], run)
    assert said_by(run) == (["hacking"] if said else [])


def test_the_rows_of_a_run_are_looked_at(tmp_path):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    rows = report.Report(run, ["reward"], [], lambda policy: [])
    for reward, oracle in ((0.5, 0.5), (0.6, 0.4)):
        rows.add({"name": "PPO", "reward": reward, "oracle": oracle, "entropy": 1.0,
                  "kl_to_bc": 0.0}, None)
    assert run.warned == {"hacking"}


def test_a_new_D_g_is_looked_at(whole, tmp_path):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    D_g = Pairs.load(whole / "steps/score-1")
    samples = Pairs.of([0, 1], [[5, 2], [6, 2]], logprobs=[np.zeros(2), np.zeros(2)])
    checks.log_grow(D_g, samples, rest.select, rest.Settings(), 1, run)
    assert "collapsed" in run.warned
    assert [e["grow"] for e in lines_of(whole) if e["event"] == "grow"] == [1, 2]


def test_a_lost_update_is_said(tmp_path, capsys):
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    a_training({3}, log=run.logger("bc"))
    assert "bc: update 3 is left out" in "".join(capsys.readouterr())


def test_saving_keeps_below_its_share_of_the_time(tmp_path, monkeypatch):
    clock, checkpoint = [1000.0], Checkpoint(tmp_path / "c.pt")
    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    checkpoint.saved = clock[0]
    # a save of three seconds
    checkpoint.note = lambda: lambda number: clock.__setitem__(0, clock[0] + 3)
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
        assert run.begin("a") is None
        work(run)
    monkeypatch.undo()
    assert "train checkpoint train checkpoint".split() == [e["event"] for e in lines(tmp_path)]
    again = Run(RunSettings(out=str(tmp_path / "run"), resume=True), "x")
    assert "train checkpoint".split() == [e["event"] for e in lines(tmp_path)]
    assert again.checkpoint.number == 1 and again.seconds("a") > 0


def lines(tmp_path):
    text = (tmp_path / "run/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
