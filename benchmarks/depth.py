"""A deep encoder with a shallow decoder: what it gains in speed, and what it does to BLEU.

    python -m benchmarks.depth --data DIR --out runs/depth

Decoding runs the decoder once for every token, the encoder once for every source. BC as train_mt.py
trains it, at the same width with 3+3 and 6+1 layers of encoder+decoder, for several seeds;
greedy BLEU on validation, of the best checkpoint. Then the seconds of a Grow (32 sources x 16, all
of 32 tokens) and of a training step, side by side. Takes some ten minutes a run; started again, it
goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.corpus import folder
from benchmarks.grow import sizes
from benchmarks.measure import Table, side_by_side, times_faster
from benchmarks.peers import NeverEnding
from benchmarks.training import dense, ours
from infra.cli import keep_memory
from model import sample

SHAPES = ((3, 3), (6, 1))


def bleu(out, data, layers, seed):
    """Validation BLEU of BC with so many layers of encoder and decoder."""
    encoder, decoder = map(str, layers)
    subprocess.run([sys.executable, "train_mt.py", "--data", str(data), "--out", str(out),
                    "--encoder-layers", encoder, "--decoder-layers", decoder, "--seed", str(seed),
                    "--stop-after", "bc", "--resume"], check=True, stdout=subprocess.DEVNULL)
    events = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return max(e["score"] for e in events if e.get("step") == "bc" and e.get("score") is not None)


def speed(layers):
    """Functions that make a Grow and some training steps with so many layers."""
    config = replace(sizes(128, 32), n_encoder_layers=layers[0], n_decoder_layers=layers[1])
    policy, src = NeverEnding(config).eval(), torch.randint(4, config.vocab_size, (32, 16))
    return lambda: sample(policy, src, 16, 32), ours(config, dense(2048, 5))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with train.*, val.*; default: download Multi30k")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    keep_memory()
    data = folder(args.data)
    names = {f"{encoder}+{decoder}": (encoder, decoder) for encoder, decoder in SHAPES}
    scores = {name: [bleu(args.out / f"{name}-{seed}", data, layers, seed) for seed in args.seeds]
              for name, layers in names.items()}
    both = {name: speed(layers) for name, layers in names.items()}
    growing, training = (side_by_side({name: both[name][k] for name in names}, args.rounds)
                         for k in (0, 1))
    table = Table("layers", "BLEU", "least", "most", "x Grow", "x training")
    for name, found in scores.items():
        table.add(name, statistics.mean(found), min(found), max(found),
                  times_faster(growing, name, "3+3"), times_faster(training, name, "3+3"))
    table.end()


if __name__ == "__main__":
    main()
