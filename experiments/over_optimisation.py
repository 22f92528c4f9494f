"""Over-optimisation: when does a rising reward stop meaning anything?

Claims     11: rankings by reward and by humans differ, and the reward model generalises worse
           farther from the behaviour policy. 21: the reward model errs more on low-scored samples.
           22: ReST with the BC loss can over-fit the reward model. 10 and 12: see losses.py and
           grow_steps.py. The oracle stands in for the humans.
Varied     the ratings that the reward model learns from: a twentieth, a quarter, all of 12 000; and
           how the policy moves: ReST over three Grows, returning to the best checkpoint or not;
           PPO with its usual KL to BC, and without.
Held       D, BC policy, test sources.
Takes      about 5 minutes a seed on one core.
"""

import numpy as np

from experiments import losses
from experiments.grow_steps import MAIN
from experiments.plot import BLUE, ORANGE, SKY, VERMILLION, label_ends, panels, path
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison

SHARE = {"few": losses.SHARE["few"], "some": 4, "many": losses.SHARE["many"]}
FREE, LAST = "PPO without KL", "ReST, last weights"
PATHS = {"ReST": BLUE, LAST: SKY, "PPO": VERMILLION, FREE: ORANGE}


def points(lab):
    for ratings, part in SHARE.items():
        model = dict(rated_sources=lab.usual.rated_sources // part)
        grow = lab.usual.samples * lab.usual.demonstrations
        paths = {"ReST": lab.rest(**MAIN, **model),
                 LAST: lab.rest(grow=3, checkpoint="last", **model),
                 "PPO": lab.online(**{**FOUND["ppo"], **model}, ppo_samples=grow, ppo_rows=4),
                 FREE: lab.online(**{**FOUND["ppo"], **model, "ppo_kl": 0.0}, ppo_samples=grow,
                                  ppo_rows=4)}
        paths["ReST"] = [row for row in paths["ReST"] if row["grow"] <= 3]
        for name, rows in paths.items():
            bc = [] if rows[0]["name"] == "BC" else paths["ReST"][:1]
            for step, row in enumerate([*bc, *rows]):
                yield {"part": "path", "ratings": ratings, "path": name, "step": step, **row}
        yield {"part": "residual", "ratings": ratings,
               **lab.cached("residual", model, lambda: residuals(*lab.first_D_g(**model)))}


def residuals(D_g, toy):
    """The reward model's error on BC's samples: its standard deviation in thirds by reward, and in
    thirds by oracle."""
    drawn = D_g.select(~D_g.human)
    truth = toy.problem.oracle([toy.task.sources[i] for i in drawn.source], drawn.targets())
    error, found = drawn.reward - truth, {}
    for name, order in (("reward", drawn.reward), ("oracle", truth)):
        low, _, high = np.array_split(np.argsort(order, kind="stable"), 3)
        found |= {f"low {name}": float(error[low].std()), f"high {name}": float(error[high].std())}
    return found


def claims(p):
    rows = {ratings: p.where(part="path", ratings=ratings) for ratings in SHARE}
    bc = dict(path="ReST", name="BC")
    yield Claim("11", "rankings by reward and by humans differ; far from BC, the reward model errs "
                "more", [
                    Comparison("% of pairs of policies that reward and oracle order differently, "
                               "by a point at least, few ratings", "+",
                               ranked_differently(rows["few"])),
                    *(rows[r].compare(f"its error after {FREE} − on BC, {r} ratings", "+",
                                      "reward_error", dict(path=FREE, step=4), bc)
                      for r in SHARE)])
    yield Claim("21", "the reward model errs more on low-scored samples", [
        p.where(part="residual").compare(
            f"sd of its error, lowest third by {by} − highest, {r} ratings", "+", f"low {by}",
            dict(ratings=r), dict(ratings=r), minus=f"high {by}")
        for by in ("reward", "oracle") for r in SHARE])
    first, end = (dict(path=LAST, grow=g, improve=i) for g, i in ((1, 4), (3, 3)))
    yield Claim("22", "ReST with the BC loss can over-fit the reward model: last weights, few "
                "ratings", [
                    rows["few"].compare("reward (3,3) − (1,4)", "+", "reward", end, first),
                    rows["few"].compare("oracle (3,3) − (1,4)", "-", "oracle", end, first)])


def ranked_differently(p):
    """For each seed the % of pairs of policies, BC once, of which the one is a point better by
    reward and a point worse by oracle."""
    shares = []
    for seed in p.seeds:
        policies = [q for q in p.points if q["seed"] == seed
                    and (q["name"] != "BC" or q["path"] == "ReST")]
        reward, oracle = 100 * np.array([(q["reward"], q["oracle"]) for q in policies]).T
        better, worse = reward[:, None] - reward >= 1, oracle[:, None] - oracle <= -1
        n = len(policies)
        shares.append(100 * (better & worse).sum() / (n * (n - 1) / 2))
    return shares


def figure(p):
    picture, axes = panels("over_optimisation", 6, 17, 8.5, rows=2, sharey=True, sharex=True)
    shown = [(key, ratings) for key in ("reward", "oracle") for ratings in SHARE]
    ends = {ax: [] for ax in axes}
    for ax, (key, ratings) in zip(axes, shown):
        for name, colour in PATHS.items():
            rows = p.where(part="path", ratings=ratings, path=name)
            _, end = path(ax, rows, "kl_to_bc", key, colour)
            ends[ax].append((end, name, colour))
        ax.set(title=f"{key}, points of 100; {ratings} ratings")
    for ax in axes:  # once all are drawn, and the scale that they share is known
        label_ends(ax, ends[ax])
    for ax in axes[3:]:
        ax.set(xlabel="KL to BC per token, nats")
    return picture
