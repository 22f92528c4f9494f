"""What it saves that freed memory is kept for the next tensor (run.keep_memory).

    python -m benchmarks.memory

Processes that keep it and processes that do not, in turn: a training step at width 128, dense
batches, and a Grow of 32 sources times 16 samples.
"""

import argparse
import json
import subprocess
import sys

import torch

from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from benchmarks.peers import NeverEnding
from benchmarks.training import dense, ours
from model import sample
from run import keep_memory


def child(keep):
    """Prints the median seconds of both, in a process of its own."""
    if keep:
        keep_memory()
    torch.manual_seed(0)
    model, src = NeverEnding(sizes(128, 32)).eval(), torch.randint(4, 4000, (32, 16))
    seconds = side_by_side({"training": ours(sizes(128, 32), dense(2048, 5)),
                            "Grow": lambda: sample(model, src, 16, 32)}, rounds=3)
    print(json.dumps({name: median(found) for name, found in seconds.items()}))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=["kept", "given back"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.child == "kept")
    found = {}
    for _ in range(args.rounds):
        for how in ("kept", "given back"):
            command = [sys.executable, "-m", "benchmarks.memory", "--child", how]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for name, seconds in json.loads(printed).items():
                found.setdefault(name, {}).setdefault(how, []).append(seconds)
    table = Table("what", "x faster")
    for name, seconds in found.items():
        table.add(name, times_faster(seconds, "kept", "given back"))
    table.end()


if __name__ == "__main__":
    main()
