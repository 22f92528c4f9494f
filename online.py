"""The paper's baseline, online RL with PPO, as the loop of rest.py at its other end.

ReST draws millions of samples and trains on them for long; online RL draws a few hundred, makes a
few updates, and draws again from the new policy. Same Grow, same reward, same `improve`: no D, no
filter, and PPO's loss, whose KL to the BC policy takes the place of D as the anchor.
"""

import copy
import time
from dataclasses import replace

import numpy as np
import torch

import rest
from pairs import Pairs
from train import adamw


def online(bc, task, settings, run):
    """Online RL as the same loop at its other end. Yields (row, policy) after each part of it.

    A Grow of a few hundred samples, with no D and no filter; a few updates of PPO; and again, until
    settings.ppo_samples are drawn, by default as many as in one Grow. The optimiser lives on from
    round to round. The way is cut into settings.ppo_rows parts of as many rounds, each a step of
    the run that ends in a row.
    """
    budget = settings.ppo_samples or settings.samples * len(rest.some_sources(task, settings, 1))
    per_round = max(1, min(settings.ppo_batch, budget) // settings.ppo_group)  # sources
    per_round = min(per_round, len(task.sources))
    rounds = max(1, budget // (per_round * settings.ppo_group))
    rng = np.random.default_rng((settings.seed, rest.PPO))
    chosen = [rng.choice(len(task.sources), per_round, replace=False) for _ in range(rounds)]
    hp = settings.training(updates=settings.ppo_updates, lr=settings.ppo_lr, warmup=0,
                           final_lr=1.0, dropout=False)
    policy = copy.deepcopy(bc)
    optimizer = adamw(policy.parameters(), hp)
    fingers, tokens, grow_seconds = [], 0, 0.0

    def make(some_rounds):
        """Some rounds of PPO, in place -> what the run keeps of them."""
        begin, drawn, drawing, trained = time.monotonic(), [], 0.0, 0
        for k in run.progress("PPO")(some_rounds):
            samples, seconds, units = ppo_round(policy, bc, chosen[k], task, settings, hp,
                                                optimizer, k)
            drawing, trained = drawing + seconds, trained + units
            run.log("ppo", round=k, reward=float(samples.reward.mean()))
            drawn.append(samples)
        drawn = Pairs.join(drawn)
        new = np.unique(rest.fingerprints(drawn))
        row = {"name": "PPO", "loss": "ppo", "grow": some_rounds[-1] + 1,
               "improve": settings.ppo_updates, "threshold": None, "kept_samples": 1.0,
               "kept_data": None,
               "samples": (some_rounds[-1] + 1) * per_round * settings.ppo_group,
               "distinct_samples": len(np.unique(np.concatenate([*fingers, new]))),
               "tokens_drawn": tokens + len(drawn.tokens), "grow_seconds": grow_seconds + drawing,
               "updates": len(some_rounds) * settings.ppo_updates,
               "tokens_trained": trained,
               "train_seconds": time.monotonic() - begin - drawing,
               **rest.evaluate(policy, bc, task, settings), "seconds": time.monotonic() - begin}
        run.log("row", **row)
        return {"policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "row": row,
                "fingers": torch.from_numpy(new.view(np.int64))}

    parts = np.array_split(np.arange(rounds), min(settings.ppo_rows, rounds))
    for part, some_rounds in enumerate(parts, 1):
        made = run.step(f"ppo-{part}", lambda: make(some_rounds.tolist()))
        policy.load_state_dict(made["policy"])
        optimizer.load_state_dict(made["optimizer"])
        fingers.append(made["fingers"].numpy().view(np.uint64))
        tokens, grow_seconds = made["row"]["tokens_drawn"], made["row"]["grow_seconds"]
        yield made["row"], policy


def ppo_round(policy, bc, chosen, task, settings, hp, optimizer, k):
    """Grow on the `chosen` sources, then PPO on what was drawn.

    Returns the scored samples, the seconds that they took, and the tokens that were trained on.
    The baseline of a sample is the mean reward of its source's samples, in place of a critic; the
    advantages are divided by the standard deviation of the round's rewards.
    """
    begin, sources = time.monotonic(), [task.sources[i] for i in chosen]
    seeds = (settings.seed, rest.PPO, k)
    drawn = rest.grow(policy, sources, settings.ppo_group, seeds, task.max_len, rows=settings.rows,
                      precision=settings.precision)
    drawn = rest.score(drawn, sources, task.reward)
    seconds = time.monotonic() - begin
    groups = drawn.reward.reshape(len(sources), -1)
    advantages = (groups - groups.mean(1, keepdims=True)) / (groups.std() + 1e-6)
    hp = replace(hp, batch_tokens=batch_size(drawn, sources, hp.updates))
    advantages = replace(drawn, reward=advantages.ravel().astype(np.float32))
    fitted = rest.improve(policy, advantages, sources, settings, hp, rest.seed_of(*seeds), "ppo",
                          rest.Frozen(bc=bc), optimizer=optimizer)
    drawn = replace(drawn, source=chosen[drawn.source].astype(np.int32))
    return drawn, seconds, fitted["units"]


def batch_size(pairs, sources, n):
    """Padded tokens of a batch, for n batches to hold all pairs."""
    longest = max(int(pairs.lengths.max()), *map(len, sources))
    return -(-len(pairs) // n) * longest
