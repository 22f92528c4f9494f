"""Grow steps: does drawing again from the better policy help, and does the truth agree?

Claims     3: a second Grow with its Improves raises the reward further. (12, that by human score
           one Grow is best although the reward keeps rising: over_optimisation.py.)
Varied     the number of Grows, 1 to 4. As a second Grow also means more samples and more Improves:
           one Grow of twice the samples, and one Grow of six Improves.
Held       everything else, as in `python train_toy.py`: Improves (4, 3, 3, 3).
Takes      about 2 minutes a seed on one core; it is the run that most others begin with.
"""

from experiments.improve_steps import RISING, WAYS
from experiments.plot import BLUE, GREEN, GREY, curve, label_ends, panels
from experiments.verdicts import Claim

MAIN = dict(grow=4)
ONE_GROW = {"twice the samples": dict(samples=16), "six Improves": {}}


def points(lab):
    rows = lab.rest(**MAIN)
    for step, row in enumerate(rows):
        yield {"variant": "usual", "step": step, **row}
    for name, changes in ONE_GROW.items():
        samples = changes.get("samples", lab.usual.samples)
        rows = lab.rest(grow=1, improve=(6,), thresholds=RISING, samples=samples)
        yield {"variant": name, **rows[-1 if name == "six Improves" else -3]}


def last(g):
    return dict(variant="usual", grow=g, improve=4 if g == 1 else 3)


def claims(p):
    for how, key in WAYS.items():
        yield Claim(f"3{how}", "a second Grow with its Improves raises the reward further", [
            p.compare("(2,3) − (1,4)", "+", key, last(2), last(1)),
            *(p.compare(f"(2,3) − one Grow, {name}", "+", key, last(2), dict(variant=name))
              for name in ONE_GROW)])
    yield Claim("", "further Grows", [
        p.compare(f"{key} ({g},3) − ({g - 1},{4 if g == 2 else 3})", "+", key, last(g), last(g - 1))
        for g in (2, 3, 4) for key in ("reward", "oracle")])


def figure(p):
    picture, (ax,) = panels("grow_steps", 1, 9, 4.6)
    p = p.where(variant="usual")
    bc = p.where(name="BC")
    ends = [(curve(ax, p, "step", key, colour, baseline=bc), key, colour)
            for key, colour in (("reward", BLUE), ("oracle", GREEN))]
    rows = [q for q in p.points if q["seed"] == p.seeds[0]]
    for a, b in zip(rows, rows[1:]):
        if a["grow"] != b["grow"]:
            ax.axvline(b["step"] - 0.5, color=GREY, lw=0.8)
    ax.set_xticks([r["step"] for r in rows], ["BC", *(f"G{r['grow']}\nI{r['improve']}"
                                                       for r in rows[1:])])
    ax.tick_params("x", labelsize=10)
    ax.set(title="above BC, points of 100", xlabel="step: Grow G, Improve I")
    label_ends(ax, ends)
    return picture
