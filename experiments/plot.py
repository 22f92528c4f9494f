"""What the pictures share: a line through the means over seeds, its interval, its name at its end.

Colours and style are those of infra/figures.py. A band or a bar is the 95 % interval of the mean
over the seeds, as in verdicts.py.
"""

import numpy as np

from experiments.verdicts import interval
from infra.figures import BLUE, GREEN, GREY, STYLE, VERMILLION, label_ends, panels, save_png

PINK, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
COLOURS = (BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, BLACK, GREY)


def curve(ax, points, x, key, colour, style="-", baseline=None, scale=100):
    """Mean and interval of `key` against the field `x` -> the mean at the end.

    points: Points. baseline: Points of which each seed has one, whose `key` is taken off, so that
    the band shows how sure the difference is.
    """
    at = sorted({p[x] for p in points.points})
    base = baseline.values(key, scale) if baseline else 0.0
    means, halves = np.array([interval(points.values(key, scale, **{x: value}) - base)
                              for value in at]).T
    ax.plot(at, means, style, color=colour, marker="o", clip_on=False)
    if np.isfinite(halves).all():
        ax.fill_between(at, means - halves, means + halves, color=colour, alpha=0.15, lw=0)
    return means[-1]


def path(ax, points, x, y, colour, baseline, scale=100):
    """A line through the means of `x` and of what `y` is above the baseline, at each "step"; an
    interval at its end -> the mean there. baseline: as for `curve`."""
    steps = sorted({p["step"] for p in points.points})
    base = baseline.values(y, scale)
    at = np.array([[points.values(x, 1, step=k), points.values(y, scale, step=k) - base]
                   for k in steps])  # (steps, 2, seeds)
    ax.plot(*at.mean(2).T, color=colour, marker="o", clip_on=False)
    end, half = interval(at[-1, 1])
    if np.isfinite(half):
        ax.errorbar(at[-1, 0].mean(), end, yerr=half, color=colour, lw=1.5, clip_on=False)
    return end


def bars(ax, names, differences, colours):
    """Horizontal bars of means with their intervals; the value stands beside each."""
    for k, (values, colour) in enumerate(zip(differences, colours)):
        mean, half = interval(values)
        half = half if np.isfinite(half) else 0.0
        ax.barh(k, mean, color=colour, alpha=0.8, height=0.65)
        ax.errorbar(mean, k, xerr=half, color=BLACK, lw=1.2, capsize=3)
        right = mean >= 0
        ax.annotate(f"{mean:+.1f}", (mean + half if right else mean - half, k),
                    (5 if right else -5, 0), textcoords="offset points", va="center",
                    ha="left" if right else "right")
    ax.axvline(0, color=GREY, lw=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    ax.margins(x=0.18)


def save_figure(make, path):
    """What make() draws, as a PNG; without matplotlib, a line that says so."""
    try:
        import matplotlib
    except ImportError:
        return print("no pictures: matplotlib is not installed")
    with matplotlib.rc_context(STYLE):
        save_png(make(), path)
