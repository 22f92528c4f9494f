"""Translation: the same claims on real text, as far as five runs can tell.

Claims     8: PPO loses the reference metric (BLEU), ReST does not. And 1, 3, 4, 7, 9, 10 and 12, as
           on the toy; chrF of samples, which nothing is trained on or chosen by, stands in for the
           humans.
Varied     the method: ReST, PPO with a KL to BC.
Held       Multi30k De-En and the settings of `train_mt.py --preset cpu`.
Takes      no time here: it reads docs/results/, which took an hour a seed. A seed's run is

    python train_mt.py --seed 0 --ppo      # docs/results/mt-0

The margin is one point of reward, half a point of BLEU or chrF.
"""

import json
from pathlib import Path

import numpy as np

from experiments.plot import BLUE, GREY, VERMILLION, interval, panels
from experiments.verdicts import Claim

SEEDS = range(5)
RESULTS = Path(__file__).parent.parent / "docs" / "results"
FIELDS = ("name", "grow", "improve", "reward", "greedy_reward", "bleu", "beam_bleu", "chrf",
          "sampled_chrf", "kl_to_bc")


def points(lab):
    results = json.loads((RESULTS / f"mt-{lab.seed}" / "results.json").read_text())
    for row in results["rows"]:
        yield {key: row[key] for key in FIELDS}
    for entry in results["best_of_n"]:
        yield {"part": "best of N", **entry}


def claims(p):
    bc, ppo = dict(name="BC"), dict(name="PPO")

    def rest(g, i):
        return dict(name="ReST", grow=g, improve=i)

    def of(name, expected, key, a, b):
        points = dict(scale=100) if "reward" in key else dict(scale=1, margin=0.5)
        return p.compare(name, expected, key, a, b, **points)

    yield Claim("1, translation", "each further Improve on a fixed D_g raises the reward", [
        of(f"(1,{i}) − (1,{i - 1})", "+", "reward", rest(1, i), rest(1, i - 1))
        for i in range(1, 5)])
    yield Claim("3, translation", "a second Grow with its Improves raises the reward further", [
        of("(2,3) − (1,4)", "+", "reward", rest(2, 3), rest(1, 4))])
    yield Claim("4, translation", "ReST beats BC on reward after one Grow, I = 0 included", [
        of(f"(1,{i})", "+", "reward", rest(1, i), bc) for i in (0, 1)])
    yield Claim("4, translation, greedy", "the same, decoded greedily", [
        of(f"(1,{i})", "+", "greedy_reward", rest(1, i), bc) for i in (0, 1)])
    yield Claim("7, translation", "PPO with the samples of one Grow is about ReST (1,0), below "
                "(1,4)", [
                    of("PPO − (1,0)", "=", "reward", ppo, rest(1, 0)),
                    of("(1,4) − PPO", "+", "reward", rest(1, 4), ppo)])
    yield Claim("8", "PPO loses the reference metric, ReST does not", [
        *(of(f"{name} BLEU of ReST (2,3) − BC", "=", key, rest(2, 3), bc)
          for key, name in (("bleu", "greedy"), ("beam_bleu", "beam 5"))),
        of("greedy BLEU of PPO − BC", "-", "bleu", ppo, bc)])
    best = {(name, n): dict(part="best of N", policy=name, n=n)
            for name in ("BC", "ReST") for n in (1, 8, 32)}
    yield Claim("9, translation", "best-of-N still helps after ReST; a small N on ReST equals a "
                "large N on BC", [
                    of("chrF of ReST, N = 8 − N = 1", "+", "chrf", best["ReST", 8],
                       best["ReST", 1]),
                    *(of(f"{key} of ReST, N = 8 − BC, N = 32", ">=", key, best["ReST", 8],
                         best["BC", 32]) for key in ("reward", "chrf"))])
    yield Claim("10, translation", "ReST beats BC by human score (here: chrF of samples)", [
        of(f"({g},{i})", "+", "sampled_chrf", rest(g, i), bc) for g, i in ((1, 4), (2, 3))])
    yield Claim("12, translation", "one Grow is best by human score (here: chrF of samples)", [
        of("(2,3) − (1,4)", "-", "sampled_chrf", rest(2, 3), rest(1, 4))])


def figure(p):
    picture, (ax,) = panels("translation", 1, 8, 4.8)
    for name, colour in (("ReST", BLUE), ("PPO", VERMILLION)):
        rows, bc = p.where(name=name), p.where(name="BC")
        steps = sorted({(q["grow"], q["improve"]) for q in rows.points})
        at = [[interval(rows.values(key, scale, grow=g, improve=i) - bc.values(key, scale))
               for key, scale in (("reward", 100), ("bleu", 1))] for g, i in steps]
        x, y = np.array([[mean for mean, _ in pair] for pair in at]).T
        half = [pair[1][1] for pair in at]
        ax.plot([0, *x], [0, *y], color=colour, marker="o", clip_on=False)
        if np.isfinite(half).all():
            ax.errorbar(x, y, yerr=half, color=colour, lw=1, alpha=0.6, ls="none")
        ax.annotate(name, (x[-1], y[-1]), (8, 0), va="center", textcoords="offset points",
                    color=colour)
    ax.axhline(0, color=GREY, lw=1)
    ax.margins(x=0.3)
    ax.set(title="greedy BLEU above BC, Multi30k test set", xlabel="reward above BC, points of 100")
    return picture
