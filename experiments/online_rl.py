"""Online RL: what does PPO reach for the same samples, the same tokens, the same time?

Claims     7: PPO with comparable data is about ReST (1,0), and ReST with several Improves is
           clearly higher. 19: one Grow shared by several Improves is cheaper than online RL.
Varied     how far PPO goes, up to the samples of four Grows; ReST's Grows and Improves.
Held       D, BC policy, reward model. Both have the settings that search.py found for them.
Takes      about 1 minute a seed on one core.

Samples and tokens include those of ReST's looks at D_eval, by which it chooses checkpoints; PPO
makes none, and keeps its last weights. Tokens are target tokens drawn and target tokens trained on,
added up; seconds are those of drawing, scoring, training and looking, without what a row reports on
the test set.
"""

import numpy as np

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, VERMILLION, interval, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison

COSTS = {"samples": "samples drawn, thousands", "tokens": "tokens drawn and trained on, thousands",
         "seconds": "seconds on one core"}
PARTS = 8  # rows of PPO, over the samples of four Grows


def points(lab):
    looks = lab.usual.updates // lab.usual.evaluate_every + 1  # at most, of an Improve
    yield from with_costs("ReST", lab.rest(**MAIN), looks * lab.usual.eval_sources)
    n = 4 * lab.usual.samples * lab.usual.demonstrations
    yield from with_costs("PPO", lab.online(ppo_samples=n, ppo_rows=PARTS, **FOUND["ppo"]), 0)


def with_costs(method, rows, looked_at):
    """The rows with all that was spent up to each; looked_at: samples of D_eval for each step."""
    trained, seconds, looks = 0, 0.0, 0
    for step, row in enumerate(rows):
        trained += row.get("tokens_trained", 0)
        seconds += row.get("train_seconds", 0.0)
        looks += looked_at if step else 0
        length = row["tokens_drawn"] / max(1, row["samples"])  # of a sample, in tokens
        yield {"method": method, "step": step, **row,
               "tokens": (row["tokens_drawn"] + trained + looks * length) / 1000,
               "samples": (row["samples"] + looks) / 1000,
               "seconds": row["grow_seconds"] + seconds}


def claims(p):
    ppo, rest = p.where(method="PPO"), p.where(method="ReST")
    one_grow = dict(method="PPO", step=PARTS // 4 - 1)
    step = {f"(1,{i})": dict(method="ReST", grow=1, improve=i) for i in (0, 4)}
    yield Claim("7", "PPO with the samples of one Grow is about ReST (1,0), and below (1,4)", [
        p.compare("PPO − (1,0)", "=", "reward", one_grow, step["(1,0)"]),
        p.compare("(1,4) − PPO", "+", "reward", step["(1,4)"], one_grow)])
    yield Claim("19", "ReST (1,4) has a higher reward than PPO at the same cost", [
        Comparison(f"at equal {cost}", "+", [
            at_end(rest, seed, "reward") - reached(ppo, seed, cost, at_end(rest, seed, cost, 1))
            for seed in p.seeds]) for cost in COSTS])


def at_end(rest, seed, key, scale=100):
    """Of ReST (1,4)."""
    return scale * next(q[key] for q in rest.points
                        if q["seed"] == seed and (q["grow"], q["improve"]) == (1, 4))


def reached(ppo, seed, cost, spent):
    """PPO's reward where it has spent so much, between the rows; at most that of its last row."""
    rows = [q for q in ppo.points if q["seed"] == seed]
    return 100 * np.interp(spent, [q[cost] for q in rows], [q["reward"] for q in rows])


def figure(p):
    picture, axes = panels("online_rl", 3, 15, 4.6, sharey=True)
    for ax, (cost, title) in zip(axes, COSTS.items()):
        for method, colour in (("ReST", BLUE), ("PPO", VERMILLION)):
            rows = p.where(method=method)
            for key, style in (("reward", "-"), ("oracle", "--")):
                steps = sorted({q["step"] for q in rows.points})
                x = [rows.values(cost, 1, step=k).mean() for k in steps]
                y, half = np.array([interval(rows.values(key, step=k)) for k in steps]).T
                ax.plot(x, y, style, color=colour, marker="o", label=f"{method}, {key}")
                if np.isfinite(half).all():
                    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.12, lw=0)
        ax.set(xlabel=title)
    axes[0].set(title="points of 100")
    axes[-1].legend(frameon=False, loc="lower right")
    return picture
