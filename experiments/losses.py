"""Losses: is plain cloning of what the filter keeps as good as offline RL on it?

Claims     4: every variant beats BC on reward after one Grow, I = 0 included. 5: the BC loss beats
           GOLD, BVMPO and OAC at one Grow and one Improve. 6: it stays ahead as Improves are added.
           10: all variants beat BC with human raters. 13: BVMPO does well with humans, because
           value function and KL prevent over-fitting. The oracle stands in for the humans.
Varied     the loss of the Improves, 1 to 4, straight from BC; each with the settings that search.py
           found for it; with a reward model from many ratings and from few.
Held       D, BC policy, reward model, D_g.
Takes      about 4 minutes a seed on one core.
"""

from experiments.grow_steps import MAIN
from experiments.improve_steps import WAYS
from experiments.plot import COLOURS, GREY, curve, label_ends, panels
from experiments.search import FOUND
from experiments.verdicts import Claim

LOSSES = {"BC": "bc", "GOLD-p": "gold-p", "GOLD-s": "gold-s", "BVMPO": "bvmpo", "OAC": "oac"}
OTHERS = [name for name in LOSSES if name != "BC"]
SHARE = {"many": 1, "few": 5}  # of the ratings: one in so many


def points(lab):
    yield {"variant": "I = 0", "ratings": "many", **lab.rest(**MAIN)[1]}
    for ratings, part in SHARE.items():
        for name, loss in LOSSES.items():
            for row in lab.rest(grow=1, unfiltered=False, **FOUND[loss],
                                rated_sources=lab.usual.rated_sources // part):
                yield {"variant": name, "ratings": ratings, **row}


def at(name, i, ratings="many"):
    return dict(variant=name, ratings=ratings, name="ReST", improve=i)


def claims(p):
    bc = {ratings: dict(variant="BC", ratings=ratings, name="BC") for ratings in SHARE}
    for how, key in WAYS.items():
        yield Claim(f"4{how}", "every variant beats BC on reward after one Grow, I = 0 included", [
            p.compare("(1,0)", "+", key, dict(variant="I = 0"), bc["many"]),
            *(p.compare(f"{name} (1,1)", "+", key, at(name, 1), bc["many"]) for name in LOSSES)])
    for number, text, i in (("5", "the BC loss beats GOLD, BVMPO and OAC at (1,1)", 1),
                            ("6", "it stays ahead at (1,4)", 4)):
        for how, key in WAYS.items():
            yield Claim(f"{number}{how}", text, [
                p.compare(f"BC − {name}", "+", key, at("BC", i), at(name, i)) for name in OTHERS])
    yield Claim("10", "all variants beat BC by human score (here: oracle), at (1,4)", [
        p.compare(name, "+", "oracle", at(name, 4), bc["many"]) for name in LOSSES])
    yield Claim("", "oracle at (1,4) − BC, few ratings", [
        p.compare(name, "+", "oracle", at(name, 4, "few"), bc["few"]) for name in LOSSES])
    yield Claim("13", "BVMPO is better than the BC loss by human score (here: oracle), at (1,4)", [
        p.compare(f"BVMPO − BC, {ratings} ratings", "+", "oracle", at("BVMPO", 4, ratings),
                  at("BC", 4, ratings)) for ratings in SHARE])


def figure(p):
    picture, axes = panels("losses", 3, 17, 4.6)
    shown = ("reward", "many"), ("oracle", "many"), ("oracle", "few")
    for ax, (key, ratings) in zip(axes, shown):
        ends = []
        for name, colour in zip(LOSSES, COLOURS):
            rows = p.where(variant=name, ratings=ratings)
            end = curve(ax, rows, "improve", key, colour, baseline=rows.where(name="BC"))
            ends.append((end, name, colour))
        ax.axhline(0, color=GREY, lw=1)
        ax.set_xticks(range(5), ["BC", 1, 2, 3, 4])
        ax.set(title=f"{key} above BC, points of 100; {ratings} ratings",
               xlabel="Improve step I, after one Grow")
        label_ends(ax, ends)
    return picture
