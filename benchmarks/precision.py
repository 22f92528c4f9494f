"""bfloat16 beside float32: how much faster Grow is, and whether its samples are as likely.

    python -m benchmarks.precision --data DIR          # width 512; default: download Multi30k

A policy is trained for a few updates, so that its distribution has some shape; then both draw
samples of forced length, and the float32 policy says how likely each's are.
"""

import argparse

import torch

import rest
from benchmarks.corpus import ids
from benchmarks.grow import sizes
from benchmarks.measure import Table, side_by_side, times_faster
from benchmarks.peers import NeverEnding
from infra.batches import pad
from infra.cli import keep_memory
from infra.pairs import Pairs
from model import Transformer, sample, token_logprobs


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[512])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--data", help="folder with train.*; default: download Multi30k")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    keep_memory()
    table = Table("width", "x float32", "logp float32", "logp bfloat16")
    sources, targets, _ = ids(args.data)
    short = [i for i, pair in enumerate(zip(sources, targets)) if max(map(len, pair)) <= 64]
    data = Pairs.of(short, [targets[i] for i in short])
    for width in args.width:
        torch.manual_seed(0)
        policy, model = Transformer(sizes(width, 32)), NeverEnding(sizes(width, 32))
        settings = rest.Settings(batch_tokens=1024)
        rest.improve(policy, data, sources, settings, settings.training(updates=args.updates), 0)
        model.load_state_dict(policy.state_dict())
        src = pad([sources[i] for i in short[:32]])

        def grow(bfloat16, seed=0):
            with torch.autocast("cpu", torch.bfloat16, bfloat16):
                return sample(model, src, 16, 32, generator=torch.Generator().manual_seed(seed))

        seconds = side_by_side({"float32": lambda: grow(False), "bfloat16": lambda: grow(True)},
                               args.rounds)
        with torch.inference_mode():
            rows = src.repeat_interleave(16, 0)
            means = [float(token_logprobs(model, rows, grow(how, 1).tokens.flatten(0, 1)).mean())
                     for how in (False, True)]
        table.add(width, times_faster(seconds, "bfloat16", "float32"), *means)
    table.end()


if __name__ == "__main__":
    main()
