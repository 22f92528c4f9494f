"""Online RL: what does PPO reach for the same samples, tokens, operations, time?

Claims     7: PPO with comparable data is about ReST (1,0), and ReST with several Improves is
           clearly higher. 19: one Grow shared by several Improves is cheaper than online RL.
Varied     what the paper does not give, and the answer hangs on: PPO's rounds (a Grow of 32 000
           samples in 1, 4, 16 or 62 rounds, updates in all the same) and the weight of its KL to
           BC; ReST's Grows (8 of 4 000 samples, with one Improve each, redraw as PPO does). And
           what drawing costs: short and long outputs, narrow and wide models.
Held       D, BC policy, reward model; learning rates as search.py found them.
Takes      about 15 minutes a seed on one core.

Samples and tokens include those of ReST's looks at D_eval, by which it chooses checkpoints; PPO
makes none, and keeps its last weights. Tokens are target tokens drawn and target tokens trained on,
added up. Operations are counted as usual: 2 a parameter and token to draw it, 2 to score it by a
reward model of the same size, 6 to train on it (Kaplan et al. 2020, arXiv:2001.08361). Seconds are
those of drawing, scoring, training and looking, without what a row reports on the test set.
"""

import numpy as np

from experiments.grow_steps import MAIN
from experiments.plot import BLUE, COLOURS, SKY, VERMILLION, interval, panels
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison

COSTS = {"samples": "samples drawn, thousands", "tokens": "tokens drawn and trained on, thousands",
         "operations": "operations a parameter, millions", "seconds": "seconds on one core"}
PARTS = 8  # rows of PPO, over the samples of four Grows
ROUNDS = (1, 4, 16, 62)  # of one Grow's samples; 62 is as usual
WEIGHTS = (0.0, 0.03, 0.1, 0.3)
SIZES = {"usual": {}, "short": dict(shortest=4, longest=8), "long": dict(shortest=16, longest=24),
         "wide": dict(d_model=128)}


def points(lab):
    looks = (lab.usual.updates // lab.usual.evaluate_every + 1) * lab.usual.eval_sources
    n = lab.usual.samples * lab.usual.demonstrations
    for size, changes in SIZES.items():
        rows = lab.rest(**MAIN) if size == "usual" else lab.rest(grow=1, **changes)
        yield from with_costs(rows, looks, size=size, method="ReST")
        times, parts = (4, PARTS) if size == "usual" else (1, 2)
        rows = lab.online(ppo_samples=times * n, ppo_rows=parts, **{**FOUND["ppo"], **changes})
        yield from with_costs(rows, 0, size=size, method="PPO")
    rows = lab.rest(grow=8, grow_sources=lab.usual.demonstrations // 8, improve=(1,),
                    unfiltered=False)
    yield from with_costs(rows, looks, size="usual", method="ReST, 8 small Grows")
    updates = lab.usual.ppo_updates * ROUNDS[-1]
    for rounds in ROUNDS:
        for kl in WEIGHTS:
            row = lab.online(ppo_samples=n, ppo_batch=n // rounds, ppo_updates=updates // rounds,
                             **{**FOUND["ppo"], "ppo_kl": kl})[-1]
            yield {"method": "PPO, varied", "rounds": rounds, "kl": kl, **row}


def with_costs(rows, looked_at, **labels):
    """The rows with all that was spent up to each; looked_at: samples of D_eval for each step."""
    trained, seconds, looks = 0, 0.0, 0
    for step, row in enumerate(rows):
        trained += row.get("tokens_trained", 0)
        seconds += row.get("train_seconds", 0.0)
        looks += looked_at if step else 0
        length = row["tokens_drawn"] / max(1, row["samples"])  # of a sample, in tokens
        drawn = row["tokens_drawn"] + looks * length
        yield {**labels, "step": step, **row, "tokens": (drawn + trained) / 1000,
               "samples": (row["samples"] + looks) / 1000,
               "operations": (4 * drawn + 6 * trained) / 1e6,
               "seconds": row["grow_seconds"] + seconds, "drawing": row["grow_seconds"]}


def claims(p):
    usual = p.where(size="usual")
    ppo = dict(method="PPO", size="usual", step=PARTS // 4 - 1)  # after the samples of one Grow
    step = {i: dict(method="ReST", size="usual", grow=1, improve=i) for i in (0, 4)}
    for key in ("reward", "oracle"):
        of = "" if key == "reward" else ", by oracle"
        yield Claim(f"7{of}", "PPO with the samples of one Grow is about ReST (1,0), below (1,4)", [
            p.compare("PPO − (1,0)", "=", key, ppo, step[0]),
            p.compare("(1,4) − PPO", "+", key, step[4], ppo)])
        yield Claim(f"19{of}", "ReST (1,4) is above PPO at the same cost", [
            Comparison(f"at equal {cost}", "+", [
                at_end(usual, seed, key) - reached(usual, seed, key, cost,
                                                   at_end(usual, seed, cost, 1))
                for seed in p.seeds]) for cost in COSTS])
        yield Claim("", f"{key} of ReST (1,4) − PPO with as many samples, by its rounds and its "
                    "KL's weight", [
                        p.compare(f"{rounds} rounds, {kl:g}", "+", key, step[4],
                                  dict(method="PPO, varied", rounds=rounds, kl=kl))
                        for rounds in ROUNDS for kl in WEIGHTS])
        yield Claim("", f"{key} of 8 small Grows of one Improve − PPO, equal samples", [
            p.compare("at the end", "+", key, dict(method="ReST, 8 small Grows", grow=8), ppo)])
        yield Claim("", f"{key} of ReST (1,4) − PPO, equal samples, other sizes", [
            p.compare(size, "+", key, dict(method="ReST", size=size, improve=4),
                      dict(method="PPO", size=size, step=1)) for size in SIZES if size != "usual"])
    yield Claim("", "% of the seconds that drawing and scoring take, ReST (1,4); PPO", [
        Comparison(f"{size}, {method}", "+", [share(p, seed, size, method) for seed in p.seeds])
        for size in SIZES for method in ("ReST", "PPO")])


def share(p, seed, size, method):
    rows = [q for q in p.points if (q["seed"], q.get("size"), q["method"]) == (seed, size, method)]
    row = [q for q in rows if q["grow"] == 1 and q["improve"] == 4 or method == "PPO"][-1]
    return 100 * row["drawing"] / row["seconds"]


def at_end(p, seed, key, scale=100):
    """Of ReST (1,4)."""
    return scale * next(q[key] for q in p.points if q["seed"] == seed and q["method"] == "ReST"
                        and (q["grow"], q["improve"]) == (1, 4))


def reached(p, seed, key, cost, spent):
    """PPO's figure where it has spent so much, between the rows; at most that of its last row."""
    rows = [q for q in p.points if q["seed"] == seed and q["method"] == "PPO"]
    return 100 * np.interp(spent, [q[cost] for q in rows], [q[key] for q in rows])


def figure(p):
    picture, axes = panels("online_rl", 6, 17, 9, rows=2)
    usual = p.where(size="usual")
    for ax, (cost, title) in zip(axes, COSTS.items()):
        for method, colour in (("ReST", BLUE), ("ReST, 8 small Grows", SKY), ("PPO", VERMILLION)):
            rows = usual.where(method=method)
            for key, style in (("reward", "-"), ("oracle", "--")):
                steps = sorted({q["step"] for q in rows.points})
                x = [rows.values(cost, 1, step=k).mean() for k in steps]
                y, half = np.array([interval(rows.values(key, step=k)) for k in steps]).T
                ax.plot(x, y, style, color=colour, marker="o", label=f"{method}, {key}")
                if np.isfinite(half).all():
                    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.12, lw=0)
        ax.set(title="points of 100", xlabel=title)
    axes[0].legend(frameon=False, fontsize=9)
    level = {key: p.where(method="ReST", size="usual", grow=1, improve=4).values(key).mean()
             for key in ("reward", "oracle")}
    for ax, key in zip(axes[4:], level):
        for kl, colour in zip(WEIGHTS, COLOURS):
            rows = p.where(method="PPO, varied", kl=kl)
            ax.plot(ROUNDS, [rows.values(key, rounds=n).mean() for n in ROUNDS], color=colour,
                    marker="o", label=f"PPO, KL weight {kl:g}")
        ax.axhline(level[key], color=BLUE, ls=":", label="ReST (1,4)")
        ax.set_xscale("log", base=2)
        ax.set_xticks(ROUNDS, ROUNDS)
        ax.set(title=f"{key} with the samples of one Grow", xlabel="PPO's rounds")
    axes[4].legend(frameon=False, fontsize=9)
    return picture
