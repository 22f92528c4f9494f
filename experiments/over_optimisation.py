"""Over-optimisation: when does a rising reward stop meaning anything?

Claims     10: all variants beat BC with human raters. 11: rankings by reward and by humans differ,
           and the reward model generalises worse farther from the behaviour policy. 12: see
           grow_steps.py. 21: the reward model errs more on low-scored samples. 22: ReST with the BC
           loss can over-fit the reward model. The oracle stands in for the humans.
Varied     the ratings that the reward model learns from: a twentieth, a quarter, all of 12 000; and
           how the policy moves: ReST over three Grows, PPO with its usual KL to BC, PPO without.
Held       D, BC policy, test sources.
Takes      about 5 minutes a seed on one core.
"""

import numpy as np

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, GREY, VERMILLION, cloud, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison

SHARE = {"few": 20, "some": 4, "many": 1}  # of the ratings: one in so many
FREE = "PPO without KL"
PATHS = {"ReST": BLUE, "PPO": GREY, FREE: VERMILLION}


def points(lab):
    for ratings, part in SHARE.items():
        model = dict(rated_sources=lab.usual.rated_sources // part)
        grow = lab.usual.samples * lab.usual.demonstrations
        paths = {"ReST": lab.rest(**MAIN, **model),
                 "PPO": lab.online(**{**FOUND["ppo"], **model}, ppo_samples=grow, ppo_rows=4),
                 FREE: lab.online(**{**FOUND["ppo"], **model, "ppo_kl": 0.0}, ppo_samples=grow,
                                  ppo_rows=4)}
        bc = paths["ReST"][0]
        for path, rows in paths.items():
            for step, row in enumerate(rows if path == "ReST" else [bc, *rows]):
                if row["grow"] <= 3 or path != "ReST":
                    yield {"part": "path", "ratings": ratings, "path": path, "step": step, **row}
        yield {"part": "residual", "ratings": ratings,
               **lab.kept("residual", model, lambda: residuals(*lab.first_D_g(**model)))}


def residuals(D_g, toy):
    """The reward model's error on BC's samples: its standard deviation in thirds by reward."""
    drawn = D_g.select(~D_g.human)
    truth = toy.language.oracle([toy.task.sources[i] for i in drawn.source], drawn.targets())
    error = drawn.reward - truth
    thirds = np.array_split(np.argsort(drawn.reward, kind="stable"), 3)
    return dict(zip(("low", "middle", "high"), (float(error[part].std()) for part in thirds)))


def claims(p):
    rows = p.where(part="path")
    bc = dict(path="ReST", name="BC")
    steps = {"(1,0)": (1, 0), "(1,4)": (1, 4), "(2,3)": (2, 3)}
    at = {name: dict(path="ReST", name="ReST", grow=g, improve=i) for name, (g, i) in steps.items()}
    yield Claim("10", "all variants beat BC by human score (here: oracle)", [
        rows.where(ratings=r).compare(f"{name}, {r} ratings", "+", "oracle", at[name], bc)
        for r in SHARE for name in at])
    end = dict(path=FREE, step=4)
    yield Claim("11", "rankings by reward and by humans differ; the reward model errs more far from BC",
                [Comparison(f"% of pairs of policies ranked differently, {r} ratings", "+",
                            100 * ranked_differently(rows.where(ratings=r))) for r in SHARE]
                + [rows.where(ratings=r).compare(f"error after {FREE} − on BC, {r} ratings", "+",
                                                 "reward_error", end, bc) for r in SHARE])
    few = rows.where(ratings="few")
    yield Claim("12, few ratings", "one Grow is best by human score, while the reward rises", [
        few.compare("reward (2,3) − (1,4)", "+", "reward", at["(2,3)"], at["(1,4)"]),
        few.compare("oracle (2,3) − (1,4)", "-", "oracle", at["(2,3)"], at["(1,4)"])])
    yield Claim("21", "the reward model errs more on low-scored samples", [
        p.where(part="residual").compare(f"sd of its error, {r} ratings: lowest third − highest", "+",
                                         "low", dict(ratings=r), dict(ratings=r), minus="high")
        for r in SHARE])
    yield Claim("22", "ReST with the BC loss can over-fit the reward model", [
        Comparison("growth of reward − oracle from BC to (2,3), few ratings", "+",
                   gap(few, at["(2,3)"]) - gap(few, bc))])


def gap(p, where):
    return p.values("reward", **where) - p.values("oracle", **where)


def ranked_differently(p):
    """For each seed the share of pairs of policies that reward and oracle order differently."""
    shares = []
    for seed in p.seeds:
        reward, oracle = (np.array([q[key] for q in p.points if q["seed"] == seed])
                          for key in ("reward", "oracle"))
        signs = [np.sign(x[:, None] - x) for x in (reward, oracle)]
        shares.append((signs[0] * signs[1] < 0).sum() / (signs[0] != 0).sum())
    return np.array(shares)


def figure(p):
    picture, axes = panels("over_optimisation", 3, 15, 4.8, sharey=True, sharex=True)
    for ax, ratings in zip(axes, SHARE):
        for path, colour in PATHS.items():
            rows = p.where(part="path", ratings=ratings, path=path)
            for key, style in (("reward", "-"), ("oracle", "--")):
                end = cloud(ax, rows, "kl_to_bc", key, colour, style)
                ax.annotate(f"{path}, {key}", end, (6, 0), textcoords="offset points", va="center",
                            color=colour, fontsize=10)
        ax.set(title=f"{ratings} ratings", xlabel="KL to BC per token, nats")
        ax.margins(x=0.35)
    axes[0].set_ylabel("points of 100")
    return picture
