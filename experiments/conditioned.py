"""Conditioning in place of filtering: BC on all of D_g, told of each pair how good it is.

Claims     18: Q-learning and decision transformers did not beat supervised learning. A decision
           transformer (Chen et al. 2021, arXiv:2106.01345) is BC given the return to go; with one
           reward, at the end, that is one word in front of the source, which names a fifth of D_g
           by reward. Drawn from, it is asked for the best fifth. Q-learning is not built here.
Varied     filtered BC, ReST (1,1) and (1,4), or conditioned BC with as many updates as (1,4).
Held       D, BC policy, reward model, D_g.
Takes      about 1 minute a seed on one core.
"""

from dataclasses import replace

import numpy as np

from experiments.grow_steps import MAIN
from experiments.improve_steps import WAYS
from experiments.plot import BLUE, GREEN, bars, panels
from experiments.verdicts import Claim
from infra.sampling import sample_outputs
from model import Transformer
from rest import grow, improve

LEVELS = 5  # words that name how good an output is


def points(lab):
    for row in lab.rest(**MAIN):
        if row["grow"] <= 1:
            yield {"method": f"ReST ({row['grow']},{row['improve']})", **row}
    yield {"method": "conditioned", **lab.cached("conditioned", {}, lambda: conditioned(lab))}


def conditioned(lab):
    """Its reward and oracle on the test sources."""
    with lab.prepared() as (settings, run, toy):
        task, words = toy.task, toy.problem.vocab_size
        D_g = grow(toy.bc, task, settings, 1, run)[0]
        edges = np.quantile(D_g.reward, np.arange(1, LEVELS) / LEVELS)
        level = words + np.searchsorted(edges, D_g.reward)
        sources = [np.append(k, task.sources[i]) for k, i in zip(level, D_g.source)]
        policy = widened(toy.bc, LEVELS)
        improves = len(settings.improves(1))
        improve(policy, replace(D_g, source=np.arange(len(D_g), dtype=np.int32)), sources, settings,
                settings.training(updates=improves * settings.updates), settings.seed)
        asked, found = [np.append(words + LEVELS - 1, x) for x in task.test_sources], {}
        for how, key in WAYS.items():
            temperature = {"": 1.0, ", at T = 0.8": 0.8, ", greedy": 0.0}[how]
            drawn = sample_outputs(policy, asked, 1, settings.seed, task.max_len, temperature)
            outputs = [y[y < words] for y in drawn.targets()]
            found[key] = float(np.mean(task.reward(task.test_sources, outputs)))
            found[key.replace("reward", "oracle")] = float(
                toy.problem.oracle(task.test_sources, outputs).mean())
        return found


def widened(policy, n):
    """The policy with n words more, and room for one of them in front of a source."""
    config = policy.config
    wide = Transformer(replace(config, vocab_size=config.vocab_size + n,
                               max_len=config.max_len + 1))
    weights = policy.state_dict()
    weights["embedding.weight"] = wide.embedding.weight.detach().clone()
    weights["embedding.weight"][: config.vocab_size] = policy.embedding.weight
    wide.load_state_dict(weights)
    return wide


def claims(p):
    for how, key in WAYS.items():
        yield Claim(f"18{how}", "conditioning on the reward does not beat filtering (Q-learning is "
                    "not tested)", [
                        p.compare(f"ReST (1,4) − conditioned, {k}", ">=", k,
                                  dict(method="ReST (1,4)"), dict(method="conditioned"))
                        for k in (key, key.replace("reward", "oracle"))])


def figure(p):
    picture, axes = panels("conditioned", 2, 11, 3.4, sharey=True)
    names = ["ReST (1,0)", "ReST (1,1)", "ReST (1,4)", "conditioned"]
    for ax, key, colour in zip(axes, ("reward", "oracle"), (BLUE, GREEN)):
        bars(ax, names, [p.difference(key, dict(method=name), dict(name="BC")) for name in names],
             [colour] * len(names))
        ax.set(title=f"{key} above BC", xlabel="points of 100")
    return picture
