"""Processes that measure several seeds side by side, each on one thread.

On two cores that is faster than one seed after the other, as train_toy.py too computes on one. No
two of them ever work on the same seed, whose runs the experiments share. What fails, fails alone.
"""

import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context

from experiments.scoreboard import lab_of, module

COSTS = ("tokens_drawn", "tokens_trained", "grow_seconds", "train_seconds", "seconds")


def run(seeds, quick, cache, log, workers):
    """Yields (name, seed, points, error) as each is done; error: None, or why there are no points.

    seeds: {name of an experiment: its seeds}. log: file for what the workers say.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    left = {seed: [name for name in seeds if seed in seeds[name]]
            for seed in sorted(set().union(*seeds.values()))}
    with ExitStack() as opened:
        def worker():  # a pool of one process: if it is killed, no other seed goes with it
            return opened.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), quiet, (log,)))

        free, busy = [worker() for _ in range(workers)], {}  # future -> (name, seed, worker)
        while busy or any(left.values()):
            idle = set(left) - {seed for _, seed, _ in busy.values()}
            for seed in sorted(idle, key=lambda seed: -len(left[seed])):
                if left[seed] and free:
                    name, one = left[seed].pop(0), free.pop()
                    lab = lab_of(name)(seed, quick, cache)
                    busy[one.submit(measure, name, lab)] = name, seed, one
            for future in wait(busy, return_when="FIRST_COMPLETED").done:
                name, seed, one = busy.pop(future)
                try:
                    points, error = future.result()
                except BrokenProcessPool:
                    points, error, one = None, "its process was killed", worker()
                free.append(one)
                yield name, seed, points, error


def quiet(log):
    """What a worker says goes to a file."""
    sys.stdout = sys.stderr = open(log, "a", buffering=1)


def measure(name, lab):
    """The points of one seed, and None; or None, and what went wrong.

    What it cost stays out where it is not what is measured.
    """
    dropped = () if name == "online_rl" else COSTS
    try:
        return [{"seed": lab.seed, **{k: v for k, v in point.items() if k not in dropped}}
                for point in module(name).points(lab)], None
    except Exception as error:  # of whatever kind: the other seeds and experiments go on
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"
