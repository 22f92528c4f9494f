"""processes.py: one, two and four processes on a CPU (gloo) do the same work, and write it once."""

import json
import multiprocessing
import os
import runpy
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch

import losses
from infra import processes, sampling
from infra.batches import pad
from infra.cli import run_cli
from infra.pairs import Pairs
from infra.trainer import Trainer, Training
from model import Config, Transformer, shift_right
from reward import RewardModel

ROOT = Path(__file__).parent.parent
PRELOAD = ["test_processes", "train_toy", "torch._dynamo", "infra.figures", "matplotlib.pyplot"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def server():
    """What the processes are copies of, so that only one has to import everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()


def run_together(world, folder, work, *args):
    """work(*args) in `world` processes that know of each other -> what each of them printed."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    said = [folder / f"said-{rank}" for rank in range(world)]
    started = [multiprocessing.get_context("forkserver").Process(
        target=run_one, args=({**shared, "RANK": str(rank)}, said[rank], work, args))
        for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        process.kill()  # one that did not end
    texts = [file.read_text() for file in said]
    assert all(process.exitcode == 0 for process in started), texts
    return texts


def run_one(environment, said, work, args):
    os.environ.update(environment)
    with open(said, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    work(*args)


def train_toy(*argv):
    sys.argv = ["train_toy.py", *map(str, argv)]
    runpy.run_path(str(ROOT / "train_toy.py"), run_name="__main__")


def sources(n, seed):
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(3, 12, rng.integers(2, 8)), 2) for _ in range(n)]


def work(file):
    """What each process of a test computes; all of them must come to the same."""
    processes.start()
    torch.manual_seed(0)
    policy = Transformer(Config(12, 16, 2, 1, 1, 32, 0.0, 10)).eval()
    given = sources(37, 0)
    drawn = sampling.sample_outputs(policy, given, 3, (1, 2), 9, batch_size=12)
    scores = RewardModel.from_policy(policy).score([given[i] for i in drawn.source],
                                                   drawn.targets(), batch_tokens=64)
    logprobs = sampling.logprobs_of(policy, given, drawn, batch_tokens=64)
    gathered = processes.all_gather([10 * k for k in processes.shard(range(7))])
    result = {**vars(drawn), "scores": scores, "under_policy": logprobs,
              "gathered": np.array(gathered), "gradient": gradient(policy.double(), given)}
    other = [None] * processes.world_size()
    if processes.world_size() > 1:
        torch.distributed.all_gather_object(other, result)
        for theirs in other:
            assert all(np.array_equal(theirs[k], result[k], equal_nan=True) for k in result)
    if processes.is_main():
        np.savez(file, **result)
    processes.end()


def gradient(policy, given):
    """How one step of plain gradient descent moves the weights; the micro-batches are ragged."""
    targets = sources(len(given), 1)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()

    hp = Training(updates=1, accumulate=3, lr=1.0, warmup=0, final_lr=1.0, clip=1e9)
    counts = np.array([len(y) for y in targets])
    with Trainer(policy, counts, counts, hp, 0,
                 optimizer=torch.optim.SGD(policy.parameters(), 1.0)) as trainer:
        trainer.stream = iter([np.arange(21), np.arange(21, 34), np.arange(34, 37)])
        for index in trainer.next_update():
            src, tokens = (pad([side[i] for i in index]) for side in (given, targets))
            trainer.backward(losses.bc(policy(src, shift_right(tokens)), tokens))
        trainer.step()
    return (torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before).numpy()


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """What one, two and four processes came to."""
    folder = tmp_path_factory.mktemp("processes")
    for k in (1, 2, 4):
        run_together(k, folder, work, folder / f"{k}.npz")
    return {k: dict(np.load(folder / f"{k}.npz")) for k in (1, 2, 4)}


@pytest.mark.parametrize("k", [2, 4])
def test_samples_and_scores_do_not_depend_on_the_number_of_processes(worked, k):
    assert len(worked[1]["source"]) == 3 * 37 and worked[1]["scores"].std() > 0
    for name, values in worked[1].items():
        if name != "gradient":
            np.testing.assert_array_equal(worked[k][name], values, err_msg=name)


@pytest.mark.parametrize("k", [2, 4])
def test_the_gradient_is_that_of_the_whole_step(worked, k):
    assert np.abs(worked[1]["gradient"]).max() > 1e-2
    np.testing.assert_allclose(worked[k]["gradient"], worked[1]["gradient"], rtol=0, atol=1e-10)


def test_shards_come_back_in_order(worked):
    for k in (1, 2, 4):
        assert worked[k]["gathered"].tolist() == [0, 10, 20, 30, 40, 50, 60]


TINY = """--shortest 3 --longest 6 --demonstrations 60 --rated-sources 30 --eval-sources 20
          --test-sources 30 --d-model 16 --bc-updates 12 --reward-updates 8 --updates 6
          --evaluate-every 3 --batch-tokens 200 --samples 3 --grow 1 --improve 2 --ppo-batch 48
          --ppo-samples 96 --best-of 2 --dropout 0 --seed 3""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run by one process, and by two, which stop in between and go on."""
    folder = tmp_path_factory.mktemp("runs")
    run_together(1, folder, train_toy, "--out", folder / "one", *TINY)
    two = folder, train_toy, "--out", folder / "two", *TINY
    first = run_together(2, *two, "--stop-after", "grow-1")
    second = run_together(2, *two, "--resume")
    return folder, first, second


@pytest.mark.slow
def test_two_processes_leave_the_same_files_as_one(runs):
    folder, *_ = runs
    one, two = ({str(path.relative_to(folder / name)) for path in (folder / name).rglob("*")}
                for name in ("one", "two"))
    assert one == two and "results.json" in one


@pytest.mark.slow
def test_two_processes_come_to_the_same_results_as_one(runs):
    folder, *_ = runs
    one, two = (json.loads((folder / name / "results.json").read_text())["rows"]
                for name in ("one", "two"))
    assert len(one) == len(two) == 5
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a["samples"] == b["samples"]
        for key in ("reward", "oracle", "entropy", "greedy_reward"):
            assert a[key] == pytest.approx(b[key], abs=0.02), (a["name"], key)
    drawn = [Pairs.load(folder / name / "steps/grow-1") for name in ("one", "two")]
    assert len(drawn[0]) == len(drawn[1]) == 3 * 60


@pytest.mark.slow
def test_only_the_first_process_speaks_and_every_line_is_there_once(runs):
    folder, *both = runs
    for said, silent in both:
        assert "ReST, task language, seed 3" in said and silent == ""
    steps = [json.loads(line)["step"] for line in (folder / "two/metrics.jsonl").read_text()
             .splitlines() if '"event": "step"' in line]
    assert sorted(steps) == sorted(set(steps)) and {"bc", "grow-1", "improve-1-2"} <= set(steps)


def test_a_process_that_is_alone_shares_with_no_one():
    tensor = torch.ones(3)
    processes.all_reduce([tensor])
    assert processes.world_size() == 1 and processes.is_main() and tensor.tolist() == [1, 1, 1]
    assert processes.shard([1, 2, 3]) == [1, 2, 3] == processes.all_gather([1, 2, 3])
    assert processes.on_main(lambda: "made") == "made"


def summed(folder):
    processes.start()
    a, b = torch.ones(2, 2), torch.zeros(3)
    b += processes.rank()
    processes.all_reduce([a, b])
    (folder / str(processes.rank())).write_text(f"{a.sum()} {b[0]}")
    processes.end()


def test_tensors_are_summed_over_processes(tmp_path):
    run_together(3, tmp_path, summed, tmp_path)
    assert [(tmp_path / str(k)).read_text() for k in range(3)] == 3 * ["12.0 3.0"]


TOGETHER = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize("world_size, others, said", [
    ("2", {}, "without RANK, MASTER_ADDR, MASTER_PORT"),
    ("2", {"RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "without MASTER_PORT"),
    ("abc", TOGETHER, "is no number"), ("abc", {}, "WORLD_SIZE=abc"), ("", {}, "WORLD_SIZE= ")])
def test_half_an_environment_of_several_processes_is_one_line(monkeypatch, capsys, world_size,
                                                              others, said):
    """What a batch system has left there, say: WORLD_SIZE, and not all that torchrun sets."""
    for name in TOGETHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": world_size, **others}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: pytest.fail("it began"))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: WORLD_SIZE=") and said in error
    assert error.count("\n") == 1 and "torchrun" in error


def test_one_process_that_knows_it_is_alone_needs_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.start()
    assert processes.world_size() == 1 and not torch.distributed.is_initialized()
