"""How a claim is judged: paired differences over seeds, their intervals, and one rule for all.

The rule, written down before the runs. A claim is made of comparisons; each is a difference between
two policies of the same seed, which share the language, the demonstrations, the reward model and
the random numbers. With its 95 % interval over the seeds (Student's t), in points of 100, it is

    expected    reproduced                      contradicted
    "+"         the interval lies above 0       it lies below 0
    "-"         it lies below 0                 it lies above 0
    "="         it lies within -2 .. 2          it lies outside of -2 .. 2
    ">="        it lies above -2                it lies below -2

and undecided otherwise. A claim is contradicted if one of its comparisons is, reproduced if all of
them are, and undecided otherwise. One in twenty intervals misses the truth, and there are about a
hundred: a verdict that hangs on one comparison near its line is worth little.
"""

from dataclasses import dataclass, field

import numpy as np

# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom; beyond them the last one, which is
# a little too wide
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
MARGIN = 2.0
REPRODUCED, CONTRADICTED, UNDECIDED = "reproduced", "contradicted", "undecided"


def interval(values):
    """Mean and half width of the 95 % interval of n values; of one value it is unbounded."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("inf")
    t = T975[min(len(values) - 1, len(T975)) - 1]
    return float(values.mean()), float(t * values.std(ddof=1) / np.sqrt(len(values)))


@dataclass
class Comparison:
    """differences: one for each seed, in points."""

    name: str
    expected: str
    differences: list

    def verdict(self):
        mean, half = interval(self.differences)
        low, high = mean - half, mean + half
        inside, outside = {"+": (low > 0, high < 0), "-": (high < 0, low > 0),
                           ">=": (low > -MARGIN, high < -MARGIN),
                           "=": (-MARGIN <= low and high <= MARGIN,
                                 low > MARGIN or high < -MARGIN)}[self.expected]
        return REPRODUCED if inside else CONTRADICTED if outside else UNDECIDED

    def __str__(self):
        mean, half = interval(self.differences)
        return f"{self.name} {mean:+.1f} ± {half:.1f}" if np.isfinite(half) else (
            f"{self.name} {mean:+.1f}")


@dataclass
class Claim:
    """number: of the paper's claim in the scoreboard, "" for what the paper does not claim."""

    number: str
    text: str
    comparisons: list = field(default_factory=list)

    def verdict(self):
        verdicts = [c.verdict() for c in self.comparisons]
        if CONTRADICTED in verdicts:
            return CONTRADICTED
        return REPRODUCED if set(verdicts) == {REPRODUCED} else UNDECIDED


class Points:
    """The points of an experiment, dicts with a "seed", and differences between them."""

    def __init__(self, points):
        self.points = points
        self.seeds = sorted({point["seed"] for point in points})

    def where(self, **conditions):
        return Points([p for p in self.points
                       if all(p.get(k) == v for k, v in conditions.items())])

    def of_seeds(self, seeds):
        return Points([p for p in self.points if p["seed"] in seeds])

    def whole(self, x):
        """Those whose value of the field x there is for each seed."""
        seeds = {value: {p["seed"] for p in self.points if p[x] == value}
                 for value in {p[x] for p in self.points}}
        return Points([p for p in self.points if seeds[p[x]] == set(self.seeds)])

    def values(self, key, scale=100, **conditions):
        """One value for each seed, in points; ValueError if a seed has none, or more than one."""
        found = self.where(**conditions)
        if [p["seed"] for p in found.points] != self.seeds:
            seeds = [p["seed"] for p in found.points]
            raise ValueError(f"{conditions} fits points of the seeds {seeds}, "
                             f"not one for each of {self.seeds}")
        return scale * np.array([p[key] for p in found.points], float)

    def difference(self, key, a, b, scale=100, minus=None):
        """`key` where a, less `minus` (by default `key` too) where b -> one value for each seed.

        a and b are conditions on fields.
        """
        return (self.values(key, scale, **a) - self.values(minus or key, scale, **b)).tolist()

    def compare(self, name, expected, key, a, b, **kwargs):
        return Comparison(name, expected, self.difference(key, a, b, **kwargs))
