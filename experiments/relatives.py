"""Relatives: seven other papers' methods as settings of the same loop, on the same samples.

Claims     none of the paper's. A sentence in each paper makes one expect that its choices matter.
Varied     the method: the table in infra/relatives.py, which `train_toy.py --method` takes too.
Held       D, BC policy, reward model; samples drawn: as many as ReST's two Grows draw. Methods that
           go on from the current policy draw them in eight Grows for a quarter of the sources each,
           and have eight Improves, as many as ReST; those that start from base have two Grows, RFT
           one, and BC's own training each time; policy gradient has 125 rounds of one update.
Takes      about 7 minutes a seed on one core.

`base` is what BC began with, untrained. A language model's base is pretrained: what starting from
it is worth there, this cannot say.
"""

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, GREEN, GREY, bars, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison
from infra.relatives import METHODS

NAMES = {"rest": "ReST (2,3)", "raft": "RAFT", "rest-em": "ReST-EM",
         "expert-iteration": "expert iteration", "rft": "RFT", "llama2": "Llama 2",
         "impossible-distillation": "Impossible Distillation", "policy-gradient": "policy gradient"}


def points(lab):
    grow = lab.usual.samples * lab.usual.demonstrations
    for method, settings in METHODS.items():
        if method == "rest":
            rows = [row for row in lab.rest(**MAIN) if row["grow"] <= 2]
        elif method == "policy-gradient":
            found = {k: v for k, v in FOUND[method].items() if k not in settings}
            rows = lab.online(**settings, **found, ppo_samples=2 * grow)
        elif method == "rft":
            rows = lab.rest(**settings, samples=2 * lab.usual.samples)
        elif settings.get("start") == "base":
            rows = lab.rest(**{**settings, "grow": 2})
        else:
            rows = lab.rest(**settings, grow=8, grow_sources=lab.usual.demonstrations // 4)
        yield {"method": method, "end": False, **lab.rest(**MAIN)[0], "name": "BC"}
        for row in rows:
            if row["name"] != "BC":
                yield {"method": method, "end": row is rows[-1], **row}


def claims(p):
    bc = p.where(name="BC")
    end = p.where(end=True)
    for method, name in NAMES.items():
        if method != "rest":
            yield Claim("", f"ReST (2,3) − {name}, equal samples", [
                end.compare(key, "+", key, dict(method="rest"), dict(method=method))
                for key in ("reward", "oracle")])
    yield Claim("", "oracle above BC", [
        Comparison(name, "+", end.values("oracle", method=method)
                   - bc.values("oracle", method=method)) for method, name in NAMES.items()])


def figure(p):
    picture, axes = panels("relatives", 2, 13, 4.6, sharey=True)
    for ax, key, colour in zip(axes, ("reward", "oracle"), (BLUE, GREEN)):
        bars(ax, list(NAMES.values()), [
            p.values(key, method=m, end=True) - p.values(key, method=m, name="BC") for m in NAMES],
            [colour if m == "rest" else GREY for m in NAMES])
        ax.set(title=f"{key} above BC, equal samples", xlabel="points of 100")
    return picture
