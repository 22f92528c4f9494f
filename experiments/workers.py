"""Processes that measure several seeds side by side, each on one thread.

On two cores that is faster than one seed after the other on two threads, which gain little from
each other at this size: a run of train_toy.py takes 104 s on one thread, 78 s on two.
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
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, quiet,
                                                (results / "log.txt",)) as pool:
        wanted = {name: getattr(module(name), "SEEDS", seeds) for name in names}
        # what a seed's experiments share comes first, so that no two processes make it at once
        all_seeds = sorted(set().union(*(wanted[name] for name in names
                                         if getattr(module(name), "RUNS", True))))
        wait([pool.submit(prepare, Lab(seed, quick, cache)) for seed in all_seeds])
        jobs = {name: [pool.submit(measure, name, Lab(seed, quick, cache)) for seed in wanted[name]]
                for name in names}
        for name, parts in jobs.items():
            points = [point for part in parts for point in part.result()]
            save(points, results / f"{name}.json")
            conclude(name, results)
            yield name


def quiet(log):
    """What a worker says goes to a file."""
    sys.stdout = sys.stderr = open(log, "a", buffering=1)


def prepare(lab):
    lab.first_D_g()


def measure(name, lab):
    """The points of one seed; what it cost stays out where it is not what is measured."""
    dropped = () if name == "online_rl" else COSTS
    return [{"seed": lab.seed, **{k: v for k, v in point.items() if k not in dropped}}
            for point in module(name).points(lab)]


def wait(futures):
    for future in futures:
        future.result()
