"""What it saves that freed memory is kept for the next tensor (infra.cli.keep_memory).

    python -m benchmarks.memory

Processes that keep it and processes that do not, in turn: a training step on dense batches, and a
Grow of 32 sources times 16 samples, ours and the peers'. The programs here keep it; whoever uses
the peers does not, unless told to. So the last column compares ours that keeps with theirs that do
not, where the other benchmarks let all sides keep it.
"""

import argparse
import subprocess
import sys

import torch

from benchmarks import peers
from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from benchmarks.training import dense, joeynmt, marian, ours
from infra.cli import keep_memory
from model import sample


def sides(config):
    """{(what, whose): what makes the function to time}, each for a process of its own."""
    pairs, src = dense(2048, 5), torch.randint(4, 4000, (32, 16))

    def grow():
        model = peers.NeverEnding(config).eval()
        return lambda: sample(model, src, 16, 32)

    def generate():
        model = peers.marian(config)
        return lambda: peers.generate(model, src, 16, 32, True)

    return {("training", "ours"): lambda: ours(config, pairs),
            ("training", "JoeyNMT as is"): lambda: joeynmt(config, pairs, as_it_comes=True),
            ("training", "HF"): lambda: marian(config, pairs),
            ("Grow", "ours"): grow, ("Grow", "HF"): generate}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    made = sides(sizes(args.width, 32))
    if args.child:
        *key, how = args.child
        if how == "kept":
            keep_memory()
        seconds = side_by_side({"it": made[tuple(key)]()}, rounds=3)
        return print(median(seconds["it"]))
    found = {key: {"kept": [], "given back": []} for key in made}
    for _ in range(args.rounds):
        for key, seconds in found.items():
            for how in seconds:
                command = [sys.executable, "-m", "benchmarks.memory", "--width", str(args.width),
                           "--child", *key, how]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds[how].append(float(said.splitlines()[-1]))
    table = Table("what", "whose", "x by keeping", "ours x faster")
    for (what, whose), seconds in found.items():
        both = {"theirs": seconds["given back"], "ours": found[what, "ours"]["kept"]}
        table.add(what, whose, times_faster(seconds, "kept", "given back"),
                  times_faster(both, "ours", "theirs"))
    table.end()


if __name__ == "__main__":
    main()
