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
from storage import load_weights
from train import adamw


def online(bc, task, settings, run):
    """Online RL as the same loop at its other end. Yields (row, policy) after each part of it.

    A Grow of a few hundred samples, with no D and no filter; a few updates of PPO; and again, until
    settings.ppo_samples are drawn, by default as many as in one Grow. The optimiser lives on from
    round to round. The way is cut into settings.ppo_rows parts of as many rounds, each a step of
    the run that ends in a row; a step that was stopped goes on after the last round that was saved.
    """
    chosen = sources_of_rounds(task, settings)
    hp = settings.training(updates=settings.ppo_updates, lr=settings.ppo_lr, warmup=0,
                           final_lr=1.0, dropout=False)
    policy = copy.deepcopy(bc)
    optimizer = adamw(policy.parameters(), hp)
    state = {"round": 0, "fingers": torch.zeros(0, dtype=torch.int64), "tokens": 0,
             "grow_seconds": 0.0, "trained": 0, "train_seconds": 0.0}  # of all rounds so far

    def saved():
        return {**state, "policy": policy.state_dict(), "optimizer": optimizer.state_dict()}

    def take_up(made):
        load_weights(policy, made["policy"])
        optimizer.load_state_dict(made["optimizer"])
        state.update({name: made[name] for name in state})

    def make(end):
        """The rounds before `end`, in place -> what the run keeps of them."""
        before = dict(state)
        if (made := run.checkpoint.load("ppo")) is not None:
            take_up(made)
        for k in run.progress("PPO")(range(state["round"], end)):
            if run.checkpoint.due():
                run.checkpoint.save("ppo", saved())
            one_round(k)
        row = {"name": "PPO", "loss": "ppo", "grow": end, "improve": settings.ppo_updates,
               "threshold": None, "kept_samples": 1.0, "kept_data": None,
               "samples": end * len(chosen[0]) * settings.ppo_group,
               "distinct_samples": len(state["fingers"]), "tokens_drawn": state["tokens"],
               "grow_seconds": state["grow_seconds"],
               "updates": (end - before["round"]) * settings.ppo_updates,
               "tokens_trained": state["trained"] - before["trained"],
               "train_seconds": state["train_seconds"] - before["train_seconds"],
               **rest.evaluate(policy, bc, task, settings)}
        row["seconds"] = run.seconds_at_work()
        run.log("row", **row)
        return {**saved(), "row": row}

    def one_round(k):
        samples, seconds, fitted = ppo_round(policy, bc, chosen[k], task, settings, hp, optimizer,
                                             k)
        fingers = torch.from_numpy(rest.fingerprints(samples).view(np.int64))
        state.update(round=k + 1, fingers=torch.cat([state["fingers"], fingers]).unique(),
                     tokens=state["tokens"] + len(samples.tokens),
                     grow_seconds=state["grow_seconds"] + seconds,
                     trained=state["trained"] + fitted["units"],
                     train_seconds=state["train_seconds"] + fitted["seconds"])
        run.log("ppo", round=k, reward=float(samples.reward.mean()))

    n = len(chosen)
    ends = [part[-1] + 1 for part in np.array_split(range(n), min(settings.ppo_rows, n))]
    for part, end in enumerate(ends, 1):
        made = run.step(f"ppo-{part}", lambda: make(int(end)))
        take_up(made)
        yield made["row"], policy


def sources_of_rounds(task, settings):
    """A list of index arrays: the sources that each round of PPO draws for."""
    budget = settings.ppo_samples or settings.samples * len(rest.some_sources(task, settings, 1))
    per_round = max(1, min(settings.ppo_batch, budget) // settings.ppo_group)
    per_round = min(per_round, len(task.sources))
    rounds = max(1, budget // (per_round * settings.ppo_group))
    rng = np.random.default_rng((settings.seed, rest.PPO))
    return [rng.choice(len(task.sources), per_round, replace=False) for _ in range(rounds)]


def ppo_round(policy, bc, chosen, task, settings, hp, optimizer, k):
    """Grow on the `chosen` sources, then PPO on what was drawn.

    Returns the scored samples, the seconds that they took, and what `fit` says of the training.
    The baseline of a sample is the mean reward of its source's samples, in place of a critic; the
    advantages are divided by the standard deviation of the round's rewards.
    """
    begin, sources = time.monotonic(), [task.sources[i] for i in chosen]
    seeds = (settings.seed, rest.PPO, k)
    drawn = rest.grow(policy, sources, settings.ppo_group, seeds, task.max_len,
                      **settings.decoding())
    drawn = rest.score(drawn, sources, task.reward)
    seconds = time.monotonic() - begin
    groups = drawn.reward.reshape(len(sources), -1)
    advantages = (groups - groups.mean(1, keepdims=True)) / (groups.std() + 1e-6)
    hp = replace(hp, batch_tokens=batch_size(drawn, sources, hp.updates))
    advantages = replace(drawn, reward=advantages.ravel().astype(np.float32))
    fitted = rest.improve(policy, advantages, sources, settings, hp, rest.seed_of(*seeds), "ppo",
                          rest.Frozen(bc=bc), optimizer=optimizer)
    drawn = replace(drawn, source=chosen[drawn.source].astype(np.int32))
    return drawn, seconds, fitted


def batch_size(pairs, sources, n):
    """Padded tokens of a batch, for n batches to hold all pairs."""
    longest = max(int(pairs.lengths.max()), *map(len, sources))
    return -(-len(pairs) // n) * longest
