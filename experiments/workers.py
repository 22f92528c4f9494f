"""Processes that measure several seeds side by side, each on one thread.

On two cores that is faster than one seed after the other on two threads, which gain little from
each other at this size: a run of train_toy.py takes 106 s on one thread, 77 s on two. No two
of them ever work on the same seed, whose runs the experiments share.
"""

import concurrent.futures
import multiprocessing
import os
import sys

from experiments.lab import Lab
from experiments.scoreboard import conclude, module, save

COSTS = ("tokens_drawn", "tokens_trained", "grow_seconds", "train_seconds", "seconds")


def run(names, seeds, quick, results, cache, workers):
    """Measure, seeds side by side; yields the name of each experiment as it is finished."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers
    seeds = {name: getattr(module(name), "SEEDS", seeds) for name in names}
    left = {seed: [name for name in names if seed in seeds[name]]
            for seed in sorted(set().union(*seeds.values()))}
    points = {name: {} for name in names}  # -> seed -> its points
    busy = {}  # future -> (name, seed)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, quiet,
                                                (results / "log.txt",)) as pool:
        while busy or any(left.values()):
            idle = set(left) - {seed for _, seed in busy.values()}
            for seed in sorted(idle, key=lambda seed: -len(left[seed])):
                if left[seed] and len(busy) < workers:
                    name = left[seed].pop(0)
                    busy[pool.submit(measure, name, Lab(seed, quick, cache))] = name, seed
            for future in concurrent.futures.wait(busy, return_when="FIRST_COMPLETED").done:
                name, seed = busy.pop(future)
                points[name][seed] = future.result()
                if len(points[name]) == len(seeds[name]):
                    save(sum((points[name][seed] for seed in seeds[name]), []),
                         results / f"{name}.json")
                    conclude(name, results)
                    yield name


def quiet(log):
    """What a worker says goes to a file."""
    sys.stdout = sys.stderr = open(log, "a", buffering=1)


def measure(name, lab):
    """The points of one seed; what it cost stays out where it is not what is measured."""
    dropped = () if name == "online_rl" else COSTS
    return [{"seed": lab.seed, **{k: v for k, v in point.items() if k not in dropped}}
            for point in module(name).points(lab)]
