"""Where the time goes: a training step and a Grow, with one part after the other left out.

    python -m benchmarks.parts --width 128 256
    python -m benchmarks.parts --demo              # the model of train_toy.py

Dense batches of 2 048 tokens (the demo's: 1 024); 32 sources times 16 samples of 32 tokens.
"Products" is the floor of benchmarks.floor; the other shares are what is saved without that part.
What is missing to 1 is copies, sums, gradients of biases, the optimiser, Python.
"""

import argparse
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.nn as nn
import torch.nn.functional as F

import losses
import model
from benchmarks import floor, peers
from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from benchmarks.threads import SIZES
from benchmarks.training import dense, ours
from infra.cli import keep_memory


def no_attention(q, k, v, **_):
    """No scores and no softmax, but all projections stay in use."""
    return q + k + v if q.shape == k.shape else q


def identity(self, x):
    return x


BOTH = {"attention": (F, "scaled_dot_product_attention", no_attention),
        "layer norms": (nn.LayerNorm, "forward", identity), "ReLU": (nn.ReLU, "forward", identity)}
TRAINING = BOTH | {"loss over V": (losses, "bc", lambda logits, *_: logits.mean()),
                   "dropout": (model.Dropout, "forward", identity)}
GROW = BOTH | {"draw": (model, "sample_token",
                        lambda logits, u, *_: (torch.full_like(u, 4).long(), u))}


def without(part, function):
    def run():
        with patch.object(*part) if part else nullcontext():
            function()
    return run


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[128])
    parser.add_argument("--demo", action="store_true", help="the demo's model in place of widths")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    keep_memory()
    torch.set_num_threads(1)
    configs = {width: sizes(width, 32) for width in args.width}
    if args.demo:
        configs = {"demo": SIZES["demo"][0]}
    table = Table("width", "what", "part", "share")
    for width, config in configs.items():
        pairs = dense(1024 if args.demo else 2048, 5, vocabulary=config.vocab_size)
        src = torch.randint(4, config.vocab_size, (32, 16))
        policy = peers.NeverEnding(config).eval()
        for what, parts, function, least in (
                ("training", TRAINING, lambda: ours(config, pairs),
                 lambda: floor.training(config, pairs)),
                ("Grow", GROW, lambda: lambda: model.sample(policy, src, 16, 32),
                 lambda: floor.grow(config, 32, 16, 16, 32))):
            sides = {name: without(part, function())
                     for name, part in {"all": None, **parts}.items()}
            seconds = side_by_side({**sides, "products": least}, args.rounds, own=["products"])
            table.add(width, what, "products", times_faster(seconds, "all", "products"))
            for name in parts:
                table.add(width, what, name, median(
                    1 - b / a for a, b in zip(seconds["all"], seconds[name])))
    table.end()


if __name__ == "__main__":
    main()
