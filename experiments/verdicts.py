"""How a claim is judged: paired differences over seeds, their intervals, and one rule for all.

The rule, written down before the runs. A claim is made of comparisons; each is a difference between
two policies of the same seed, which share the language, the demonstrations, the reward model and
the random numbers, in points of 100. The margin m is one point (half a point of BLEU): less than
that is "equal". With the 95 % interval low .. high of its mean over the seeds (Student's t), it is

    expected    reproduced                contradicted, if not reproduced
    "+"         low > 0                   high < m     no gain of a point
    "-"         high < 0                  low > -m
    "="         -m < low and high < m     low > 0 or high < 0, with a mean beyond the margin
    ">="        low > -m                  high < 0

and open otherwise. A claim is reproduced if all of its comparisons are, contradicted if one is, and
open otherwise. A claim that something *can* happen, or depends on the data, is judged over several
settings: reproduced if it is in one of them, contradicted if it is in none and open in none.

One interval in twenty misses the truth, and there are over a hundred. So each comparison that
counts as reproduced also has a p value, and a claim says whether it stands after Holm's correction
over the whole scoreboard: at 5 %, not one of those that stand should be wrong.
"""

from dataclasses import dataclass, field

import numpy as np

# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom; beyond them the last one, which is
# a little too wide
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
MARGIN = 1.0
REPRODUCED, CONTRADICTED, OPEN = "reproduced", "contradicted", "open"


def interval(values):
    """Mean and half width of the 95 % interval of n values; of one value it is unbounded."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("inf")
    t = T975[min(len(values) - 1, len(T975)) - 1]
    return float(values.mean()), float(t * values.std(ddof=1) / np.sqrt(len(values)))


def p_above(values, line):
    """The p value of "the mean is not above this line", by Student's t, integrated numerically."""
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return 1.0
    error = values.std(ddof=1) / np.sqrt(n)
    if error == 0:
        return float(values.mean() <= line)
    t = (values.mean() - line) / error
    angle = np.linspace(-np.pi / 2, np.pi / 2, 20001)  # t = √(n-1) tan(angle): a bounded range
    density = np.cos(angle) ** (n - 2)
    beyond = angle >= np.arctan(t / np.sqrt(n - 1))
    return float(density[beyond].sum() / density.sum())


@dataclass
class Comparison:
    """differences: one for each seed, in points."""

    name: str
    expected: str
    differences: list
    margin: float = MARGIN

    def verdict(self):
        mean, half = interval(self.differences)
        low, high, m = mean - half, mean + half, self.margin
        reproduced, contradicted = {
            "+": (low > 0, high < m), "-": (high < 0, low > -m), ">=": (low > -m, high < 0),
            "=": (-m < low and high < m, (low > 0 or high < 0) and abs(mean) > m)}[self.expected]
        return REPRODUCED if reproduced else CONTRADICTED if contradicted else OPEN

    def p_value(self):
        """Of what is expected being untrue."""
        up, down = np.array(self.differences), -np.array(self.differences)
        return {"+": lambda: p_above(up, 0.0), "-": lambda: p_above(down, 0.0),
                ">=": lambda: p_above(up, -self.margin),
                "=": lambda: max(p_above(up, -self.margin), p_above(down, -self.margin))
                }[self.expected]()

    def __str__(self):
        mean, half = interval(self.differences)
        return f"{self.name} {mean:+.1f} ± {half:.1f}" if np.isfinite(half) else (
            f"{self.name} {mean:+.1f}")


@dataclass
class Claim:
    """number: of the paper's claim in the scoreboard, "" for what the paper does not claim.

    existence: one of the comparisons is enough.
    """

    number: str
    text: str
    comparisons: list = field(default_factory=list)
    existence: bool = False

    def verdict(self):
        verdicts = [c.verdict() for c in self.comparisons]
        first, last = (REPRODUCED, CONTRADICTED) if self.existence else (CONTRADICTED, REPRODUCED)
        if first in verdicts:
            return first
        return last if set(verdicts) == {last} else OPEN

    def stands(self, line):
        """Whether it is reproduced by comparisons of a p value up to this line."""
        proven = [c.verdict() == REPRODUCED and c.p_value() <= line for c in self.comparisons]
        return any(proven) if self.existence else all(proven)


def holm(comparisons, level=0.05):
    """The largest p value that counts: Holm's correction over all that are reproduced."""
    values = sorted(c.p_value() for c in comparisons if c.verdict() == REPRODUCED)
    line = 0.0
    for k, p in enumerate(values):
        if p > level / (len(comparisons) - k):
            break
        line = p
    return line


class Points:
    """The points of an experiment, dicts with a "seed", and differences between them."""

    def __init__(self, points):
        self.points = points
        self.seeds = sorted({point["seed"] for point in points})

    def where(self, **conditions):
        return Points([p for p in self.points
                       if all(p.get(k) == v for k, v in conditions.items())])

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

    def compare(self, name, expected, key, a, b, margin=MARGIN, **kwargs):
        return Comparison(name, expected, self.difference(key, a, b, **kwargs), margin)
