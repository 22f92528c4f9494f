"""Sampling: how warm, and how many outputs of each source?

Claims     16: temperature 0.8 covers a broad range of rewards: not only more bad outputs than a
           cooler one has, but better best ones too. It is measured within a source; over all
           sources it is mostly the range between easy and hard ones.
Varied     the temperature of Grow, 0.2 to 1.4; the samples per source, 1 to 64.
Held       D, BC policy, reward model; one Grow over all sources, Improves 0 to 4.
Takes      about 10 minutes a seed on one core.
"""

import numpy as np

from experiments.improve_steps import RISING
from experiments.plot import BLUE, GREEN, ORANGE, SKY, curve, label_ends, panels
from experiments.verdicts import Claim

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def points(lab):
    for t in TEMPERATURES:
        grow = dict(grow=1, improve=(6,), thresholds=RISING, temperature=(t,))
        spread = lab.cached("spread", grow, lambda: spread_of(lab.first_D_g(**grow)[0]))
        yield from measured(lab, grow, part="temperature", temperature=t, **spread)
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
    """Of the rewards of a source's samples, as means over the sources: from the worst to the best,
    their standard deviation, and the best; and the standard deviation of all."""
    drawn = D_g.select(~D_g.human)
    of_source = drawn.reward[np.argsort(drawn.source, kind="stable")]
    of_source = of_source.reshape(len(set(drawn.source.tolist())), -1)
    return {"spread": float(np.ptp(of_source, axis=1).mean()),
            "sd": float(of_source.std(1).mean()), "best": float(of_source.max(1).mean()),
            "sd_of_all": float(drawn.reward.std())}


def claims(p):
    first = p.where(part="temperature", improve=0)
    yield Claim("16", "temperature 0.8 covers a broad range of rewards", [
        first.compare(f"{name} at 0.8 − at {t}", "+", key, dict(temperature=0.8),
                      dict(temperature=t))
        for key, name, others in (("spread", "range within a source", (0.2, 0.4)),
                                  ("best", "best of a source", (0.2, 0.4, 1.4))) for t in others])
    yield Claim("", "standard deviation of rewards at 0.8, over all samples − within a source", [
        first.compare("all − within", "+", "sd_of_all", dict(temperature=0.8),
                      dict(temperature=0.8), minus="sd")])
    last = p.where(part="temperature", improve=4)
    yield Claim("", "reward at (1,4) of a Grow at 0.8 − of a cooler or warmer one", [
        last.compare(f"0.8 − {t}", "+", "above_bc", dict(temperature=0.8), dict(temperature=t))
        for t in (0.4, 1.2)])
    last = p.where(part="count", improve=4)
    yield Claim("", "reward at (1,4), by samples per source", [
        last.compare(f"N = {b} − {a}", "+", "above_bc", dict(n=b), dict(n=a))
        for a, b in ((1, 8), (8, 64))])


def figure(p):
    picture, axes = panels("sampling", 3, 16, 4.6)
    temperature = p.where(part="temperature")
    ends = [(curve(axes[0], temperature.where(improve=0), "temperature", key, colour), name, colour)
            for key, name, colour in (("spread", "best − worst", ORANGE),
                                      ("best", "best of 8", SKY))]
    axes[0].set(title="rewards of a source's samples, points of 100", xlabel="temperature of Grow",
                ylim=(0, None))
    label_ends(axes[0], ends)
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
