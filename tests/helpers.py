"""What several test files share: a task of two words, a small policy, and spies.

The task: a source is a word and some filler; right is to answer with that word's partner, twice.
The human pairs get each of the two words right half of the time.
"""

import copy
import functools

import numpy as np
import torch

import rest
from infra import measures, sampling
from infra.pairs import Pairs
from infra.run import InMemory
from infra.trainer import Training
from model import EOS, Config, Transformer
from rest import Settings, Task, improve

WORDS, FILLER = 4, 11
V, MAX_LEN = 12, 6  # ids 3-6 are source words, 7-10 their partners


# for a Task's `base`: unlike what any Improve is trained with
BASE_HP = Training(updates=4, batch_tokens=200, lr=7e-3, warmup=2, evaluate_every=2)


def some_policy(seed=0, **changes):
    sizes = dict(vocab_size=V, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=1,
                 d_ff=32, dropout=0.1, max_len=MAX_LEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(Config(**sizes | changes)).eval()


def oracle(sources, outputs):
    """The share of the two words that are right, 0 for an output that is not two words long."""
    return np.array([((y[:-1] == x[0] + WORDS).mean() if len(y) == 3 and y[-1] == EOS else 0)
                     for x, y in zip(sources, outputs)], np.float32)


def some_sources(n, seed):
    rng = np.random.default_rng(seed)
    return [np.array([rng.integers(3, 3 + WORDS), *[FILLER] * rng.integers(0, 4), EOS])
            for _ in range(n)]


def demonstrations(sources, seed):
    rng = np.random.default_rng(seed)
    targets = [np.append(np.where(rng.random(2) < 0.5, x[0] + WORDS, rng.integers(7, 11, 2)), EOS)
               for x in sources]
    return Pairs.of(range(len(sources)), targets, human=True)


def some_task(n=60, reward=oracle):
    sources = some_sources(n, 1)
    return Task(sources, demonstrations(sources, 2), some_sources(40, 3), some_sources(50, 4),
                MAX_LEN, reward, lambda policy, sampled, greedy: {"oracle": float(len(greedy))})


@functools.cache
def trained_policy():
    task, policy = some_task(), some_policy()
    hp = Training(updates=150, batch_tokens=512, lr=1e-2, warmup=10)
    improve(policy, task.data, task.sources, Settings(), hp, 0)
    return policy


def some_bc():
    """A policy that gets some outputs right."""
    return copy.deepcopy(trained_policy())


class FakeRun(InMemory):
    """Notes its steps, each of which took two seconds."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def begin(self, name):
        self.steps.append(name)
        super().begin(name)

    def seconds(self, name):
        return 2.0


def weights(network):
    return torch.cat([x.detach().flatten().clone() for x in network.state_dict().values()])


def same(a, b):
    """Two Pairs, to the last bit."""
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
               for x, y in zip(vars(a).values(), vars(b).values()))


def spy(monkeypatch, name, before=lambda args: None):
    """Record the calls of a function by ReST: arguments, result, and before(args)."""
    places = [module for module in (rest, measures, sampling) if hasattr(module, name)]
    calls, function = [], getattr(places[0], name)

    def spied(*args, **kwargs):
        call = {"args": args, "kwargs": kwargs, "before": before(args)}
        calls.append(call)
        call["result"] = function(*args, **kwargs)
        return call["result"]

    for module in places:
        monkeypatch.setattr(module, name, spied)
    return calls


def kept_by(call):
    """The pairs that a spied improve() was to train on."""
    pairs, kept = call["args"][1], call["args"][7]
    return pairs.select(kept)
