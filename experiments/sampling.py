"""Sampling: how warm, and how many outputs of each source?

Claims     16: temperature 0.8 covers a broad range of rewards.
Varied     the temperature of Grow, 0.2 to 1.4; the samples per source, 1 to 64.
Held       D, BC policy, reward model; one Grow over all sources, Improves 0 to 4.
Takes      about 5 minutes a seed on one core.
"""

import numpy as np

from experiments.improve_steps import RISING
from experiments.plot import BLUE, GREEN, ORANGE, curve, label_ends, panels
from experiments.verdicts import Claim

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def points(lab):
    for t in TEMPERATURES:
        grow = dict(grow=1, improve=(6,), thresholds=RISING, temperature=(t,))
        spread = lab.kept("spread", grow, lambda: spread_of(lab.first_D_g(**grow)[0]))
        yield from measured(lab, grow, part="temperature", temperature=t, spread=spread)
    for n in COUNTS:
        grow = dict(grow=1, improve=(6,), thresholds=RISING, samples=n)
        yield from measured(lab, grow, part="count", n=n)


def measured(lab, settings, **labels):
    rows = lab.rest(**settings)
    bc = rows[0]
    for row in rows[1:]:
        if row["improve"] <= 4:
            yield {**labels, **row, "above_bc": row["reward"] - bc["reward"],
                   "oracle_above_bc": row["oracle"] - bc["oracle"]}


def spread_of(D_g):
    """From the 5th to the 95th percentile of the samples' rewards."""
    low, high = np.quantile(D_g.reward[~D_g.human], (0.05, 0.95))
    return float(high - low)


def claims(p):
    first = p.where(part="temperature", improve=0)
    yield Claim("16", "temperature 0.8 covers a broad range of rewards", [
        first.compare(f"range (5 to 95 %) at 0.8 − at {t}", "+", "spread", dict(temperature=0.8),
                      dict(temperature=t)) for t in (0.2, 0.4, 0.6)])
    last = p.where(part="temperature", improve=4)
    yield Claim("", "a cooler or a warmer Grow than 0.8 is worse in the end, at (1,4)", [
        last.compare(f"0.8 − {t}", "+", "above_bc", dict(temperature=0.8), dict(temperature=t))
        for t in (0.4, 1.2)])
    last = p.where(part="count", improve=4)
    yield Claim("", "more samples per source are better, at (1,4)", [
        last.compare(f"N = {b} − {a}", "+", "above_bc", dict(n=b), dict(n=a))
        for a, b in ((1, 8), (8, 64))])


def figure(p):
    picture, axes = panels("sampling", 3, 16, 4.6)
    temperature = p.where(part="temperature")
    curve(axes[0], temperature.where(improve=0), "temperature", "spread", ORANGE)
    axes[0].set(title="rewards of the samples: 5th to 95th percentile", xlabel="temperature of Grow",
                ylim=(0, None))
    for ax, part, x, title in ((axes[1], "temperature", "temperature", "temperature of Grow"),
                               (axes[2], "count", "n", "samples per source")):
        ends = [(curve(ax, p.where(part=part, improve=i), x, key, colour, style), name, colour)
                for name, key, i, colour, style in (
                    ("reward (1,4)", "above_bc", 4, BLUE, "-"),
                    ("oracle (1,4)", "oracle_above_bc", 4, GREEN, "-"),
                    ("reward (1,0)", "above_bc", 0, BLUE, ":"),
                    ("oracle (1,0)", "oracle_above_bc", 0, GREEN, ":"))]
        ax.set(title="above BC, points of 100", xlabel=title)
        label_ends(ax, ends)
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(COUNTS, COUNTS)
    return picture
