"""The paper's baseline, online RL with PPO, as the loop of rest.py at its other end.

ReST draws millions of samples and trains on them for long; online RL draws a few hundred, makes a
few updates, and draws again from the new policy. Same Grow, same reward, same `improve`: no D, no
filter, and PPO's loss, whose KL to the BC policy takes the place of D as the anchor.
"""

import copy
import time
from dataclasses import replace

import numpy as np

import rest
from train import adamw


def online(bc, task, settings, run):
    """Online RL as the same loop at its other end -> (row, policy).

    A Grow of a few hundred samples, with no D and no filter; a few updates of PPO; and again, until
    as many samples are drawn as in one Grow. The optimiser lives on from round to round.
    """
    budget = settings.ppo_samples or settings.samples * len(rest.some_sources(task, settings, 1))
    per_round = max(1, min(settings.ppo_batch, budget) // settings.ppo_group)  # sources
    per_round = min(per_round, len(task.sources))
    rounds = max(1, budget // (per_round * settings.ppo_group))

    def make():
        policy, begin, fingers = copy.deepcopy(bc), time.monotonic(), []
        hp = settings.training(updates=settings.ppo_updates, lr=settings.ppo_lr, warmup=0,
                               final_lr=1.0, dropout=False)
        optimizer = adamw(policy.parameters(), hp)
        rng = np.random.default_rng((settings.seed, rest.PPO))
        for k in run.progress("PPO")(range(rounds)):
            chosen = rng.choice(len(task.sources), per_round, replace=False)
            drawn = ppo_round(policy, bc, [task.sources[i] for i in chosen], task, settings, hp,
                              optimizer, k)
            run.log("ppo", round=k, reward=float(drawn.reward.mean()))
            fingers.append(rest.fingerprints(replace(drawn, source=chosen[drawn.source])))
        row = {"name": "PPO", "loss": "ppo", "grow": rounds, "improve": settings.ppo_updates,
               "threshold": None, "kept_samples": 1.0, "kept_data": 0.0,
               "samples": rounds * per_round * settings.ppo_group,
               "distinct_samples": len(np.unique(np.concatenate(fingers))),
               **rest.evaluate(policy, bc, task, settings), "seconds": time.monotonic() - begin}
        run.log("row", **row)
        return {"policy": policy.state_dict(), "row": row}

    made, policy = run.step("ppo", make), copy.deepcopy(bc)
    policy.load_state_dict(made["policy"])
    return made["row"], policy


def ppo_round(policy, bc, sources, task, settings, hp, optimizer, k):
    """Grow on these sources, then PPO on what was drawn -> the scored samples.

    The baseline of a sample is the mean reward of its source's samples, in place of a critic; the
    advantages are divided by the standard deviation of the round's rewards.
    """
    seeds = (settings.seed, rest.PPO, k)
    drawn = rest.grow(policy, sources, settings.ppo_group, seeds, task.max_len, rows=settings.rows,
                      precision=settings.precision)
    drawn = rest.score(drawn, sources, task.reward)
    groups = drawn.reward.reshape(len(sources), -1)
    advantages = (groups - groups.mean(1, keepdims=True)) / (groups.std() + 1e-6)
    hp = replace(hp, batch_tokens=part(drawn, sources, hp.updates))
    advantages = replace(drawn, reward=advantages.ravel().astype(np.float32))
    rest.improve(policy, advantages, sources, settings, hp, rest.seed_of(*seeds), "ppo",
                 rest.Frozen(bc=bc), optimizer=optimizer)
    return drawn


def part(pairs, sources, n):
    """Padded tokens of a batch, for n batches to hold all pairs."""
    longest = max(int(pairs.lengths.max()), *map(len, sources))
    return -(-len(pairs) // n) * longest
