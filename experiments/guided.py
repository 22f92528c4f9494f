"""Guided Grow: does searching find better samples than drawing, at equal cost?

Claims     none of the paper's; its authors name Monte-Carlo tree search as future work.
Varied     how a Grow finds its samples. Plain: 16 of each source. Guided: 8, and after every four
           words those of a source are drawn anew, in proportion to exp(V / 0.1), V(x, y_<t) being
           the value model's opinion of them: what looks bad is given up for copies of what looks
           good, which then go on differently (a particle filter). The value model reads about as
           much as the policy writes, so that 8 guided cost about as much as 16 plain ones.
Held       D, BC policy, reward model; the value model is trained on the plain D_g. Improves 0 to 4.
Takes      about 2 minutes a seed on one core.
"""

import numpy as np
import torch

from experiments.plot import BLUE, GREEN, GREY, curve, label_ends, panels
from experiments.verdicts import Claim
from infra.batches import pad
from infra.measures import mean
from infra.pairs import Pairs, score
from infra.run import InMemory
from infra.seeds import seed_of
from losses import ReferenceModels
from model import BOS, EOS, PAD, Cache, sample_token
from rest import fit_behaviour_value, grow, improve_step, select

EVERY, SHARPNESS, BATCH = 4, 10.0, 128  # words between two looks; 1 / 0.1; sources at once


def points(lab):
    for name, rows in (("plain", lab.rest(grow=1, samples=16)),
                       ("guided", lab.cached("guided", dict(grow=1), lambda: guided(lab)))):
        for row in rows:
            yield {"method": name, **row}


def guided(lab):
    """The rows of one Grow of guided samples."""
    with lab.prepared(grow=1, loss="oac") as (settings, run, toy):
        task, memory = toy.task, InMemory()
        plain = grow(toy.bc, task, settings, 1, memory)[0]
        value = fit_behaviour_value(toy.bc, plain, task, settings, memory, 1)
        drawn = [guided_samples(toy.bc, value, task.sources[at : at + BATCH], at, settings,
                                task.max_len)
                 for at in range(0, len(task.sources), BATCH)]
        samples = score(Pairs.join(drawn), task.sources, task.reward)
        D_g = Pairs.join([samples, score(task.data, task.sources, task.reward)])
        settings, policy, rows = lab.settings(grow=1), toy.bc, []
        for i in settings.improves(1):
            kept, tau = select(D_g, settings, i)
            row = {"name": "ReST", "loss": "bc", "grow": 1, "improve": i, "threshold": tau,
                   "kept_samples": mean(kept[~D_g.human]), "kept_data": mean(kept[D_g.human]),
                   "drawn_reward": float(samples.reward.mean())}
            policy, row = improve_step(policy, D_g, kept, task, settings, ReferenceModels(toy.bc),
                                       memory, row)
            rows.append(row)
        return rows


@torch.inference_mode()
def guided_samples(policy, value, sources, first, settings, max_len):
    """N guided samples for each of these sources, the first of which has this number -> Pairs."""
    generator = torch.Generator().manual_seed(seed_of("guided", settings.seed, first))
    n, src = settings.samples, pad(sources)
    rows = len(sources) * n
    cache = Cache(policy.eval(), src, n)
    tokens, live = torch.zeros(rows, 0, dtype=torch.int64), torch.ones(rows, dtype=torch.bool)
    last = torch.full((rows,), BOS)
    for t in range(max_len):
        cache.advance()
        last, _ = sample_token(policy.step(last, cache), torch.rand(rows, generator=generator),
                               settings.temperature[0])
        last = last.where(live, PAD)
        live &= last != EOS
        tokens = torch.cat([tokens, last[:, None]], 1)
        if not live.any():
            break
        if t % EVERY == EVERY - 1:
            # V before the token that would come next; where a sample has ended, at its eos
            ahead = torch.cat([tokens, torch.full((rows, 1), EOS)], 1)
            V = value.eval()(src.repeat_interleave(n, 0), ahead).sigmoid()
            V = V.gather(1, (tokens != PAD).sum(1, keepdim=True))[:, 0].view(-1, n)
            chosen = torch.multinomial((SHARPNESS * V).softmax(1), n, True, generator=generator)
            index = (chosen.sort(1).values + n * torch.arange(len(sources))[:, None]).flatten()
            cache.select(index)
            tokens, last, live = tokens[index], last[index], live[index]
    targets = [row[row != PAD].numpy() for row in tokens]
    return Pairs.of(first + np.repeat(np.arange(len(sources)), n), targets)


def claims(p):
    yield Claim("", "one Grow of 8 guided samples − of 16 plain ones", [
        p.compare(f"{key} at (1,{i})", "+", key, dict(method="guided", improve=i),
                  dict(method="plain", name="ReST", improve=i))
        for i in (0, 1, 4) for key in ("reward", "oracle")])


def figure(p):
    picture, axes = panels("guided", 2, 11, 4.2)
    bc = p.where(method="plain", name="BC")
    for ax, key in zip(axes, ("reward", "oracle")):
        ends = [(curve(ax, p.where(method=name, name="ReST"), "improve", key, colour, baseline=bc),
                 name, colour) for name, colour in (("plain", BLUE), ("guided", GREEN))]
        ax.axhline(0, color=GREY, lw=1)
        ax.set(title=f"{key} above BC, points of 100", xlabel="Improve step I")
        label_ends(ax, ends)
    return picture
