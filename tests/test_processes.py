"""processes.py: one, two and four processes on a CPU (gloo) do the same work, and write it once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import losses
from infra import sampling
from infra import processes
import rest
from infra.batches import pad
from infra.pairs import Pairs
from infra.trainer import Training, step
from model import Config, Transformer, shift_right
from reward import RewardModel

ROOT = Path(__file__).parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_together(world, *command, cwd=None):
    """The same command in `world` processes that know of each other, one thread each."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
              "MASTER_PORT": str(free_port()), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    processes = [subprocess.Popen([sys.executable, *map(str, command)], text=True, cwd=cwd,
                                  env={**os.environ, **shared, "RANK": str(rank)},
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for rank in range(world)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs


def sources(n, seed):
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(3, 12, rng.integers(2, 8)), 2) for _ in range(n)]


def work(file):
    """What each process of a test computes; all of them must come to the same."""
    processes.start()
    torch.manual_seed(0)
    policy = Transformer(Config(12, 16, 2, 1, 1, 32, 0.0, 10)).eval()
    given = sources(37, 0)
    drawn = sampling.sample_outputs(policy, given, 3, (1, 2), 9, rows=12)
    scores = RewardModel.from_policy(policy).score([given[i] for i in drawn.source],
                                                   drawn.targets(), batch_tokens=64)
    logprobs = rest.logprobs_of(policy, given, drawn, batch_tokens=64)
    result = {**vars(drawn), "scores": scores, "under_policy": logprobs,
              "gathered": np.array(processes.all_gather([10 * k for k in processes.shard(range(7))])),
              "gradient": gradient(policy.double(), given)}
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

    def loss_of(index, progress):
        src, tokens = (pad([side[i] for i in index]) for side in (given, targets))
        return losses.bc(policy(src, shift_right(tokens)), tokens)

    step(torch.optim.SGD(policy.parameters(), 1.0), loss_of,
         [np.arange(21), np.arange(21, 34), np.arange(34, 37)], sum(map(len, targets)), 0,
         Training(updates=1, lr=1.0, warmup=0, final_lr=1.0, clip=1e9), "cpu")
    return (torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before).numpy()


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """What one, two and four processes came to."""
    files = {k: tmp_path_factory.mktemp("parallel") / f"{k}.npz" for k in (1, 2, 4)}
    for k, file in files.items():
        run_together(k, "-c", f"import test_parallel; test_parallel.work({str(file)!r})")
    return {k: dict(np.load(file)) for k, file in files.items()}


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


def test_shares_come_back_in_order(worked):
    for k in (1, 2, 4):
        assert worked[k]["gathered"].tolist() == [0, 10, 20, 30, 40, 50, 60]


TINY = """--demonstrations 60 --rated-sources 30 --eval-sources 20 --test-sources 30 --d-model 16
          --bc-updates 12 --reward-updates 8 --updates 6 --evaluate-every 3 --batch-tokens 200
          --samples 3 --grow 1 --improve 2 --ppo-batch 48 --ppo-samples 96 --best-of 2
          --dropout 0 --seed 3""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run by one process, and by two, which stop in between and go on."""
    folder = tmp_path_factory.mktemp("runs")
    run_together(1, ROOT / "train_toy.py", "--out", folder / "one", *TINY)
    program = (ROOT / "train_toy.py", "--out", folder / "two", *TINY)
    first = run_together(2, *program, "--stop-after", "grow-1")
    second = run_together(2, *program, "--resume")
    return folder, first, second


def test_two_processes_leave_the_same_files_as_one(runs):
    folder, *_ = runs
    one, two = ({str(path.relative_to(folder / name)) for path in (folder / name).rglob("*")}
                for name in ("one", "two"))
    assert one == two and "results.json" in one


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


def test_only_the_first_process_speaks_and_every_line_is_there_once(runs):
    folder, *both = runs
    for (said, _), (silent, _) in both:
        assert "ReST on an invented language" in said and silent == ""
    steps = [json.loads(line)["step"] for line in (folder / "two/metrics.jsonl").read_text()
             .splitlines() if '"event": "step"' in line]
    assert sorted(steps) == sorted(set(steps)) and {"bc", "grow-1", "improve-1-2"} <= set(steps)


def test_a_process_that_is_alone_shares_with_no_one():
    tensor = torch.ones(3)
    processes.all_reduce([tensor])
    assert processes.world_size() == 1 and processes.is_main() and tensor.tolist() == [1, 1, 1]
    assert processes.shard([1, 2, 3]) == [1, 2, 3] == processes.all_gather([1, 2, 3])
    assert processes.on_main(lambda: "made") == "made"


def test_tensors_are_summed_over_processes(tmp_path):
    program = ("import parallel, torch; processes.start(); a, b = torch.ones(2, 2), torch.zeros(3);"
               "b += processes.rank(); processes.all_reduce([a, b]); from pathlib import Path;"
               f"Path({str(tmp_path)!r}, str(processes.rank())).write_text(f'{{a.sum()}} {{b[0]}}')")
    run_together(3, "-c", program)
    assert [(tmp_path / str(k)).read_text() for k in range(3)] == 3 * ["12.0 3.0"]
