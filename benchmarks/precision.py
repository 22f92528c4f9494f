"""bfloat16 beside float32: how much faster Grow is, and whether its samples are as likely.

    python -m benchmarks.precision --width 512

The mean log-probability that the float32 model gives to samples of either: with random weights all
outputs are about as likely, so the weights are made larger until the distribution has an entropy
like that of a trained model.
"""

import argparse

import torch

from benchmarks.grow import config
from benchmarks.measure import Table, side_by_side, times_faster
from benchmarks.peers import NeverEnding
from model import sample, token_logprobs
from run import keep_memory


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[512])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    keep_memory()
    table = Table("width", "x float32", "logp float32", "logp bfloat16")
    for width in args.width:
        torch.manual_seed(0)
        model = NeverEnding(config(width, 32)).eval()
        model.decoder_norm.weight.data.mul_(3.0)
        src = torch.randint(4, 4000, (32, 16))

        def grow(bfloat16, seed=0):
            with torch.autocast("cpu", torch.bfloat16, bfloat16):
                return sample(model, src, 16, 32, generator=torch.Generator().manual_seed(seed))

        seconds = side_by_side({"float32": lambda: grow(False), "bfloat16": lambda: grow(True)},
                               args.rounds)
        with torch.inference_mode():
            means = [token_logprobs(model, src.repeat_interleave(16, 0),
                                    grow(how, 1).tokens.flatten(0, 1)).mean() for how in (False, True)]
        table.add(width, times_faster(seconds, "bfloat16", "float32"), *map(float, means))
    table.end()


if __name__ == "__main__":
    main()
