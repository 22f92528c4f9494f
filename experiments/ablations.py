"""Ablations: what each part of the algorithm is worth.

Claims     20: keeping D in the mixture prevents divergence (argued in the paper, without a run).
           And what other implementations leave out or change: a lower rate for each Improve,
           starting each from the last policy, returning to the best checkpoint, > in place of ≥, I
           = 0.
Varied     one switch of rest.Settings at a time. For D also where it can matter: without the return
           to the best checkpoint, over three Grows, with few ratings; and with demonstrations that
           are about as good as the samples, so that the filters keep many of them.
Held       everything else, as in `python train_toy.py`: two Grows, Improves (4, 3).
Takes      about 17 minutes a seed on one core.
"""

from experiments.grow_steps import MAIN
from experiments.losses import SHARE
from experiments.plot import BLUE, GREEN, bars, panels
from experiments.verdicts import Claim, Comparison

BEDS = ("usual", "few ratings", "careful humans", "careful humans, few ratings")
PERCENTILE = "percentile filter"
RUNS = {"as usual": MAIN, PERCENTILE: dict(filter="percentile")}
VARIANTS = {
    "without D": dict(human_data="out"),
    "D kept whole": dict(human_data="whole"),
    "constant learning rate": dict(lr_decay=1.0),
    "each Improve from BC": dict(start="bc"),
    "last weights, not the best": dict(checkpoint="last"),
    "without I = 0": dict(unfiltered=False),
    "samples of all Grows": dict(keep_samples=True),
    "≥ for >": dict(inclusive=True),
    "≥ for >, percentile filter": dict(filter="percentile", inclusive=True),
}


def points(lab):
    for name, settings in {**RUNS, **VARIANTS}.items():
        for row in lab.rest(**{"grow": 2, **settings}):
            yield {"part": "one", "variant": name, **row}
    few = dict(rated_sources=lab.usual.rated_sources // SHARE["few"])
    for bed, changes in {"usual": {}, "few ratings": few, "careful humans": dict(task="careful"),
                         "careful humans, few ratings": dict(task="careful", **few)}.items():
        for human in ("filtered", "out"):
            for row in lab.rest(grow=3, checkpoint="last", human_data=human, **changes):
                yield {"part": "D", "bed": bed, "human": human, **row}


def lost(p, name, key, g=2, i=3):
    """What the usual algorithm has over this variant at (g,i), for each seed."""
    usual = PERCENTILE if PERCENTILE in name else "as usual"
    return p.difference(key, *(dict(part="one", variant=variant, name="ReST", grow=g, improve=i)
                               for variant in (usual, name)))


def claims(p):
    end = dict(part="D", grow=3, improve=3)
    yield Claim("20", "keeping D in the mixture prevents divergence: with D − without, at (3,3), "
                "last weights", [
                    p.compare(f"{key}, {bed}", "+", key, {**end, "bed": bed, "human": "filtered"},
                              {**end, "bed": bed, "human": "out"})
                    for bed in BEDS for key in ("reward", "oracle")], existence=True)
    for name in VARIANTS:
        yield Claim("", f"the usual algorithm − {name}", [
            Comparison(f"{key} at ({g},{i})", "=" if name == "≥ for >" else "+",
                       lost(p, name, key, g, i))
            for g, i in ((1, 4), (2, 3)) for key in ("reward", "oracle")])


def figure(p):
    picture, axes = panels("ablations", 2, 13, 5, sharey=True)
    for ax, key, colour in zip(axes, ("reward", "oracle"), (BLUE, GREEN)):
        bars(ax, list(VARIANTS), [[-x for x in lost(p, name, key)] for name in VARIANTS],
             [colour] * len(VARIANTS))
        ax.set(title=f"{key}: variant − usual algorithm, at (2,3)", xlabel="points of 100")
    return picture
