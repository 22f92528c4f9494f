"""One thread or several: a training update and a Grow of the demo, on idle cores and beside work.

    python -m benchmarks.threads

Each is timed in turn with one thread and with all, first alone, then beside a process that keeps
one core busy; medians of milliseconds, and what several threads take, as a share of one.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch

import rest
import train_toy
from infra.pairs import Pairs
from infra.sampling import sample_outputs
from infra.seeds import stream
from model import Config, Transformer


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--updates", type=int, default=20, help="updates that are timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
        try:
            for width in args.widths:
                for name, work in works(width, args.updates).items():
                    one, several = in_turn(work, threads, args.rounds)
                    print(f"{'beside work' if beside else 'idle':12}width {width:4}  {name:8}"
                          f"1 thread {one:7.1f} ms, {threads} threads {several:7.1f} ms: "
                          f"{several / one:.2f}", flush=True)
        finally:
            if busy:
                busy.kill()


def works(width, updates):
    """{name: function that does it once and returns the milliseconds of one unit}"""
    settings = train_toy.Settings()
    problem = train_toy.Language(settings)
    sources, rng = problem.sources(1000, stream("benchmark", 0)), stream("demonstrators", 0)
    pairs = Pairs.of(range(1000), [problem.demonstrate(x, rng) for x in sources], human=True)
    layers = 1 if width == settings.d_model else 3
    policy = Transformer(Config(problem.vocab_size, width, 2, layers, layers, 2 * width,
                                max_len=problem.positions))

    def train():
        start = time.perf_counter()
        rest.improve(policy, pairs, sources, settings, settings.training(updates=updates), 0)
        return 1000 * (time.perf_counter() - start) / updates

    def draw():
        start = time.perf_counter()
        sample_outputs(policy, sources[:128], 8, 0, problem.max_len)
        return 1000 * (time.perf_counter() - start)

    return {"update": train, "draw": draw}


def in_turn(work, threads, rounds):
    """Medians with one thread and with several, after a first round that does not count."""
    took = {1: [], threads: []}
    for _ in range(rounds + 1):
        for n in took:
            torch.set_num_threads(n)
            took[n].append(work())
    torch.set_num_threads(threads)
    return [statistics.median(took[n][1:]) for n in (1, threads)]


if __name__ == "__main__":
    main()
