"""What it saves that freed memory is kept for the next tensor (run.keep_memory).

    python -m benchmarks.memory --width 128 256

Processes that keep it and processes that do not, in turn: a training step on dense batches, and a
Grow of 32 sources times 16 samples, ours and the peers'. The programs here keep it; whoever uses
the peers does not, unless told to. So the last column compares ours that keeps with theirs that do
not, where the other benchmarks let all sides keep it.
"""

import argparse
import json
import subprocess
import sys

import torch

from benchmarks import peers
from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from benchmarks.training import dense, joeynmt, marian, ours
from model import sample
from run import keep_memory


def child(keep, width):
    """Prints the median seconds of all, in a process of its own."""
    if keep:
        keep_memory()
    torch.manual_seed(0)
    config, src = sizes(width, 32), torch.randint(4, 4000, (32, 16))
    model, hugging_face = peers.NeverEnding(config).eval(), peers.marian(config)
    pairs = dense(2048, 5)
    seconds = side_by_side({
        ("training", "ours"): ours(config, pairs),
        ("training", "JoeyNMT as is"): joeynmt(config, pairs, as_it_comes=True),
        ("training", "HF"): marian(config, pairs),
        ("Grow", "ours"): lambda: sample(model, src, 16, 32),
        ("Grow", "HF"): lambda: peers.generate(hugging_face, src, 16, 32, True)}, rounds=3)
    print(json.dumps([[*key, median(found)] for key, found in seconds.items()]))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=["kept", "given back"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.child == "kept", *args.width)
    table = Table("width", "what", "whose", "x by keeping", "ours x faster")
    for width in args.width:
        found = {}
        for _ in range(args.rounds):
            for how in ("kept", "given back"):
                command = [sys.executable, "-m", "benchmarks.memory", "--child", how,
                           "--width", str(width)]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                for what, whose, seconds in json.loads(printed.splitlines()[-1]):
                    found.setdefault((what, whose), {}).setdefault(how, []).append(seconds)
        for (what, whose), seconds in found.items():
            both = {"theirs": seconds["given back"], "ours": found[what, "ours"]["kept"]}
            table.add(width, what, whose, times_faster(seconds, "kept", "given back"),
                      times_faster(both, "ours", "theirs"))
    table.end()


if __name__ == "__main__":
    main()
