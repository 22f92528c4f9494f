"""Ablations: what each part of the algorithm is worth.

Claims     20: keeping D in the mixture prevents divergence (argued in the paper, without a run). And
           what other implementations leave out or change: a lower rate for each Improve, starting
           each from the last policy, returning to the best checkpoint, > in place of ≥, I = 0.
Varied     one switch of rest.Settings at a time.
Held       everything else, as in `python train_toy.py`: two Grows, Improves (4, 3); four Grows for
           D in and out.
Takes      about 7 minutes a seed on one core.
"""

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, GREEN, bars, panels
from experiments.verdicts import Claim, Comparison

USUAL, PERCENTILE = dict(MAIN), dict(grow=2, filter="percentile")
VARIANTS = {
    "without D": dict(grow=4, human="out"),
    "D kept whole": dict(grow=2, human="whole"),
    "constant learning rate": dict(grow=2, lr_decay=1.0),
    "each Improve from BC": dict(grow=2, start="bc"),
    "no return to the best": dict(grow=2, stop="last"),
    "without I = 0": dict(grow=2, unfiltered=False),
    "samples of all Grows": dict(grow=2, keep_samples=True),
    "≥ for >": dict(grow=2, ties=True),
    "≥ for >, percentile filter": dict(PERCENTILE, ties=True),
}
OTHER_BASELINE = {"≥ for >, percentile filter": "percentile filter"}


def points(lab):
    runs = {"as usual": USUAL, "percentile filter": PERCENTILE, **VARIANTS}
    for name, settings in runs.items():
        for row in lab.rest(**settings):
            yield {"variant": name, **row}


def at(name, g=2):
    return dict(variant=name, grow=g, improve=3)


def lost(p, name, key, g=2):
    """What the usual algorithm has over this variant, for each seed."""
    return p.difference(key, at(OTHER_BASELINE.get(name, "as usual"), g), at(name, g))


def claims(p):
    yield Claim("20", "keeping D in the mixture prevents divergence: with D − without", [
        Comparison(f"{key} at ({g},3)", "+", lost(p, "without D", key, g))
        for key in ("reward", "oracle") for g in (2, 4)])
    for name in VARIANTS:
        if name != "without D":
            yield Claim("", f"the usual algorithm is better than: {name}", [
                Comparison(f"{key} at (2,3)", "+", lost(p, name, key))
                for key in ("reward", "oracle")])


def figure(p):
    picture, axes = panels("ablations", 2, 13, 5, sharey=True)
    for ax, key, colour in zip(axes, ("reward", "oracle"), (BLUE, GREEN)):
        bars(ax, list(VARIANTS), [[-x for x in lost(p, name, key)] for name in VARIANTS],
             [colour] * len(VARIANTS))
        ax.set(title=f"{key}: variant − usual algorithm, at (2,3)", xlabel="points of 100")
    return picture
