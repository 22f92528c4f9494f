"""Improve steps: how many, and how fast should the threshold rise?

Claims     1: each further Improve on a fixed D_g raises the mean reward. 2: the right number of
           Improves depends on the data. 17: where τ ≥ V(π), the next policy's V rises.
Varied     the number of Improves, 0 to 6; the schedule of thresholds; samples per source, 1, 8 or
           64; and the threshold of one Improve straight from BC. To go back to the best checkpoint
           hides what would fall; so 1 and 17 are also judged by runs that keep the last weights.
Held       D, BC policy, reward model; D_g of one Grow.
Takes      about 5 minutes a seed on one core.
"""

import numpy as np

from experiments.plot import COLOURS, GREY, curve, label_ends, panels
from experiments.verdicts import Claim, Comparison

RISING = (0.5, 0.7, 0.85, 0.95, 0.98, 0.99)
SCHEDULES = {
    "50, 70, 85, 95 .. %": dict(thresholds=RISING),
    "the same, last weights": dict(thresholds=RISING, checkpoint="last"),
    "20, 30, 40, 50 .. %": dict(thresholds=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
    "90, 95, 98, 99 .. %": dict(thresholds=(0.9, 0.95, 0.98, 0.99, 0.995, 0.999)),
    "always 50 %": dict(thresholds=(0.5,)),
    "τ = 0.7, 0.8, 0.9, 0.95": dict(filter="threshold", thresholds=(0.7, 0.8, 0.9, 0.95, 0.99)),
}
USUAL, LAST = [*SCHEDULES][:2]
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
SAMPLES = (1, 8, 64)


def points(lab):
    for name, schedule in SCHEDULES.items():
        for row in lab.rest(grow=1, improve=(6,), **schedule):
            yield {"part": "schedule", "schedule": name, **row}
    for n in SAMPLES:
        for row in lab.rest(grow=1, improve=(6,), thresholds=RISING, samples=n):
            yield {"part": "samples", "n": n, **row}
    mean = lab.cached("mean-of-D_g", {}, lambda: float(lab.first_D_g()[0].reward.mean()))
    for q in QUANTILES:
        rows = lab.rest(grow=1, improve=(1,), unfiltered=False, thresholds=(q,), checkpoint="last")
        yield {"part": "once", "quantile": q, "mean_reward": mean, **rows[1],
               "before": rows[0]["reward"]}


def claims(p):
    yield Claim("1", "each further Improve on a fixed D_g raises the reward", [
        p.where(part="schedule", schedule=schedule, name="ReST").compare(
            f"(1,{i}) − (1,{i - 1}){how}", "+", "reward", dict(improve=i), dict(improve=i - 1))
        for schedule, how in ((USUAL, ""), (LAST, ", last weights")) for i in range(1, 5)])
    few, many = (best_step(p.where(part="samples", n=n, name="ReST")) for n in (1, 64))
    yield Claim("2", "the right number of Improves depends on the data", [
        Comparison("best I with 64 samples a source − with 1", "+", many - few)])
    once = p.where(part="once")
    yield Claim("17", "where τ ≥ V(π), the next V is higher", [
        Comparison(f"τ at {q:.0%} of D_g", "+",
             once.values("reward", quantile=q) - once.values("before", quantile=q))
        for q in QUANTILES
        if (once.values("threshold", quantile=q) >= once.values("mean_reward", quantile=q)).all()])


def best_step(p):
    """For each seed the I of the highest reward; the first, where later ones changed nothing."""
    steps = sorted({point["improve"] for point in p.points})
    return np.argmax([p.values("reward", improve=i) for i in steps], axis=0)


def figure(p):
    picture, axes = panels("improve_steps", 2, 13, 4.6)
    rows = p.where(part="schedule", name="ReST")
    for ax, key, title in zip(axes, ("reward", "oracle"), ("reward", "oracle")):
        ends = []
        for name, colour in zip(SCHEDULES, COLOURS):
            bc = p.where(part="schedule", schedule=name, name="BC")
            end = curve(ax, rows.where(schedule=name), "improve", key, colour, baseline=bc)
            ends.append((end, name, colour))
        ax.axhline(0, color=GREY, lw=1)
        ax.set(title=f"{title} above BC, points of 100", xlabel="Improve step I, after one Grow")
        label_ends(ax, ends)
    return picture
