"""Filters: one threshold for all sources, or one for each?

Claims     14: the percentile filter's gain grows with p, saturates near 90, and is about that of
           the global threshold. 15: the γ filter is about equal to it; schedule and number of steps
           matter.
Varied     the filter (global quantile; percentile, γ and top-k within each source; the first two
           also with ≥ for >; and as many pairs at random) and how much it keeps: for each p, the
           others keep the same share of D_g. γ can keep half at most. One Improve straight from BC.
           And schedules of four Improves: rising percentile, rising γ, percentile 90 four times.
Held       BC policy, reward model, and a D_g of 32 samples for each of a quarter of the sources, so
           that p = 95 differs from p = 90: equal samples once, as a strict line drops all copies of
           a source's best, and without D, most of whose pairs would stand alone with their source,
           where no line within a source can be drawn.
Takes      about 5 minutes a seed on one core.
"""

import numpy as np

from experiments.plot import COLOURS, curve, label_ends, panels
from experiments.verdicts import Claim, Comparison, Points
from rest import FILTERS

PERCENTILES = (0, 25, 50, 65, 75, 90, 95)
FILTER = {"percentile": dict(filter="percentile"), "global": dict(filter="quantile"),
          "γ": dict(filter="gamma"), "top-k": dict(filter="top"),
          "percentile, ≥": dict(filter="percentile", inclusive=True),
          "global, ≥": dict(filter="quantile", inclusive=True), "random": dict(filter="random")}
SCHEDULES = {"rising percentile": dict(filter="percentile", thresholds=(50, 70, 80, 90)),
             "rising γ": dict(filter="gamma", thresholds=(0.2, 0.4, 0.6, 0.8)),
             "percentile 90 four times": dict(filter="percentile", thresholds=(90,))}


def points(lab):
    pool = dict(samples=32, grow_sources=lab.usual.demonstrations // 4, grow=1, human_data="out",
                distinct=True)
    levels = lab.cached("levels", pool, lambda: equal_levels(lab.first_D_g(**pool)[0]))
    for p, level in zip(PERCENTILES, levels):
        for name, value in level["values"].items():
            bc, row = lab.rest(**pool, improve=(1,), unfiltered=False, thresholds=(value,),
                               **FILTER[name])
            yield {"part": "once", "filter": name, "p": p, "kept": level["kept"], **row,
                   "above_bc": row["reward"] - bc["reward"],
                   "oracle_above_bc": row["oracle"] - bc["oracle"]}
    for name, schedule in SCHEDULES.items():
        for row in lab.rest(**pool, improve=(4,), **schedule):
            yield {"part": "schedule", "schedule": name, **row}


def equal_levels(D_g):
    """For each percentile each filter's threshold that keeps as much of D_g, if there is one."""
    def share(name, value):
        how = FILTER[name]
        keep = FILTERS[how["filter"]].keep
        return keep(D_g.source, D_g.reward, value, how.get("inclusive", False)).mean()

    def bisected(name, low, high):  # the higher the threshold, the less is kept
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if share(name, middle) > kept else (low, middle)
        return middle

    found = []
    for p in PERCENTILES:
        kept = share("percentile", p)
        values = {"percentile": float(p), "percentile, ≥": bisected("percentile, ≥", 0.0, 100.0),
                  "global": float(1 - kept), "global, ≥": float(1 - kept),
                  "random": float(1 - kept), "γ": bisected("γ", 0.0, 1.0),
                  "top-k": min(map(float, range(1, 33)),
                               key=lambda k: abs(share("top-k", k) - kept))}
        found.append({"kept": float(kept), "values": {
            name: v for name, v in values.items() if abs(share(name, v) - kept) < 0.02}})
    return found


def claims(p):
    once = p.where(part="once")

    def over(name, expected, a, b):
        return once.compare(name, expected, "above_bc", *(dict(filter=f, p=q) for f, q in (a, b)))

    def there(q, name):
        """Whether the filter can keep that share on every seed."""
        return once.where(filter=name, p=q).seeds == once.seeds

    gain = {q: once.values("above_bc", filter="percentile", p=q) for q in PERCENTILES}
    yield Claim("14", "the percentile filter's gain grows with p, saturates near 90, about equals "
                "the global threshold's", [
                    over("p = 50 − 0", "+", ("percentile", 50), ("percentile", 0)),
                    over("p = 90 − 50", "+", ("percentile", 90), ("percentile", 50)),
                    Comparison("gain for 10 more of p, from 50 to 90 − from 90 to 95", "+",
                               (gain[90] - gain[50]) / 4 - 2 * (gain[95] - gain[90])),
                    *(over(f"percentile − global, p = {q}", "=", ("percentile", q), ("global", q))
                      for q in (50, 75, 90))])
    end = {name: dict(part="schedule", schedule=name, improve=4) for name in SCHEDULES}
    yield Claim("15", "γ about equals percentile", [
        *(over(f"γ − percentile, p = {q}", "=", ("γ", q), ("percentile", q))
          for q in (50, 65, 75) if there(q, "γ")),
        p.compare("schedules at (1,4): rising γ − rising percentile", "=", "reward",
                  end["rising γ"], end["rising percentile"])])
    yield Claim("15, schedule", "the schedule matters", [
        p.compare(f"{a} − {b}", "+", "reward", end[a], end[b])
        for a in SCHEDULES for b in SCHEDULES if a != b], existence=True)
    yield Claim("", "a filter, strict − the same with ≥, at equal shares", [
        over(f"{name}, p = {q}", "=", (name, q), (f"{name}, ≥", q))
        for name in ("percentile", "global") for q in (50, 75, 90)
        if there(q, name) and there(q, f"{name}, ≥")])
    yield Claim("", "a filter − as many pairs at random", [
        over(f"{name}, p = {q}", "+", (name, q), ("random", q))
        for name in ("percentile", "global", "γ", "top-k") for q in (50, 90)
        if there(q, name) and there(q, "random")])


def figure(p):
    picture, axes = panels("filters", 2, 12, 4.6)
    once = Points([{**q, "level": PERCENTILES.index(q["p"])} for q in p.where(part="once").points])
    for ax, key, title in zip(axes, ("above_bc", "oracle_above_bc"), ("reward", "oracle")):
        ends = []
        shown = [name for name in FILTER if "≥" not in name]  # these two equal the strict ones
        for name, colour in zip(shown, COLOURS):
            end = curve(ax, once.where(filter=name).whole("p"), "level", key, colour)
            ends.append((end, name, colour))
        kept = {x: np.mean([q["kept"] for q in once.points if q["p"] == x]) for x in PERCENTILES}
        ax.set_xticks(range(len(kept)), [f"{x}\n{share:.0%}" for x, share in kept.items()])
        ax.set(title=f"{title} above BC after one Improve, points of 100",
               xlabel="percentile p, and share of D_g kept")
        label_ends(ax, ends)
    return picture
