"""Items per second of the rest: scoring with the reward model, filters, BPE.

    python -m benchmarks.items --data DIR          # default: download Multi30k
"""

import argparse

import torch

from benchmarks.corpus import ids, multi30k
from benchmarks.disk import part
from benchmarks.measure import Table, median, side_by_side
from infra.cli import keep_memory
from infra.text import Tokenizer
from model import Config
from rest import FILTERS
from reward import RewardModel


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.items",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with train.*; default: download Multi30k")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    keep_memory()
    corpus = multi30k(args.data)
    lines = corpus.sources + corpus.targets
    sources, targets, tokenizer = ids(args.data)
    sources, targets = sources[:2000], targets[:2000]
    torch.manual_seed(0)
    sides = {"BPE, train 4000": (lambda: Tokenizer.train(lines, 4000), len(lines), "lines"),
             "BPE, encode": (lambda: [tokenizer.encode(line) for line in lines], len(lines),
                             "lines")}
    for width in (128, 256):
        model = RewardModel(Config(4000, width, 4, 3, 3, 4 * width, 0.1, 128))
        sides[f"score, width {width}"] = (lambda model=model: model.score(sources, targets),
                                          len(sources), "pairs")
    D_g = part(0, 1_000_000)
    for name, value in (("threshold", 0.9), ("quantile", 0.9), ("percentile", 90), ("gamma", 0.5),
                        ("top", 4)):
        sides[f"filter {name}"] = (
            lambda keep=FILTERS[name].keep, value=value: keep(D_g.source, D_g.reward, value),
            len(D_g), "pairs")
    seconds = side_by_side({name: function for name, (function, *_) in sides.items()}, args.rounds)
    table = Table("what", "of", "per second")
    for name, (_, items, unit) in sides.items():
        table.add(name, unit, items / median(seconds[name]))
    table.end()


if __name__ == "__main__":
    main()
