"""Relatives: six other papers' methods as settings of the same loop, on the same samples.

Claims     none of the paper's. A sentence in each paper makes one expect that its choices matter.
Varied     the method: the table in methods.py, which `train_toy.py --method` takes too.
Held       D, BC policy, reward model; samples drawn, as many as ReST's two Grows draw; updates: as
           many as ReST's eight Improves, or BC's own number for each training from base.
Takes      about 5 minutes a seed on one core.

`base` is what BC began with, untrained. A language model's base is pretrained: what starting from
it is worth there, this cannot say.
"""

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, GREEN, GREY, bars, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison
from methods import METHODS

NAMES = {"rest": "ReST (2,3)", "raft": "RAFT", "rest-em": "ReST-EM",
         "expert-iteration": "expert iteration", "rft": "RFT", "llama2": "Llama 2",
         "policy-gradient": "policy gradient"}


def points(lab):
    grow = lab.usual.samples * lab.usual.demonstrations
    for method, settings in METHODS.items():
        if method == "rest":
            rows = [row for row in lab.rest(**MAIN) if row["grow"] <= 2]
        elif method == "policy-gradient":
            found = {k: v for k, v in FOUND[method].items() if k not in settings}
            rows = lab.online(**settings, **found, ppo_samples=2 * grow)
        else:
            once = settings.get("grow") == 1  # RFT draws all of its samples at once
            rows = lab.rest(**{"grow": 2, **settings}, updates=4 * lab.usual.updates,
                            samples=lab.usual.samples * (2 if once else 1))
        yield {"method": method, "end": False, **lab.rest(**MAIN)[0], "name": "BC"}
        for row in rows:
            if row["name"] != "BC":
                yield {"method": method, "end": row is rows[-1], **row}


def claims(p):
    bc = p.where(name="BC")
    end = p.where(end=True)
    for method, name in NAMES.items():
        if method != "rest":
            yield Claim("", f"ReST is ahead of {name} at equal samples", [
                end.compare(key, "+", key, dict(method="rest"), dict(method=method))
                for key in ("reward", "oracle")])
    yield Claim("", "every relative beats BC by oracle", [
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
