"""Improve steps: how many, and how fast should the threshold rise?

Claims     1: each further Improve on a fixed D_g raises the mean reward. 2: the right number of
           Improves depends on the data. 17: where τ ≥ V(π), the next policy's V rises.
Varied     the number of Improves, 0 to 6; the schedule of thresholds; samples per source, 1, 8 or
           64; and the threshold of one Improve straight from BC, below V(π) and above. Beside each
           filter its control: as many pairs, drawn at random, which shows what training on samples
           of a cooler policy does by itself. To go back to the best checkpoint hides what would
           fall; so 17 and one schedule keep the last weights.
Held       D, BC policy, reward model; D_g of one Grow.
Takes      about 7 minutes a seed on one core.
"""

import numpy as np

from experiments.plot import COLOURS, GREY, curve, label_ends, panels
from experiments.verdicts import Claim, Comparison

RISING = (0.5, 0.7, 0.85, 0.95, 0.98, 0.99)
SCHEDULES = {
    "50, 70, 85, 95 .. %": dict(thresholds=RISING),
    "the same, last weights": dict(thresholds=RISING, checkpoint="last"),
    "as many at random": dict(filter="random", thresholds=RISING),
    "20, 30, 40, 50 .. %": dict(thresholds=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
    "90, 95, 98, 99 .. %": dict(thresholds=(0.9, 0.95, 0.98, 0.99, 0.995, 0.999)),
    "always 50 %": dict(thresholds=(0.5,)),
}
USUAL, LAST, RANDOM = [*SCHEDULES][:3]
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
SAMPLES = (1, 8, 64)
# a figure of a row as it is sampled, at temperature 0.8, and greedy: what only sharpens a policy
# raises the first, and not the last
WAYS = {"": "reward", ", at T = 0.8": "cool_reward", ", greedy": "greedy_reward"}


def points(lab):
    for name, schedule in SCHEDULES.items():
        for row in lab.rest(grow=1, improve=(6,), **schedule):
            yield {"part": "schedule", "schedule": name, **row}
    for n in SAMPLES:
        for row in lab.rest(grow=1, improve=(6,), thresholds=RISING, samples=n):
            yield {"part": "samples", "n": n, **row}
    mean = lab.cached("mean-of-D_g", {}, lambda: float(lab.first_D_g()[0].reward.mean()))
    for q in QUANTILES:
        for name in ("quantile", "random"):
            rows = lab.rest(grow=1, improve=(1,), unfiltered=False, filter=name, thresholds=(q,),
                            checkpoint="last")
            yield {"part": "once", "filter": name, "quantile": q, "mean_reward": mean, **rows[1],
                   **{f"before_{key}": rows[0][key] for key in WAYS.values()}}


def claims(p):
    rows = p.where(part="schedule", name="ReST")
    for how, key in WAYS.items():
        yield Claim(f"1{how}", "each further Improve on a fixed D_g raises the reward", [
            rows.where(schedule=USUAL).compare(f"(1,{i}) − (1,{i - 1})", "+", key, dict(improve=i),
                                               dict(improve=i - 1)) for i in range(1, 5)])
    yield Claim("", "reward at (1,i), filtered − as many pairs at random", [
        rows.compare(f"i = {i}{how}", "+", key, dict(schedule=USUAL, improve=i),
                     dict(schedule=RANDOM, improve=i))
        for i in (1, 4) for how, key in WAYS.items()])
    best = {n: best_step(p.where(part="samples", n=n, name="ReST")) for n in SAMPLES}
    yield Claim("2", "the right number of Improves depends on the data (here: on the samples)", [
        Comparison(f"best I with {b} samples a source − with {a}", "+", best[b] - best[a])
        for a, b in ((1, 8), (1, 64), (8, 64))], existence=True)
    once = p.where(part="once", filter="quantile")
    above = [q for q in QUANTILES if (once.values("threshold", quantile=q)
                                      >= once.values("mean_reward", quantile=q)).all()]
    for how, key in WAYS.items():
        gains = {q: Comparison(f"τ at {q:.0%} of D_g", "+", once.difference(
            key, dict(quantile=q), dict(quantile=q), minus=f"before_{key}")) for q in QUANTILES}
        yield Claim(f"17{how}", "where τ ≥ V(π), the next V is higher",
                    [gains[q] for q in above])
        yield Claim("", f"the same where τ < V(π){how}",
                    [gains[q] for q in QUANTILES if q not in above])
    yield Claim("", "one Improve, filtered − as many pairs at random, last weights", [
        p.where(part="once").compare(f"τ at {q:.0%} of D_g", "+", "reward",
                                     dict(filter="quantile", quantile=q),
                                     dict(filter="random", quantile=q)) for q in QUANTILES])


def best_step(p):
    """For each seed the I of the highest reward; the first, where later ones changed nothing."""
    steps = sorted({point["improve"] for point in p.points})
    return np.argmax([p.values("reward", improve=i) for i in steps], axis=0)


def figure(p):
    picture, axes = panels("improve_steps", 2, 13, 4.6)
    rows = p.where(part="schedule", name="ReST")
    for ax, key in zip(axes, ("reward", "oracle")):
        ends = []
        for name, colour in zip(SCHEDULES, COLOURS):
            bc = p.where(part="schedule", schedule=name, name="BC")
            end = curve(ax, rows.where(schedule=name), "improve", key, colour, baseline=bc)
            ends.append((end, name, colour))
        ax.axhline(0, color=GREY, lw=1)
        ax.set(title=f"{key} above BC, points of 100", xlabel="Improve step I, after one Grow")
        label_ends(ax, ends)
    return picture
