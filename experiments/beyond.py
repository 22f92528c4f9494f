"""Beyond the paper: what its authors leave as future work.

Claims     21, second half: retraining the reward model as the policy moves should help (proposed,
           untested). And: a Grow that mixes temperatures.
Varied     whether the ratings are all of BC's outputs, or shared out over the two Grows, each half
           of the policy that grows (equal number of ratings), with many ratings and with few; and
           Grow at 0.8, or a quarter of its samples at each of 0.4, 0.8, 1.2, 1.6.
Held       D, BC policy, ratings in all, samples, Improves (4, 3).
Takes      about 4 minutes a seed on one core.

Two reward models do not have one scale, so that here the oracle decides.
"""

from experiments.grow_steps import MAIN
from experiments.losses import SHARE
from experiments.plot import BLUE, GREY, ORANGE, curve, label_ends, panels
from experiments.verdicts import Claim

VARIANTS = {"usual": {}, "refreshed": dict(refresh=True),
            "mixed": dict(temperature=(0.4, 0.8, 1.2, 1.6))}


def points(lab):
    for ratings in SHARE:
        model = dict(rated_sources=lab.usual.rated_sources // SHARE[ratings])
        for name, changes in VARIANTS.items():
            if name == "mixed" and ratings != "many":
                continue
            rows = lab.rest(**{**(dict(grow=2) if changes else MAIN), **model, **changes})
            for step, row in enumerate(rows):
                if row["grow"] <= 2:
                    yield {"ratings": ratings, "variant": name, "step": step, **row}


def claims(p):
    end = dict(grow=2, improve=3)
    refreshed, usual = ({**end, "variant": name} for name in ("refreshed", "usual"))
    yield Claim("21, retraining", "retraining the reward model as the policy moves can help", [
        p.where(ratings=r).compare(f"oracle at (2,3), refreshed − not, {r} ratings", "+", "oracle",
                                   refreshed, usual) for r in SHARE], existence=True)
    many = p.where(ratings="many")
    yield Claim("", "a Grow that mixes temperatures − one at 0.8", [
        many.compare(f"{key} at (2,3)", "+", key, {**end, "variant": "mixed"}, usual)
        for key in ("reward", "oracle")])


def figure(p):
    picture, axes = panels("beyond", 2, 12, 4.6)
    colours = {"usual": GREY, "refreshed": BLUE, "mixed": ORANGE}
    names = {"usual": "as usual", "refreshed": "ratings shared out", "mixed": "mixed temperatures"}
    for ax, ratings in zip(axes, SHARE):
        ends = []
        for variant, colour in colours.items():
            rows = p.where(ratings=ratings, variant=variant)
            if rows.points:
                end = curve(ax, rows, "step", "oracle", colour, baseline=rows.where(name="BC"))
                ends.append((end, names[variant], colour))
        first = [q for q in p.points if q["seed"] == p.seeds[0] and q["variant"] == "usual"
                 and q["ratings"] == ratings]
        ax.set_xticks([q["step"] for q in first], ["BC", *(f"G{q['grow']}\nI{q['improve']}"
                                                            for q in first[1:])])
        ax.set(title=f"oracle above BC, points of 100; {ratings} ratings",
               xlabel="step: Grow G, Improve I")
        label_ends(ax, ends)
    return picture
