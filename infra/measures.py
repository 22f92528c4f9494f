"""What a row of the results reports, and what it counts.

The random numbers of a measure never change, so that two policies are compared on the same ones.
"""

import numpy as np
import torch

from infra.pairs import hash_outputs, score
from infra.run import InMemory
from infra.sampling import logprobs_of, sample_outputs
from infra.storage import load_weights


def mean_reward(policy, task, settings):
    """V(π) on D_eval: a sample of each source at temperature 1, always from the same seed."""
    drawn = sample_outputs(policy, task.eval_sources, 1, ("D_eval", settings.seed), task.max_len,
                           **settings.decoding())
    return float(score(drawn, task.eval_sources, task.reward).reward.mean())


def mean(x):
    """Of numbers or booleans; None if there are none."""
    return float(x.mean()) if len(x) else None


def evaluate(policy, bc, task, settings):
    """The measures of a row, on test sources; rewards in [0, 1], entropy and KL in nats a token."""
    how = {"max_len": task.max_len, **settings.decoding()}
    sampled = sample_outputs(policy, task.test_sources, 1, ("test", settings.seed), **how)
    greedy = sample_outputs(policy, task.test_sources, 1, 0, temperature=0, **how)
    sampled, greedy = (score(x, task.test_sources, task.reward) for x in (sampled, greedy))
    under_bc = logprobs_of(bc, task.test_sources, sampled)
    row = {"reward": sampled.reward.mean(), "greedy_reward": greedy.reward.mean(),
           "entropy": -sampled.logprobs.mean(), "kl_to_bc": (sampled.logprobs - under_bc).mean()}
    row = {name: float(value) for name, value in row.items()}
    return row | (task.metrics(policy, sampled, greedy) if task.metrics else {})


def bc_row(bc, task, settings, run=None):
    """The first row of the results, "BC (G=0, I=0)"."""
    run = run or InMemory()
    saved = run.begin("evaluate-bc")
    if saved is None:
        row = {"name": "BC", "loss": "bc", "grow": 0, "improve": 0, "threshold": None,
               "kept_samples": None, "kept_data": 1.0, "samples": 0, "distinct_samples": 0,
               "tokens_drawn": 0, "grow_seconds": 0.0,
               **evaluate(bc, bc, task, settings), "seconds": run.seconds("bc")}
        run.log("row", **row)
        saved = run.end({"row": row})
    return saved["row"]


def best_of_n_step(run, settings, make):
    """The step "best-of-n" -> what make(counts) made, for N = 1, 2, 4, ... up to --best-of.

    Made again where an earlier process had another --best-of, or fewer Grows or Improves.
    """
    of = [settings.best_of, settings.grow, *settings.improve]
    saved = run.begin("best-of-n")
    if saved is not None and saved["of"] != of:
        run.forget("best-of-n")
        saved = run.begin("best-of-n")
    if saved is None:
        counts = [2**k for k in range(settings.best_of.bit_length())]
        saved = run.end({"rows": make(counts), "of": of})
    return saved["rows"]


class Tally:
    """What has been sampled so far."""

    def __init__(self):
        self.samples, self.tokens, self.seconds = 0, 0, 0.0
        self.hashes = torch.zeros(0, dtype=torch.int64)  # of different outputs

    def add(self, samples, seconds):
        hashes = torch.from_numpy(hash_outputs(samples).view(np.int64))
        self.hashes = torch.cat([self.hashes, hashes]).unique()
        self.samples += len(samples)
        self.tokens += len(samples.tokens)
        self.seconds += seconds

    def counts(self):
        return {"samples": self.samples, "distinct_samples": len(self.hashes),
                "tokens_drawn": self.tokens, "grow_seconds": self.seconds}


class OnlineState:
    """Where online RL stands: what a killed run goes on from, and what its rows count."""

    def __init__(self, policy, optimizer):
        self.policy, self.optimizer, self.tally = policy, optimizer, Tally()
        self.round = self.updates = self.trained = 0
        self.seconds, self.checkpoint = 0.0, None

    def begin_part(self, checkpoint):
        """Updates, trained tokens and their seconds are counted for each part of the way."""
        self.updates, self.trained, self.seconds, self.checkpoint = 0, 0, 0.0, checkpoint
        if checkpoint is not None and (found := checkpoint.load("ppo")) is not None:
            self.restore(found)

    def save_if_due(self):
        if self.checkpoint is not None and self.checkpoint.due():
            self.checkpoint.save("ppo", self.saved())

    def add_round(self, samples, seconds, done):
        """done: what the round's training said of itself."""
        self.tally.add(samples, seconds)
        self.round += 1
        self.updates += done["updates"]
        self.trained += done["tokens"]
        self.seconds += done["seconds"]

    def counts(self):
        return self.tally.counts() | {"updates": self.updates, "tokens_trained": self.trained,
                                      "train_seconds": self.seconds}

    def saved(self):
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict(),
                "tally": vars(self.tally), "round": self.round, "updates": self.updates,
                "trained": self.trained, "seconds": self.seconds}

    def restore(self, saved):
        load_weights(self.policy, saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        vars(self.tally).update(saved["tally"])
        for name in ("round", "updates", "trained", "seconds"):
            setattr(self, name, saved[name])
