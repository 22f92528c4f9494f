"""Best-of-N: is ReST worth anything once one may choose among many samples?

Claims     9: best-of-N still helps after ReST, and a small N on ReST equals a large N on BC.
Varied     N, from 1 to 128; the policy: BC, ReST (1,1), (1,4), (2,3).
Held       the reward model, which also chooses; the test sources.
Takes      about 2 minutes a seed on one core.
"""

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, GREEN, GREY, SKY, curve, label_ends, panels
from experiments.verdicts import Claim
from infra.report import label
from train_toy import best_of_n

POLICIES = {"BC": GREY, "ReST (1,1)": SKY, "ReST (1,4)": BLUE, "ReST (2,3)": GREEN}
COUNTS = [2**k for k in range(8)]


def points(lab):
    yield from lab.cached("best-of-n", MAIN, lambda: measure(lab))


def measure(lab):
    settings = lab.settings(**MAIN)
    with lab.walk(**MAIN) as (toy, steps):
        policies = {label(row): policy for row, policy, _ in steps if label(row) in POLICIES}
        return [entry for name, policy in policies.items()
                for entry in best_of_n(name, policy, toy, settings, COUNTS)]


def claims(p):
    rest, bc = (dict(policy=name) for name in ("ReST (2,3)", "BC"))
    yield Claim("9", "best-of-N still helps after ReST; a small N on ReST equals a large N on BC", [
        *(p.compare(f"oracle of ReST (2,3), N = {n} − N = 1", "+", "oracle", {**rest, "n": n},
                    {**rest, "n": 1}) for n in (8, 128)),
        *(p.compare(f"{key} of ReST (2,3), N = 8 − BC, N = 128", ">=", key, {**rest, "n": 8},
                    {**bc, "n": 128}) for key in ("reward", "oracle"))])


def figure(p):
    picture, axes = panels("best_of_n", 2, 12, 4.6)
    for ax, key in zip(axes, ("reward", "oracle")):
        ends = [(curve(ax, p.where(policy=name), "n", key, colour), name, colour)
                for name, colour in POLICIES.items()]
        ax.set_xscale("log", base=2)
        ax.set_xticks(COUNTS, COUNTS)
        ax.set(title=f"{key} of the best by reward, points of 100",
               xlabel="N, samples to choose from")
        label_ends(ax, ends)
    return picture
