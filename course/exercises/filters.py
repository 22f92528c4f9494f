"""The filters: one line for all, a line for each source, and the line of the paper's appendix."""

import numpy as np

import rest
from course.kit import Exercise, Mistake

REWARD = np.array([0.2, 0.9, 0.5, 0.5, 0.8, 0.1, 0.7, 0.7, 0.4, 0.6], np.float64)
SOURCE = np.array([3, 3, 3, 3, 0, 0, 0, 7, 7, 7])  # three sources, not in order


def global_line(answer):
    rng = np.random.default_rng(0)
    reward = rng.random(50)
    return {"kept": rest.above(reward, 0.6),
            "kept, a τ for each": rest.above(reward, rng.random(50))}


def ties(answer):
    """Rewards that equal τ, with > and with ≥."""
    return {"kept with >": rest.above(REWARD, 0.5),
            "kept with ≥": rest.above(REWARD, 0.5, inclusive=True)}


def per_source(rule, *values):
    rng = np.random.default_rng(1)
    source, reward = rng.integers(0, 5, 60), rng.random(60)
    return {f"τ(x) at {value:g}, of pair ": rule(source, reward, value) for value in values} | {
        f"τ(x) at {value:g}, of ten pairs, pair ": rule(SOURCE, REWARD, value) for value in values}


EXERCISE = Exercise(
    name="filters",
    goal="You can say which pairs an Improve trains on: by a threshold, by a percentile of their "
         "source, by γ.",
    functions=("rest.above", "rest.percentile", "rest.gamma"),
    stages={
        "above: one threshold": global_line,
        "above: rewards that equal it": ties,
        "percentile: the median of each source":
            lambda answer: per_source(rest.percentile, 50),
        "percentile: 10, 75 and 100": lambda answer: per_source(rest.percentile, 10, 75, 100),
        "gamma: 0 is the mean, 1 the best": lambda answer: per_source(rest.gamma, 0.0, 1.0),
        "gamma: between them": lambda answer: per_source(rest.gamma, 0.2, 0.7),
    },
    mistakes=(
        Mistake("else reward > tau", "else reward < tau",
                "it keeps what lies below the line: the worst pairs."),
        Mistake("reward >= tau if inclusive else reward > tau", "reward >= tau",
                "what equals τ is kept. The paper's F is strict (>), unless inclusive is said."),
        Mistake("reward >= tau if inclusive else reward > tau", "reward > tau",
                "inclusive=True has no effect: then what equals τ is kept too."),
        Mistake("return (ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]",
                "return np.percentile(reward, p) * np.ones(len(reward))",
                "one line for all sources: percentile draws one within each source, of its own "
                "rewards."),
        Mistake("return (ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]",
                "return reward > (ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]",
                "these are booleans; what is wanted is the line τ(x) of each pair. `above` will do "
                "the comparing."),
        Mistake("at = last - (1 - p / 100) * (counts - 1)", "at = last - (1 - p) * (counts - 1)",
                "p is a number from 0 to 100, not a share."),
        Mistake("(ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]",
                "ordered[low][of]",
                "between two rewards np.percentile draws a straight line (linear interpolation); "
                "this takes the lower of the two."),
        Mistake("(ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]",
                "(ordered[low] + (at - low) * (ordered[high] - ordered[low]))",
                "one number for each source; τ(x) is wanted for each pair, in the order of the "
                "pairs."),
        Mistake("best - (1 - weight) * (best - mean)", "best - weight * (best - mean)",
                "γ stands on the wrong side: 1 is the best of a source, 0 its mean."),
        Mistake("mean = np.full(len(counts), -np.inf), np.bincount(of, reward) / counts",
                "mean = np.full(len(counts), -np.inf), reward.mean()",
                "the mean is that of all rewards; it is the mean of the pair's own source."),
        Mistake("np.maximum.at(best, of, reward)", "best[:] = reward.max()",
                "the best is that of all rewards; it is the best of the pair's own source."),
    ),
    hints=("A loop over the sources is right too: for s in np.unique(source): at = source == s ...",
           "np.percentile(reward[at], p) is the τ of all pairs of that source.",
           "gamma: γ max + (1 - γ) mean, both of reward[at]."),
    minutes=30, difficulty=1, points=3, after=("bc-loss",))
