"""Grow: our `sample` beside Hugging Face's generate and CTranslate2, and the floor.

    python -m benchmarks.grow                                # width 256, target length 32
    python -m benchmarks.grow --width 512 --length 128 --sources 32 --samples 1 8 16 64
    python -m benchmarks.grow --run runs/mt-1 --data DIR     # lengths as a trained policy has them

Random weights and forced length, all rows drawn at temperature 1 from the whole vocabulary; or the
very weights of a run's policy in all of them, for sources of DIR/val.*, and lengths as they come.
A CTranslate2 call takes and gives strings, as it always does. Time is of the whole call.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import floor, peers
from benchmarks.corpus import multi30k
from benchmarks.measure import Table, median, side_by_side, times_faster
from infra.batches import pad
from infra.cli import keep_memory
from model import PAD, Config, Transformer, sample


def sizes(width, length):
    return Config(4000, width, max(4, width // 64), 3, 3, 4 * width, 0.1, max(64, length))


def compare(table, policy, src, n_samples, length, hugging_face, rounds, forced):
    """One line: tokens a second of each side, and how many times faster ours is."""
    generator = torch.Generator().manual_seed(0)
    drawn = []  # tokens of each call of ours

    def ours():
        out = sample(policy, src, n_samples, length, generator=generator)
        drawn.append(int((out.tokens != PAD).sum()))

    sides = {"ours": ours,
             "HF": lambda: peers.generate(hugging_face, src, n_samples, length, forced)}
    for kind in ("float32", "int8"):
        translator = peers.CTranslate(hugging_face, kind)
        sides[f"CT2 {kind}"] = lambda translator=translator: translator.generate(
            src, n_samples, length, forced)
    if forced:
        sides["floor"] = lambda: floor.grow(policy.config, len(src), n_samples, src.size(1), length)
    seconds = side_by_side(sides, rounds, own=["floor"])
    table.add(policy.config.d_model, f"{len(src)} x {n_samples}", length if forced else "ragged",
              median(drawn) / median(seconds["ours"]),
              *(times_faster(seconds, "ours", name) for name in list(sides)[1:]),
              *([] if forced else [None]))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grow",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[256])
    parser.add_argument("--length", type=int, nargs="+", default=[32])
    parser.add_argument("--sources", type=int, default=32)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="folder of a finished translation run")
    parser.add_argument("--data", help="folder with its val.*; default: download Multi30k")
    args = parser.parse_args(argv)
    keep_memory()
    table = Table("width", "rows", "length", "tokens/s", "x HF", "x CT2", "x CT2 int8", "of floor")
    if args.run:
        policy, sources = trained(args.run, args.data)
        hugging_face = peers.same_policy(policy)
        for n in args.samples:
            src = pad(sources[: args.sources])
            compare(table, policy, src, n, policy.config.max_len, hugging_face, args.rounds, False)
        return table.end()
    for width in args.width:
        for length in args.length:
            config = sizes(width, length)
            torch.manual_seed(0)
            policy, hugging_face = peers.NeverEnding(config).eval(), peers.marian(config)
            for n in args.samples:
                src = torch.randint(4, config.vocab_size, (args.sources, 16))
                compare(table, policy, src, n, length, hugging_face, args.rounds, True)
    table.end()


def trained(run, data):
    """The policy of a run, and sources of its validation set as ids."""
    from infra.corpus import Codec
    from infra.text import Tokenizer
    from infra.translate import load_model
    policy = load_model(run / "policy.pt", Transformer, "cpu")
    codec = Codec(Tokenizer.load(run / "tokenizer.json"), policy.config.max_len)
    return policy, codec.ids(multi30k(data, "val").sources)


if __name__ == "__main__":
    main()
