"""How the cost of Grow grows: with N, with the lengths of both sides, with the number of sources.

    python -m benchmarks.growth          # writes docs/growth.png

Each point is the median of several calls; the points of all curves are timed in turn. "Uncached"
runs the decoder anew over all that was drawn so far, at every step.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.measure import Table, median, side_by_side
from benchmarks.peers import NeverEnding
from infra.cli import keep_memory
from infra.figures import BLUE, STYLE, VERMILLION, panels, save_png
from model import BOS, Config, sample, sample_token

USUAL = dict(sources=32, N=8, T=32, S=16)
VARIED = {"N": (1, 2, 4, 8, 16, 32), "T": (8, 16, 32, 64, 128), "S": (8, 16, 32, 64, 128),
          "sources": (8, 16, 32, 64, 128)}
UNCACHED = {"T": (8, 16, 32, 64)}
NAMES = {"N": "samples a source, N", "T": "target length T, tokens", "S": "source length S, tokens",
         "sources": "sources"}


@torch.inference_mode()
def uncached(model, src, n_samples, length):
    """Samples as a textbook draws them."""
    src = src.repeat_interleave(n_samples, 0)
    memory = model.encode(src)
    tokens = src.new_full((len(src), 1), BOS)
    for _ in range(length):
        logits = model.logits(model.decode(tokens, *memory)[:, -1])
        ids, _ = sample_token(logits, torch.rand(len(src)), 1.0)
        tokens = torch.cat([tokens, ids[:, None]], 1)
    return tokens[:, 1:]


def call(model, how, sources, N, T, S):
    src = torch.randint(4, 4000, (sources, S), generator=torch.Generator().manual_seed(0))
    return lambda: how(model, src, N, T)


def figure(lines):
    picture, axes = panels("growth", 4, 17, 4.2)
    for ax, (key, values) in zip(axes, VARIED.items()):
        for how, colour in (("cached", BLUE), ("uncached", VERMILLION)):
            chosen = [line for line in lines if line["varied"] == key and line["how"] == how]
            if chosen:
                ax.plot([line["value"] for line in chosen], [line["seconds"] for line in chosen],
                        color=colour, marker="o")
                ax.annotate(how, (chosen[-1]["value"], chosen[-1]["seconds"]), (-6, 6), ha="right",
                            textcoords="offset points", color=colour)
        ax.set(xlabel=NAMES[key], title="seconds of a Grow", xticks=values, ylim=0)
    return picture


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    args = parser.parse_args(argv)
    keep_memory()
    torch.manual_seed(0)
    model = NeverEnding(Config(4000, 128, 4, 3, 3, 512, 0.1, 128)).eval()
    sides = {("cached", key, value): call(model, sample, **{**USUAL, key: value})
             for key, values in VARIED.items() for value in values}
    sides |= {("uncached", key, value): call(model, uncached, **{**USUAL, key: value})
              for key, values in UNCACHED.items() for value in values}
    seconds = side_by_side(sides, args.rounds)
    table = Table("how", "varied", "value", "seconds")
    for (how, key, value), found in seconds.items():
        table.add(how, key, value, median(found))
    import matplotlib
    with matplotlib.rc_context(STYLE):
        save_png(figure(table.lines), args.out)
    table.end()


if __name__ == "__main__":
    main()
