"""A D_g that does not fit in memory: filtered and read from disk, beside the speed of training.

    python -m benchmarks.disk --out DIR                  # 16 million pairs: the paper's IWSLT run
    python -m benchmarks.disk --out DIR --millions 1

Synthetic pairs of 25 tokens on average are written part by part (3.5 GB for 16 million), filtered
by quantile and by threshold, and read in random batches as an Improve reads them. Anonymous memory
is what the process owns, without the pages of mapped files, which the system can drop at any time.
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import numpy as np

import rest
from benchmarks.measure import Table
from infra.batches import batches, collate
from infra.cli import keep_memory
from infra.pairs import PART, Pairs, size_of
from model import EOS, Config, Transformer

N_SOURCES, MEAN = 160_000, 25


def part(number, n):
    """n made-up pairs, each source 100 times in all, as one Grow draws them."""
    rng = np.random.default_rng(number)
    lengths = rng.integers(5, 2 * MEAN - 4, n)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    source = (np.arange(n) + number * PART) // 100 % N_SOURCES
    return Pairs(source.astype(np.int32), rng.integers(3, 4000, starts[-1], np.int32), starts,
                 rng.random(starts[-1], np.float32), rng.random(n, np.float32), np.zeros(n, bool))


def anonymous():
    """Megabytes of memory that this process owns (Linux)."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def forget(folder):
    """Ask the system to drop what it holds of the files, so that they are read from disk."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function):
    begin = time.perf_counter()
    value = function()
    return value, time.perf_counter() - begin


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disk",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs")
    parser.add_argument("--millions", type=float, default=16)
    parser.add_argument("--batches", type=int, default=2000, help="batches to read")
    parser.add_argument("--width", type=int, default=256, help="of the policy that is trained")
    args = parser.parse_args(argv)
    keep_memory()
    n, folder = int(args.millions * 1e6), args.out / f"pairs-{args.millions:g}M"
    table = Table("what", "seconds", "of", "per second", "MB owned")
    begin = anonymous()

    def write():
        for number in range(size_of(folder)["parts"], -(-n // PART)):
            part(number, min(PART, n - number * PART)).append_to(folder)

    def row(name, seconds, items, unit):
        table.add(name, seconds, unit, items / seconds, anonymous() - begin)

    row("make, write", timed(write)[1], n, "pairs")
    pairs = Pairs.load(folder)
    forget(folder)
    for name, settings in (
            ("quantile", rest.Settings(filter="quantile", thresholds=(0.9,))),
            ("threshold", rest.Settings(filter="threshold", thresholds=(0.9,)))):
        (kept, _), seconds = timed(lambda: rest.select(pairs, settings, 1))
        row(name, seconds, n, "pairs")
    sources = np.random.default_rng(0).integers(3, 4000, (N_SOURCES, 21))
    sources[:, -1] = EOS
    index = np.flatnonzero(kept)
    lengths, seconds = timed(lambda: pairs.padded_lengths(sources)[index])
    row("lengths", seconds, n, "pairs")
    stream = batches(lengths, 2048, 0)

    def read():
        return sum(int(collate(pairs, sources, index[next(stream)]).mask.sum())
                   for _ in range(args.batches))

    tokens, seconds = timed(read)
    row("read", seconds, tokens, "tokens")
    reading = tokens / seconds
    policy = Transformer(Config(4000, args.width, 4, 3, 3, 4 * args.width, 0.1, 64))
    settings = rest.Settings(batch_tokens=2048)
    few = index[np.concatenate(list(itertools.islice(batches(lengths, 2048, 1), 20)))]
    hp = settings.training(updates=min(20, args.batches))
    done = rest.improve(policy, pairs.select(few), sources, settings, hp, 0)
    training = done["tokens"] / done["seconds"]
    table.add(f"train, w. {args.width}", done["seconds"], "tokens", training, anonymous() - begin)
    print(f"reading is {reading / training:.0f} times as fast as training")
    table.end()


if __name__ == "__main__":
    main()
