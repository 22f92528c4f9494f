"""What an Improve keeps of D_g: the paper's threshold, and the other filters that it tried.

Each filter is a pure function of (source (n,), reward (n,), value) -> booleans (n,), and keeps what
lies *strictly* above its line: the paper's F(x, y; τ) = 1[R(x, y) > τ]; with ties=True, what lies
on the line too. A global line also chooses between sources, and so favours easy ones; a line for
each source does not. D's own pairs are filtered like the rest, unless settings.human is set.
"""

import numpy as np


def above(source, reward, tau, ties=False):
    """The paper's F(x, y; τ) = 1[R(x, y) > τ]."""
    return reward >= tau if ties else reward > tau


def above_quantile(source, reward, q, ties=False):
    """The same, τ given as the quantile q in [0, 1] of all rewards of D_g."""
    return above(source, reward, np.quantile(reward, q), ties)


def above_percentile(source, reward, p, ties=False):
    """Above the percentile p in [0, 100] of its own source's rewards (A.7)."""
    order, first, counts = by_source(source, reward)
    ordered = reward[order].astype(np.float64)
    at = first + p / 100 * (counts - 1)  # linear interpolation, as np.percentile does
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, first + counts - 1)
    tau = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return back(order, above(source, ordered, np.repeat(tau, counts), ties))


def above_gamma(source, reward, gamma, ties=False):
    """τ(x) = γ max + (1 - γ) mean of its own source's rewards, γ rising (A.7)."""
    order, first, counts = by_source(source, reward)
    ordered = reward[order].astype(np.float64)
    mean = np.add.reduceat(ordered, first) / counts
    best = ordered[first + counts - 1]
    tau = best - (1 - gamma) * (best - mean)  # so written, exact where all are equal
    return back(order, above(source, ordered, np.repeat(tau, counts), ties))


def top(source, reward, k, ties=False):
    """The k best of each source; of equal ones the earlier, whatever `ties` says."""
    order, first, counts = by_source(source, reward)
    from_end = np.repeat(first + counts, counts) - np.arange(len(order))  # 1 for the best
    return back(order, from_end <= k)


def first_of_each(source, kept, cap):
    """Of what is kept, the first `cap` of each source: of one Grow's samples, as good as any."""
    return kept & top(source, np.where(kept, 1.0, 0.0), cap)


def by_source(source, reward):
    """The order by source, then reward; where each source begins in it, and its count."""
    order = np.lexsort((-np.arange(len(source)), reward, source))
    _, first, counts = np.unique(source[order], return_index=True, return_counts=True)
    return order, first, counts


def back(order, kept):
    out = np.empty(len(order), bool)
    out[order] = kept
    return out


FILTERS = {"threshold": above, "quantile": above_quantile, "percentile": above_percentile,
           "gamma": above_gamma, "top": top}
GLOBAL = ("threshold", "quantile")  # one τ for all sources; the others have one for each
# for Improve 1, 2, ...; those of threshold are the paper's, from its second one on
THRESHOLDS = {"threshold": (0.7, 0.8, 0.9, 0.95, 0.99),
              "quantile": (0.5, 0.7, 0.85, 0.95, 0.98), "percentile": (50, 70, 80, 90, 95),
              "gamma": (0.2, 0.4, 0.6, 0.8, 0.9), "top": (4, 3, 2, 1)}
HIGHEST = {"percentile": 100, "top": float("inf")}  # of a threshold; 1 for the others


def select(D_g, settings, i):
    """The filter of Improve i -> (booleans (n,), τ): what it keeps, and the line it draws.

    i = 0 keeps everything, τ = None. For a filter within each source, τ is the setting's value.
    """
    if i == 0:
        return np.ones(len(D_g), bool), None
    value = settings.thresholds[min(i, len(settings.thresholds)) - 1]
    kept = FILTERS[settings.filter](D_g.source, D_g.reward, value, settings.ties)
    if settings.human == "whole":
        kept = kept | D_g.human
    if settings.cap:
        kept = kept & D_g.human | first_of_each(D_g.source, kept & ~D_g.human, settings.cap)
    tau = np.quantile(D_g.reward, value) if settings.filter == "quantile" else value
    return kept, float(tau)
