"""Losses: is plain cloning of what the filter keeps as good as offline RL on it?

Claims     4: every variant beats BC on reward after one Grow, I = 0 included. 5: the BC loss beats
           GOLD, BVMPO and OAC at one Grow and one Improve. 6: it stays ahead as Improves are added.
           13: BVMPO does well with humans, because value function and KL prevent over-fitting.
Varied     the loss of the Improves, 1 to 4; each with the settings that search.py found for it.
Held       D, BC policy, reward model, D_g and (1,0), which is BC on all of D_g.
Takes      about 2 minutes a seed on one core.
"""

from experiments.plot import COLOURS, GREY, curve, label_ends, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison

LOSSES = {"BC": "bc", "GOLD-p": "gold-p", "GOLD-s": "gold-s", "BVMPO": "bvmpo", "OAC": "oac"}
OTHERS = [name for name in LOSSES if name != "BC"]


def points(lab):
    for name, loss in LOSSES.items():
        for row in lab.rest(grow=1, **FOUND[loss]):
            yield {"variant": name, **row}


def claims(p):
    bc = dict(variant="BC", name="BC")
    yield Claim("4", "every variant beats BC on reward after one Grow, I = 0 included", [
        p.compare("(1,0)", "+", "reward", dict(variant="BC", grow=1, improve=0), bc),
        *(p.compare(f"{name} (1,1)", "+", "reward", dict(variant=name, grow=1, improve=1), bc)
          for name in LOSSES)])
    for number, text, i in (("5", "the BC loss beats GOLD, BVMPO and OAC at (1,1)", 1),
                            ("6", "it stays ahead at (1,4)", 4)):
        yield Claim(number, text, [
            p.compare(f"over {name}", "+", "reward", dict(variant="BC", grow=1, improve=i),
                      dict(variant=name, grow=1, improve=i)) for name in OTHERS])
    gap = {name: over_fit(p, name) for name in ("BC", "BVMPO")}
    yield Claim("13", "BVMPO over-fits the reward less: its reward outruns the oracle by less", [
        Comparison("(reward − oracle) at (1,4), BC loss − BVMPO", "+", gap["BC"] - gap["BVMPO"])])


def over_fit(p, name):
    end = dict(variant=name, grow=1, improve=4)
    return p.values("reward", **end) - p.values("oracle", **end)


def figure(p):
    picture, axes = panels("losses", 2, 12, 4.6)
    for ax, key in zip(axes, ("reward", "oracle")):
        ends = []
        for name, colour in zip(LOSSES, COLOURS):
            rows = p.where(variant=name, name="ReST")
            end = curve(ax, rows, "improve", key, colour, over=p.where(variant=name, name="BC"))
            ends.append((end, name, colour))
        ax.axhline(0, color=GREY, lw=1)
        ax.set_xticks(range(5))
        ax.set(title=f"{key} above BC, points of 100", xlabel="Improve step I, after one Grow")
        label_ends(ax, ends)
    return picture
