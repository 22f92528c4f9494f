"""Captions: the paper's claims on real text, at a size that allows many runs.

Claims     1, 3, 4, 5, 7, 8, 9, 14, 16, 17, 20 and 22, as on the toy; chrF of samples against the
           references of the test set stands in for the humans. (translation.py judges 1, 3, 4, 7,
           8 and 9 on five larger runs.)
Varied     the loss; the filter, and how much it keeps; the temperature of Grow; D in D_g or not
           (three Grows, the last weights of each Improve, not the best); PPO's KL.
Held       Multi30k De-En and `train_mt.py --preset small`. The losses' settings are their defaults:
           nothing was searched for here. The filters have a D_g of their own, as in filters.py.
Takes      about 50 minutes a seed on one core.

The reward model was trained on chrF++, so beside the reward stand BLEU and TER, and the length and
repetition of outputs. The margin is one point of reward, half a point of BLEU or chrF.
"""

import train_mt
from experiments import filters
from experiments.filters import equal_levels
from experiments.lab import TextLab
from experiments.plot import BLUE, GREEN, ORANGE, SKY, VERMILLION, label_ends, panels, path
from experiments.sampling import spread_of
from experiments.verdicts import Claim, Comparison
from infra.report import label

SEEDS = range(3)
LAB = TextLab
LOSSES = ("bc", "gold", "bvmpo", "oac")
SHOWN = (0, 50, 75, 90)  # of filters.PERCENTILES
TEMPERATURES = (0.4, 0.8, 1.2)
QUANTILES = (0.1, 0.5, 0.9)
POLICIES, COUNTS = ("BC", "ReST (2,3)"), (1, 8, 32)  # of best of N
LAST, WITHOUT, FREE = "ReST, last weights", "ReST, last weights, without D", "PPO without KL"
PATHS = {"ReST": BLUE, LAST: SKY, WITHOUT: GREEN, "PPO": VERMILLION, FREE: ORANGE}
MAIN = dict(grow=2, improve=(4, 3))
FURTHER = MAIN | dict(grow=3, checkpoint="last")
ONCE = dict(grow=1, improve=(1,), unfiltered=False)
BC = dict(name="BC")
# what is reported beside the reward, and by how much it is multiplied
BESIDE = {"reward": 100, "greedy_reward": 100, "sampled_chrf": 1, "sampled_bleu": 1, "bleu": 1,
          "beam_bleu": 1, "ter": 1, "length": 100, "repetition": 1}


def points(lab):
    for loss in LOSSES:
        yield {"part": "loss", **lab.rest(grow=1, improve=(1,), loss=loss)[-1]}
    yield from lab.cached("best-of-n", MAIN, lambda: best_of_n(lab))

    pool = dict(samples=32, grow_sources=lab.usual.grow_sources // 4, human_data="out",
                distinct=True)
    levels = lab.cached("levels", pool, lambda: equal_levels(lab.first_D_g(**pool)[0]))
    for p, level in zip(filters.PERCENTILES, levels):
        for name, value in level["values"].items():
            if p in SHOWN and name in ("percentile", "global"):
                row = lab.rest(**ONCE, **pool, **filters.FILTER[name], thresholds=(value,))[-1]
                yield {"part": "filter", "filter": name, "p": p, **row}
    for t in TEMPERATURES:
        spread = lab.cached("spread", dict(temperature=(t,)),
                            lambda: spread_of(lab.first_D_g(temperature=(t,))[0]))
        yield {"part": "temperature", "temperature": t, **spread}
    for q in QUANTILES:
        yield {"part": "τ", "q": q, **lab.rest(**ONCE, filter="quantile", thresholds=(q,))[-1]}

    paths = {"ReST": lab.rest(**MAIN), LAST: lab.rest(**FURTHER),
             WITHOUT: lab.rest(**FURTHER, human_data="out"),
             "PPO": lab.online(ppo_rows=4), FREE: lab.online(ppo_rows=4, ppo_kl=0.0)}
    for name, rows in paths.items():
        if rows[0]["name"] != "BC":
            rows = [*paths["ReST"][:1], *rows]
        for step, row in enumerate(rows):
            yield {"part": "path", "path": name, "step": step, "end": row is rows[-1], **row}


def best_of_n(lab):
    with lab.walk(**MAIN) as (mt, steps):
        policies = {label(row): policy for row, policy, _ in steps}
        return [{"part": "best of N", **entry} for name in POLICIES
                for entry in train_mt.best_of_n(name, policies[name], mt.task, mt.texts,
                                                lab.settings(**MAIN), COUNTS)]


def of(p, name, expected, key, a, b):
    """A comparison of two rows by this key, with its scale and its margin."""
    how = dict(scale=100) if "reward" in key else dict(scale=1, margin=0.5)
    return p.compare(name, expected, key, a, b, **how)


def rest(g, i):
    return dict(name="ReST", grow=g, improve=i)


def claims(p):
    """Of ReST's steps, the loss, the filter, the temperature; then those of the paths."""
    main, best = p.where(part="path", path="ReST"), p.where(part="best of N")
    for how, key in (("", "reward"), (", greedy", "greedy_reward"), (", by chrF", "sampled_chrf")):
        yield Claim(f"1, captions{how}", "each further Improve on a fixed D_g raises the reward", [
            of(main, f"(1,{i}) − (1,{i - 1})", "+", key, rest(1, i), rest(1, i - 1))
            for i in range(1, 5)])
        yield Claim(f"3, captions{how}", "a second Grow with its Improves raises the reward "
                    "further", [of(main, "(2,3) − (1,4)", "+", key, rest(2, 3), rest(1, 4))])
        yield Claim(f"4, captions{how}", "ReST beats BC on reward after one Grow, I = 0 included", [
            of(main, f"(1,{i})", "+", key, rest(1, i), BC) for i in (0, 1)])
        yield Claim(f"5, captions{how}", "the BC loss beats GOLD, BVMPO and OAC at (1,1)", [
            of(p.where(part="loss"), f"BC − {loss.upper()}", "+", key, dict(loss="bc"),
               dict(loss=loss)) for loss in LOSSES[1:]])
    yield Claim("9, captions", "best-of-N still helps after ReST; a small N on ReST equals a large "
                "N on BC", [
                    of(best, "chrF of ReST (2,3), N = 8 − N = 1", "+", "chrf",
                       dict(policy="ReST (2,3)", n=8), dict(policy="ReST (2,3)", n=1)),
                    *(of(best, f"{key} of ReST (2,3), N = 8 − BC, N = 32", ">=", key,
                         dict(policy="ReST (2,3)", n=8), dict(policy="BC", n=32))
                      for key in ("reward", "chrf"))])
    once = p.where(part="filter")
    yield Claim("14, captions", "the percentile filter's gain grows with p, and about equals the "
                "global threshold's", [
                    *(of(once, f"p = {b} − {a}", "+", "reward", dict(filter="percentile", p=b),
                         dict(filter="percentile", p=a)) for a, b in ((0, 50), (50, 90))),
                    *(of(once, f"percentile − global, p = {q}", "=", "reward",
                         dict(filter="percentile", p=q), dict(filter="global", p=q))
                      for q in SHOWN[1:])])
    spread = p.where(part="temperature")
    yield Claim("16, captions", "temperature 0.8 covers a broad range of rewards", [
        spread.compare(f"{name} at 0.8 − at {t}", "+", key, dict(temperature=0.8),
                       dict(temperature=t))
        for key, name, others in (("spread", "range within a source", (0.4,)),
                                  ("best", "best of a source", (0.4, 1.2))) for t in others])
    V = main.values("reward", name="BC")
    yield Claim("17, captions", "where τ ≥ V(π), the next V is higher", [
        Comparison(f"τ at {q:.0%} of D_g", "+", p.values("reward", part="τ", q=q) - V)
        for q in QUANTILES if (p.values("threshold", part="τ", q=q) >= V).all()])
    yield from claims_of_paths(p.where(part="path"))


def claims_of_paths(ways):
    """Of ReST with its variants, and of PPO: what moves beside the reward."""
    ppo, free = (dict(path=name, end=True) for name in ("PPO", FREE))
    first, start = dict(path="ReST", **rest(1, 4)), dict(path="ReST", **BC)
    yield Claim("7, captions", "PPO with the samples of one Grow is about ReST (1,0), below "
                "(1,4)", [
                    of(ways, "PPO − (1,0)", "=", "reward", ppo, dict(path="ReST", **rest(1, 0))),
                    of(ways, "(1,4) − PPO", "+", "reward", first, ppo)])
    yield Claim("8, captions", "PPO loses the reference metric, ReST does not", [
        of(ways, "BLEU of PPO − BC", "-", "bleu", ppo, start),
        of(ways, "BLEU of ReST (1,4) − BC", ">=", "bleu", first, start)])
    for name, row in {"ReST (1,4)": first, "ReST (2,3)": dict(path="ReST", **rest(2, 3)),
                      "ReST (3,3), last weights": dict(path=LAST, **rest(3, 3)),
                      "PPO": ppo, FREE: free}.items():
        yield Claim("", f"on captions, {name} − BC", [
            ways.compare(key, "+", key, row, start, scale=scale) for key, scale in BESIDE.items()])
    end = rest(3, 3)
    yield Claim("20, captions", "keeping D in the mixture prevents divergence: with D − without, "
                "three Grows, last weights", [
                    of(ways, key, "+", key, dict(end, path=LAST), dict(end, path=WITHOUT))
                    for key in ("reward", "sampled_chrf", "bleu")], existence=True)
    yield Claim("", "on captions, reward of (3,3) − (1,4)", [
        of(ways, way, "+", "reward", dict(end, path=way), dict(rest(1, 4), path=way))
        for way in (LAST, WITHOUT)])
    yield Claim("22, captions", "ReST with the BC loss can over-fit the reward model: chrF of "
                "samples or greedy BLEU falls from (1,4) to (3,3)", [
                    of(ways, f"{key}, {way}", "-", key, dict(end, path=way),
                       dict(rest(1, 4), path=way))
                    for way in (LAST, WITHOUT) for key in ("sampled_chrf", "bleu")],
                existence=True)


def figure(p):
    picture, axes = panels("captions", 3, 16, 4.6)
    for ax, (key, scale) in zip(axes, (("reward", 100), ("sampled_chrf", 1), ("bleu", 1))):
        ends, bc = [], p.where(part="path", path="ReST", step=0)
        for name, colour in PATHS.items():
            end = path(ax, p.where(part="path", path=name), "kl_to_bc", key, colour, bc, scale)
            ends.append((end, name, colour))
        ax.set(title={"reward": "reward of samples", "sampled_chrf": "chrF of samples",
                      "bleu": "BLEU, greedy"}[key] + ", above BC",
               xlabel="KL to BC per token, nats")
        label_ends(ax, ends)
    return picture
