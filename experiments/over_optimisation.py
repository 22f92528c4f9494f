"""Over-optimisation: when does a rising reward stop meaning anything?

Claims     11: rankings by reward and by humans differ, and the reward model generalises worse
           farther from the behaviour policy. 12: by human score one Grow is best, although the
           reward keeps rising. 21: the reward model errs more on low-scored samples. 22: ReST with
           the BC loss can over-fit the reward model. (10 and 13: losses.py.) The oracle stands in
           for the humans.
Varied     the reward model's flaw, which a policy can find: none; few ratings; raters who read only
           the first six words; raters who like length. And how the policy moves: ReST over four
           Grows, returning to the best checkpoint or not, with D or without; PPO with its usual KL
           to BC, and without. As remedies, for few ratings: the same number of ratings shared out
           over the Grows, each time of the policy that grows (beyond.py has that for many), and the
           lowest of three reward models.
Held       D, BC policy, test sources.
Takes      about 15 minutes a seed on one core.
"""

import numpy as np

import reward as rm
from experiments import losses
from experiments.plot import BLUE, GREEN, ORANGE, SKY, VERMILLION, label_ends, panels, path
from experiments.search import FOUND
from experiments.verdicts import Claim, Comparison
from infra.pairs import Pairs
from infra.seeds import seed_of, stream
from rest import rest

FLAWS = {"none": lambda lab: {}, "few ratings": lambda lab: dict(
    rated_sources=lab.usual.rated_sources // losses.SHARE["few"]),
    "hasty raters": lambda lab: dict(task="hasty"),
    "raters who like length": lambda lab: dict(task="verbose")}
FREE, LAST, WITHOUT = "PPO without KL", "ReST, last weights", "ReST, last weights, without D"
PATHS = {"ReST": BLUE, LAST: SKY, WITHOUT: GREEN, "PPO": VERMILLION, FREE: ORANGE}
SIGNS = ("entropy", "length", "distinct_2")


def points(lab):
    grow = lab.usual.samples * lab.usual.demonstrations
    for flaw, changes in FLAWS.items():
        bed = changes(lab)
        online = {**FOUND["ppo"], **bed, "ppo_samples": grow, "ppo_rows": 4}
        paths = {"ReST": lab.rest(grow=4, **bed),
                 LAST: lab.rest(grow=4, checkpoint="last", **bed),
                 WITHOUT: lab.rest(grow=4, checkpoint="last", human_data="out", **bed),
                 "PPO": lab.online(**online), FREE: lab.online(**{**online, "ppo_kl": 0.0})}
        if flaw == "few ratings":
            paths["shared out"] = lab.rest(grow=4, refresh=True, **bed)
            paths["ensemble"] = lab.cached("ensemble", dict(grow=4, **bed),
                                           lambda: with_ensemble(lab, grow=4, **bed))
        for name, rows in paths.items():
            bc = [] if rows[0]["name"] == "BC" else paths["ReST"][:1]
            for step, row in enumerate([*bc, *rows]):
                yield {"part": "path", "flaw": flaw, "path": name, "step": step, **row}
        yield {"part": "residual", "flaw": flaw,
               **lab.cached("residual", bed, lambda: residuals(*lab.first_D_g(**bed)))}


def with_ensemble(lab, members=3, **bed):
    """ReST's rows where the reward is the lowest of several reward models, trained alike."""
    with lab.prepared(**bed) as (settings, run, toy):
        problem, hp = toy.problem, settings.training(updates=settings.reward_updates,
                                                     lr=settings.reward_lr, warmup=50)
        sources = problem.sources(settings.rated_sources,
                                  stream("toy sources", settings.seed, 1))
        models = [toy.reward_model]
        for k in range(1, members):
            model = rm.RewardModel.from_policy(toy.bc)
            rm.train_reward(model, sources, Pairs.join([run.pairs("rated-1")]), hp,
                            seed_of("ensemble", settings.seed, k))
            models.append(model.eval())
        toy.task.reward = lambda xs, ys: np.min([model.score(xs, ys) for model in models], axis=0)
        return [row for row, *_ in rest(toy.bc, toy.task, settings)]


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
    rows = {flaw: p.where(part="path", flaw=flaw) for flaw in FLAWS}
    bc = dict(path="ReST", name="BC")
    first, second, end = (dict(grow=g, improve=i) for g, i in ((1, 4), (2, 3), (4, 3)))
    yield Claim("11", "rankings by reward and by humans differ", [
        Comparison(f"% of pairs of policies ordered differently, by a point at least: {flaw}", "+",
                   ranked_differently(rows[flaw])) for flaw in FLAWS], existence=True)
    yield Claim("11, farther off", "far from BC, the reward model errs more", [
        rows[f].compare(f"its error after {FREE} − on BC, {f}", "+", "reward_error",
                        dict(path=FREE, step=4), bc) for f in FLAWS])
    for number, text, far, ways in (
            ("12", "one Grow is best by human score (here: oracle), while the reward rises", second,
             ("ReST", LAST)),
            ("22", "ReST with the BC loss can over-fit the reward model", end, (LAST, WITHOUT))):
        yield Claim(number, text, [
            Both(f"{way}, {flaw}", *(rows[flaw].difference(key, dict(far, path=way),
                                                           dict(first, path=way))
                                     for key in ("reward", "oracle")))
            for flaw in FLAWS for way in ways], existence=True)
    yield Claim("", "oracle of PPO without KL, at its end − the best on its way", [
        Comparison(flaw, "-", from_best(rows[flaw].where(path=FREE))) for flaw in FLAWS])
    yield Claim("21", "the reward model errs more on low-scored samples", [
        p.where(part="residual").compare(
            f"sd of its error, lowest third by {by} − highest, {f}", "+", f"low {by}",
            dict(flaw=f), dict(flaw=f), minus=f"high {by}")
        for by in ("reward", "oracle") for f in FLAWS])
    few = rows["few ratings"]
    for name in ("shared out", "ensemble"):
        yield Claim("", f"few ratings: {name} − one reward model, by oracle", [
                        few.compare(f"({g},{i})", "+", "oracle", dict(path=name, grow=g, improve=i),
                                    dict(path="ReST", grow=g, improve=i))
                        for g, i in ((2, 3), (4, 3))])
    yield Claim("", "early signs: at the end of the way − at BC", [
        rows[flaw].compare(f"{sign}, {way}, {flaw}", "+", sign, dict(path=way, step=steps), bc)
        for sign in SIGNS for flaw in FLAWS for way, steps in ((LAST, 14), (FREE, 4))])


class Both(Comparison):
    """The reward rises while the oracle falls: reproduced if both are, contradicted if one is."""

    def __init__(self, name, reward, oracle):
        self.reward = Comparison("reward", "+", reward)
        self.oracle = Comparison("oracle", "-", oracle)
        super().__init__(name, "-", oracle)

    def verdict(self):
        one, two = self.reward.verdict(), self.oracle.verdict()
        return one if one == two else "contradicted" if "contradicted" in (one, two) else "open"

    def p_value(self):
        return max(self.reward.p_value(), self.oracle.p_value())

    def __str__(self):
        return f"{self.name}: {self.reward}, {self.oracle}"


def from_best(p):
    """For each seed the oracle at the end, less the best on the way."""
    found = []
    for seed in p.seeds:
        oracle = [100 * q["oracle"] for q in p.points if q["seed"] == seed]
        found.append(oracle[-1] - max(oracle))
    return found


def ranked_differently(p):
    """For each seed the % of pairs of policies, BC once, of which the one is a point better by
    reward and a point worse by oracle."""
    shares = []
    for seed in p.seeds:
        policies = [q for q in p.points if q["seed"] == seed and q["path"] in PATHS
                    and (q["name"] != "BC" or q["path"] == "ReST")]
        reward, oracle = 100 * np.array([(q["reward"], q["oracle"]) for q in policies]).T
        better, worse = reward[:, None] - reward >= 1, oracle[:, None] - oracle <= -1
        n = len(policies)
        shares.append(100 * (better & worse).sum() / (n * (n - 1) / 2))
    return shares


def figure(p):
    picture, axes = panels("over_optimisation", 8, 18, 7.5, rows=2, sharex=True, sharey="row")
    shown = [(key, flaw) for key in ("reward", "oracle") for flaw in FLAWS]
    ends = {ax: [] for ax in axes}
    for ax, (key, flaw) in zip(axes, shown):
        rows = p.where(part="path", flaw=flaw)
        bc = rows.where(path="ReST", name="BC")
        for name, colour in PATHS.items():
            if name != LAST:  # as the best ones
                end = path(ax, rows.where(path=name), "kl_to_bc", key, colour, bc)
                ends[ax].append((end, name, colour))
        ax.set(title={"none": "no flaw"}.get(flaw, flaw) if key == "reward" else "")
    for ax in axes[3::4]:  # when all of a row is drawn, on one scale
        label_ends(ax, ends[ax])
    for ax, key in zip(axes[::4], ("reward", "oracle")):
        ax.set(ylabel=f"{key} above BC")
    for ax in axes[4:]:
        ax.set(xlabel="KL to BC per token, nats")
    return picture
