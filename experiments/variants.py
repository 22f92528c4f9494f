"""What the experiments need beside the programs: a filter to compare with, other raters and humans.

Importing this adds them to FILTERS and TASKS; in the folder of a run their names stand for them.
"""

import numpy as np

import rest
import train_toy
from infra.seeds import stream


def at_random(source, reward, q):
    """A control for any filter: drops a share q of D_g at random, whatever the rewards are."""
    n = len(reward)
    return stream("at random", n).permutation(n) >= round(q * n)


rest.FILTERS["random"] = rest.Filter((0.5, 0.7, 0.85, 0.95, 0.98), choose=at_random,
                                     within_source=True)


class Hasty(train_toy.Language):
    """Raters who read the first six words only: what comes behind them has no say."""

    READ = 6

    def rate(self, sources, outputs, noise, rng):
        right = np.array([self.right(x, y)[: self.READ].mean() if len(y) > 1 else 0.0
                          for x, y in zip(sources, outputs)])
        return np.clip(np.round(6 * right + noise * rng.standard_normal(len(right))), 0, 6) / 6


class Verbose(train_toy.Language):
    """Raters who like length: a point of six for each word more than the source has."""

    def rate(self, sources, outputs, noise, rng):
        longer = np.array([max(0, len(y) - len(x)) for x, y in zip(sources, outputs)])
        exact = 6 * self.oracle(sources, outputs) + longer
        return np.clip(np.round(exact + noise * rng.standard_normal(len(exact))), 0, 6) / 6


class Careful(train_toy.Language):
    """Humans whose habits are rare: about as good as what a few Improves make of the others."""

    def __init__(self, settings):
        super().__init__(settings)
        self.habit_rate = 0.3 * self.habit_rate


train_toy.TASKS |= {"hasty": Hasty, "verbose": Verbose, "careful": Careful}
