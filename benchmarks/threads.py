"""One thread, several threads, or several processes: on idle cores and beside other work.

    python -m benchmarks.threads

A training update and a Grow of 1 024 samples, at the demo's size and at that of train_mt.py, by one
process of one thread, by one with a thread for each core, and by a process for each core, as
`torchrun` starts them. They take turns, first alone, then beside a process that keeps one core
busy: medians of milliseconds, and of the ratio to one thread in the same round.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

import rest
import train_mt
import train_toy
from infra import processes
from infra.cli import keep_memory
from infra.pairs import Pairs
from infra.sampling import sample_outputs
from model import EOS, Config, Transformer

TOY, MT = train_toy.Settings(), train_mt.Settings()
LANGUAGE = train_toy.Language(TOY)
SIZES = {  # the networks of both programs; tokens of a batch; longest sentence
    "demo": (Config(LANGUAGE.vocab_size, TOY.d_model, 2, TOY.layers, TOY.layers, 2 * TOY.d_model,
                    TOY.dropout, LANGUAGE.positions), TOY.batch_tokens, TOY.longest),
    "translation": (Config(MT.vocab_size, MT.d_model, MT.heads, MT.encoder_layers,
                           MT.decoder_layers, MT.d_ff, MT.dropout, MT.max_len),
                    MT.batch_tokens, 24),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--updates", type=int, default=20, help="updates that are timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(args.sizes[0], args.updates)
    for size in args.sizes:
        sides = {"1 thread": [begin(size, args.updates, 1)],
                 f"{args.cores} threads": [begin(size, args.updates, args.cores)],
                 f"{args.cores} processes": begin_together(size, args.updates, args.cores)}
        try:
            for side in sides.values():
                once(side)  # warm
            for where in ("idle", "beside work"):
                compare(size, where, sides, args.rounds)
        finally:
            for process in sum(sides.values(), []):
                process.kill()


def compare(size, where, sides, rounds):
    """Time the sides in turn and print a line for each side and each of its two works."""
    busy = where != "idle" and subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        took = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                took[name].append(once(side))
    finally:
        if busy:
            busy.kill()
    first = next(iter(took.values()))
    for name, times in took.items():
        for k, what in enumerate(("update", "Grow")):
            ms = statistics.median(time[k] for time in times)
            ratio = statistics.median(time[k] / one[k] for time, one in zip(times, first))
            print(f"{size:12}  {where:11}  {what:6}  {name:11}  {ms:7.1f} ms  {ratio:.2f}",
                  flush=True)


def begin(size, updates, threads, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.threads", "--worker", "--sizes", size, "--updates",
         str(updates)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | environment)


def begin_together(size, updates, n):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [begin(size, updates, 1, RANK=str(k), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port)) for k in range(n)]


def once(side):
    """Milliseconds of an update and of a Grow, by the processes of one side together."""
    for process in side:
        process.stdin.write("\n")
        process.stdin.flush()
    return [float(text) for text in side[0].stdout.readline().split()]


def worker(size, updates):
    """For each line of standard input: do both, and print what they took."""
    keep_memory()
    processes.start()
    config, batch_tokens, longest = SIZES[size]
    rng, n = np.random.default_rng(0), 4000
    sources, targets = ([np.append(rng.integers(3, config.vocab_size, k), EOS)
                         for k in rng.integers(8, longest, n)] for _ in range(2))
    pairs = Pairs.of(range(n), targets, human=True)
    torch.manual_seed(0)
    policy = Transformer(config)
    settings = rest.Settings(batch_tokens=batch_tokens)
    for _ in sys.stdin:
        start = time.perf_counter()
        rest.improve(policy, pairs, sources, settings, settings.training(updates=updates), 0)
        trained = time.perf_counter()
        sample_outputs(policy, sources[:128], 8, 0, longest, batch_size=256)
        print(1000 * (trained - start) / updates, 1000 * (time.perf_counter() - trained),
              flush=True)


if __name__ == "__main__":
    main()
