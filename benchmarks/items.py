"""Items a second of the rest: scoring with the reward model, and the BPE.

    python -m benchmarks.items --data DIR          # default: download Multi30k
"""

import argparse

import torch

from benchmarks.corpus import ids, multi30k
from benchmarks.measure import Table, median, side_by_side
from infra.cli import keep_memory
from model import Config
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
    model = RewardModel(Config(4000, 128, 4, 3, 3, 512, 0.1, 128))
    sides = {"BPE, encode": (lambda: [tokenizer.encode(line) for line in lines], len(lines),
                             "lines"),
             "score, width 128": (lambda: model.score(sources, targets), len(sources), "pairs")}
    seconds = side_by_side({name: function for name, (function, *_) in sides.items()}, args.rounds)
    table = Table("what", "of", "per second")
    for name, (_, items, unit) in sides.items():
        table.add(name, unit, items / median(seconds[name]))
    table.end()


if __name__ == "__main__":
    main()
