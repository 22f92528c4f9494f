"""What torch.compile (--compile) is worth: a Grow and a training step, with it and without.

    python -m benchmarks.compiled --width 128 256

32 sources times 1 and 16 samples, all of 32 tokens, so that no row is dropped; dense batches of
2 048 tokens. "seconds to compile" is what the first call takes longer than a later one, without
what an earlier run has left on the disk.
"""

import argparse
import time
from functools import partial

import torch

from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from benchmarks.peers import NeverEnding
from benchmarks.training import dense, ours
from infra.cli import keep_memory
from infra.trainer import can_compile, compiled
from model import Transformer, sample


def growing(config, n_samples, compile):
    """A function that draws."""
    policy, src = NeverEnding(config).eval(), torch.randint(4, config.vocab_size, (32, 16))
    step = compiled(Transformer.step, src.device) if compile else Transformer.step
    return lambda: sample(policy, src, n_samples, 32, step=step)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    keep_memory()
    if not can_compile("cpu"):
        raise SystemExit("there is no compiler")
    torch._inductor.config.force_disable_caches = True
    table = Table("width", "what", "x eager", "seconds to compile")
    for width in args.width:
        config = sizes(width, 32)
        for what, make in (("Grow 32 x 1", partial(growing, config, 1)),
                           ("Grow 32 x 16", partial(growing, config, 16)),
                           ("training", partial(ours, config, dense(2048, 5)))):
            torch._dynamo.reset()
            sides = {"eager": make(compile=False), "compiled": make(compile=True)}
            begin = time.perf_counter()
            sides["compiled"]()
            first = time.perf_counter() - begin
            seconds = side_by_side(sides, args.rounds)
            table.add(width, what, times_faster(seconds, "compiled", "eager"),
                      first - median(seconds["compiled"]))
    table.end()


if __name__ == "__main__":
    main()
