"""ReST: Reinforced Self-Training (Gulcehre et al. 2023, arXiv:2308.08998), Algorithm 1.

    Train π_θ on D.                                                         behaviour_cloning
    for g = 1..G:                                                           rest
        Grow     D_g = { (x, y): x ~ D, y ~ π_θ(·|x) } ∪ D, scored by R     grow
        for i = 1..I:
            Improve  choose τ_i > τ_{i-1}, τ_1 > V(π_θ);                    select
                     while the reward on D_eval rises, minimise             improve
                     J(θ) = E_{(x,y) ~ D_g}[ 1[R(x, y) > τ_i] L(x, y; θ) ]

    for row, policy, D_g in rest(bc, task, Settings()):    # in memory; programs pass a run too
        print(row["grow"], row["improve"], row["reward"])

From top to bottom: settings, the task, filters, Grow, Improve, the two loops of Algorithm 1, online
RL as a special case of them, and what is measured.

What is not as in the paper: τ is by default a quantile of D_g's rewards, as absolute values need a
reward whose scale one knows; an Improve is given up after `patience` evaluations without a better
reward, and not after 500 000 updates. Left out: a reward model that learns along with the policy.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from infra import checks
from infra.batches import collate
from infra.measures import OnlineState, Tally, evaluate, mean_reward
from infra.pairs import PART, Pairs, first_of_equal, score
from infra.relatives import Switches
from infra.run import InMemory
from infra.sampling import sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import Machine, check_settings, setting
from infra.storage import load_weights
from infra.trainer import Trainer, Training, adamw, compiled
from losses import LOSSES, PPO, LossSettings, PPOSettings, ReferenceModels
from model import shift_right
from reward import ValueModel, train_value

# ------------------------------------------------------------------------------------- settings


@dataclass
class Settings(Switches, PPOSettings, LossSettings, Machine):
    """Algorithm 1: what the paper leaves open"""

    grow: int = setting(2, "Grow steps G", low=0)
    improve: tuple[int, ...] = setting((4, 3), "Improve steps I, one number for each Grow; the "
                                       "last value repeats", low=0)
    unfiltered: bool = setting(True, "the first Grow begins with I = 0: BC on all of D_g")
    samples: int = setting(8, "samples per source in each Grow", low=1)
    grow_sources: int = setting(0, "sources of each Grow, chosen at random; 0: all of D's", low=0)
    temperature: tuple[float, ...] = setting((0.8,), "sampling temperature of Grow; of several, "
                                             "each gives its share of the samples", low=0)
    filter: str = setting("auto", "what a threshold means: a reward; a quantile of D_g's rewards; "
                          "a percentile, a γ or a top-k within each source; auto is quantile, and "
                          "percentile with --preferences", choices=lambda: ("auto", *FILTERS))
    thresholds: tuple[float, ...] = setting((), "one for each Improve, rising (falling for top); "
                                            "the last value repeats; default: the filter's own")
    loss: str = setting("bc", "what Improve minimises", choices=lambda: LOSSES)
    updates: int = setting(300, "most updates of an Improve", low=1)
    batch_tokens: int = setting(2048, "padded tokens of a training batch", low=1)
    lr: float = setting(5e-4, "peak learning rate of an Improve, times lr_decay^i", low=0)
    lr_decay: float = setting(0.8, "what each further Improve i of a Grow multiplies the rate by",
                              low=0, high=1)
    evaluate_every: int = setting(100, "updates between two evaluations of the reward on D_eval",
                                  low=1)
    patience: int = setting(2, "evaluations without a better reward before an Improve stops", low=1)
    preferences: bool = setting(False, "train the reward model on preferences, not on ratings")
    seed: int = setting(0, "of everything that is random", low=0, high=2**63 - 1)

    def __post_init__(self):
        check_settings(self)
        if self.filter == "auto":  # a preference model's scores have a free offset per source
            self.filter = "percentile" if self.preferences else "quantile"
        checks.check_algorithm(self, FILTERS, LOSSES, ReferenceModels)

    def improves(self, g):
        """The Improves of Grow g, by number; 0 is the one that keeps all of D_g."""
        last = self.improve[min(g, len(self.improve)) - 1]
        return range(0 if g == 1 and self.unfiltered else 1, last + 1)

    @property
    def filter_is_global(self):
        """Whether one τ holds for all sources."""
        return FILTERS[self.filter].is_global

    def training(self, **changes):
        """The settings of one Improve's training."""
        hp = Training(self.updates, self.batch_tokens, self.accumulate, self.lr, warmup=20,
                      evaluate_every=self.evaluate_every, patience=self.patience,
                      precision=self.precision)
        return replace(hp, **changes)


@dataclass
class Task:
    """The data of a problem. Sources are id arrays that end in eos; Pairs index into `sources`."""

    sources: list  # training sources x
    data: Pairs  # D, human pairs of the training sources
    eval_sources: list  # D_eval: stops an Improve and chooses its checkpoint
    test_sources: list  # only ever reported on
    max_len: int  # longest output in tokens
    reward: Callable = None  # (sources, outputs) -> (n,) in [0, 1]
    metrics: Callable = None  # (policy, sampled, greedy) -> dict: of test outputs, by reference
    base: tuple = None  # (policy, Training): what BC began with, and how it was trained
    refresh: Callable = None  # (policy, g) -> a new `reward` for Grow g > 1, if there is one

    def __post_init__(self):
        checks.check_task(self)


# -------------------------------------------------------------------------------------- filters
#
# (source (n,), reward (n,), threshold) -> booleans (n,): what lies strictly above a line. A line
# for all sources also chooses between sources, and so favours easy ones; one for each does not.


def above(source, reward, tau, inclusive=False):
    """The paper's F(x, y; τ) = 1[R(x, y) > τ]."""
    return reward >= tau if inclusive else reward > tau


def above_quantile(source, reward, q, inclusive=False):
    """The same, τ given as the quantile q in [0, 1] of all rewards of D_g."""
    return above(source, reward, np.quantile(reward, q), inclusive)


def above_percentile(source, reward, p, inclusive=False):
    """Above the percentile p in [0, 100] of its own source's rewards (A.7)."""
    order, first, counts = by_source(source, reward)
    ordered = reward[order].astype(np.float64)
    at = first + p / 100 * (counts - 1)  # linear interpolation, as np.percentile does
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, first + counts - 1)
    tau = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return unsorted(order, above(source, ordered, np.repeat(tau, counts), inclusive))


def above_gamma(source, reward, gamma, inclusive=False):
    """Above τ(x) = γ max + (1 - γ) mean of its own source's rewards, γ rising (A.7)."""
    order, first, counts = by_source(source, reward)
    ordered = reward[order].astype(np.float64)
    mean = np.add.reduceat(ordered, first) / counts
    best = ordered[first + counts - 1]
    tau = best - (1 - gamma) * (best - mean)  # so written, exact where all are equal
    return unsorted(order, above(source, ordered, np.repeat(tau, counts), inclusive))


def top(source, reward, k, inclusive=False):
    """The k best of each source; of equal ones the earlier, whatever `inclusive` says."""
    order, first, counts = by_source(source, reward)
    from_end = np.repeat(first + counts, counts) - np.arange(len(order))  # 1 for the best
    return unsorted(order, from_end <= k)


def by_source(source, reward):
    """The order by source, then reward; where each source begins in it, and its count."""
    order = np.lexsort((-np.arange(len(source)), reward, source))
    _, first, counts = np.unique(source[order], return_index=True, return_counts=True)
    return order, first, counts


def unsorted(order, kept):
    out = np.empty(len(order), bool)
    out[order] = kept
    return out


@dataclass
class Filter:
    """A filter, and the thresholds of Improve 1, 2, ..."""

    keep: Callable  # (source, reward, threshold, inclusive) -> booleans (n,)
    thresholds: tuple  # by default
    highest: float = 1.0  # threshold that makes sense
    falling: bool = False  # the thresholds fall from Improve to Improve
    is_global: bool = False  # one τ for all sources, not one for each


FILTERS = {  # for --filter; the thresholds of the first are the paper's, from its second one on
    "threshold": Filter(above, (0.7, 0.8, 0.9, 0.95, 0.99), is_global=True),
    "quantile": Filter(above_quantile, (0.5, 0.7, 0.85, 0.95, 0.98), is_global=True),
    "percentile": Filter(above_percentile, (50, 70, 80, 90, 95), highest=100),
    "gamma": Filter(above_gamma, (0.2, 0.4, 0.6, 0.8, 0.9)),
    "top": Filter(top, (4, 3, 2, 1), highest=float("inf"), falling=True),
}


def select(D_g, settings, i):
    """The filter of Improve i -> (booleans (n,), τ): what it keeps, and the line it draws.

    i = 0 keeps everything, τ = None. For a filter within each source, τ is the setting's value.
    """
    if i == 0:
        return np.ones(len(D_g), bool), None
    value = settings.thresholds[min(i, len(settings.thresholds)) - 1]
    kept = FILTERS[settings.filter].keep(D_g.source, D_g.reward, value, settings.inclusive)
    if settings.human_data == "whole":
        kept = kept | D_g.human
    if settings.max_per_source:  # the first samples of a source are as good as any
        samples = kept & ~D_g.human
        few = samples & top(D_g.source, np.where(samples, 1.0, 0.0), settings.max_per_source)
        kept = kept & D_g.human | few
    tau = np.quantile(D_g.reward, value) if settings.filter == "quantile" else value
    return kept, float(tau)


# ----------------------------------------------------------------------------------------- Grow


def grow(policy, task, settings, g, run, earlier=()):
    """Grow g -> (D_g = samples of the policy ∪ D, all scored once; its samples).

    earlier: the samples of Grows before, where they are kept too. Both are made part by part.
    """
    # { (x, y): x ~ D, y ~ π_θ(·|x) }: so many samples of each source
    chosen, parts = choose_sources(task, settings, g), []
    for k, temperature in enumerate(settings.temperature[: settings.samples]):
        n = len(range(k, settings.samples, len(settings.temperature)))  # its share of the samples
        size = max(1, PART // n)
        parts += [(chosen[at : at + size], n, temperature, ("grow", settings.seed, g, k, at))
                  for at in range(0, len(chosen), size)]
    for index, n, temperature, seed in run.parts(f"grow-{g}", parts):
        drawn = sample_outputs(policy, [task.sources[i] for i in index], n, seed, task.max_len,
                               temperature, settings.top_k, settings.top_p, **settings.decoding(),
                               progress=run.progress(f"Grow {g}"))
        run.add(replace(drawn, source=index[drawn.source]))
    samples = run.pairs(f"grow-{g}")

    # ∪ D; every pair is annotated with R(x, y), once
    drawn = [part for pairs in (*earlier, samples) for part in pairs.parts()]
    data = [] if settings.human_data == "out" else list(task.data.parts())
    new = None  # booleans for each drawn part: what is not there already
    for k, part in run.parts(f"score-{g}", list(enumerate(drawn + data)),
                             lambda D_g: checks.log_grow(D_g, samples, select, settings, g, run)):
        if settings.distinct and k < len(drawn):
            new = new or np.split(first_of_equal(*earlier, samples),
                                  np.cumsum([len(part) for part in drawn])[:-1])
            part = part.select(new[k])
        run.add(score(part, task.sources, task.reward))
    return run.pairs(f"score-{g}"), samples


def choose_sources(task, settings, g):
    """The sources that this Grow samples for: all of them, or a random part."""
    n = len(task.sources)
    if settings.grow_sources == 0 or settings.grow_sources >= n:
        return np.arange(n, dtype=np.int32)
    chosen = stream("sources", settings.seed, g).choice(n, settings.grow_sources, replace=False)
    return np.sort(chosen).astype(np.int32)


# -------------------------------------------------------------------------------------- Improve


def improve(policy, pairs, sources, settings, hp, seed, loss=None, kept=None, evaluate=None,
            **trainer_args):
    """Fine-tune `policy`, in place, on the pairs at `kept` (booleans (n,); default: on all).

    BC on D is this; so is each Improve, on what the filter kept, and each round of PPO.
    loss: a losses.Loss; default: BC. evaluate(policy) -> a held-out score, higher is better: the
    policy returns to the best checkpoint; without it all updates are made, the last weights stand.
    """
    kept = np.arange(len(pairs)) if kept is None else np.flatnonzero(kept)
    device = policy.embedding.weight.device
    forward = compiled(policy, device) if settings.compile else policy
    loss = (loss or LOSSES["bc"](settings, policy, ReferenceModels())).to(device)
    with Trainer(policy, pairs.padded_lengths(sources)[kept], pairs.lengths[kept], hp, seed, loss,
                 names=pairs.source[kept], **trainer_args) as trainer:
        while True:
            # "while the reward on D_eval improves": evaluate now and then, remember the best
            if evaluate and trainer.is_evaluation_due():
                trainer.track_best(evaluate(policy))
            if trainer.is_done():  # no better for a while, or all updates are made
                break
            for index in trainer.next_update():  # one or several micro-batches
                batch = collate(pairs, sources, kept[index], device)
                with trainer.autocast():
                    logits = forward(batch.source, shift_right(batch.tokens)).float()  # (B, T, V)
                    # F · L: what the filter dropped is not among the pairs
                    loss_sum = loss(logits, batch, trainer.update, hp.updates)
                trainer.backward(loss_sum)  # divided by the tokens of all micro-batches
            trainer.step()  # clip the gradients; optimizer.step() at the next learning rate
    return trainer.result()


def behaviour_cloning(policy, task, settings, hp=None, run=None, evaluate=None, **trainer_args):
    """Train π_θ on D: the step "bc" of a run -> the BC policy, a trained copy of `policy`.

    The task keeps what it began with, as its `base`. evaluate, trainer_args: as for `improve`.
    """
    run, hp = run or InMemory(), hp or settings.training()
    task.base, policy = (policy, hp), copy.deepcopy(policy)
    saved = run.begin("bc")
    if saved is None:
        done = improve(policy, task.data, task.sources, settings, hp,
                       seed_of("bc", settings.seed), evaluate=evaluate, checkpoint=run.checkpoint,
                       **{"log": run.logger("bc"), "title": "BC", **trainer_args})
        checks.check_bc(done, run)
        saved = run.end({"policy": policy.state_dict(), **done})
    load_weights(policy, saved["policy"])
    return policy.eval()


# ------------------------------------------------------------------------------------ Algorithm 1


def rest(bc, task, settings, run=None):
    """Algorithm 1, from the BC policy on. Yields (row, policy, D_g) after each Improve.

    run: what keeps each step, so that it can be gone on with (infra/run.py); by default nothing is
    kept. `bc` and `task` stay as they are.
    """
    run, task = run or InMemory(), replace(task)
    checks.check_start(bc, task, settings, run)
    policy, earlier, tally = bc, [], Tally()
    for g in range(1, settings.grow + 1):
        if g > 1 and task.refresh:
            task.reward = task.refresh(policy, g)
        # Grow: samples of the current policy, joined with D; all scored once.
        D_g, samples = grow(policy, task, settings, g, run, earlier)
        earlier = [*earlier, samples] if settings.keep_samples else []
        tally.add(samples, run.seconds(f"grow-{g}") + run.seconds(f"score-{g}"))
        reference = ReferenceModels(bc, behaviour=policy, value=fit_behaviour_value(
            policy, D_g, task, settings, run, g))
        # Improve: ever stricter filters, ever lower learning rates, each from the policy before.
        # The first Grow begins with no filter: what Grow alone is worth, the paper's I = 0.
        for i in settings.improves(g):
            kept, tau = select(D_g, settings, i)
            row = {"name": "ReST", "loss": settings.loss if i else "bc", "grow": g, "improve": i,
                   "threshold": tau, "kept_samples": mean(kept[~D_g.human]),
                   "kept_data": mean(kept[D_g.human]), **tally.counts()}
            policy, row = improve_step(policy, D_g, kept, task, settings, reference, run, row)
            yield row, policy, D_g


def improve_step(policy, D_g, kept, task, settings, reference, run, row):
    """One Improve on what is kept -> (new policy, its row). Nothing kept: the policy stays."""
    g, i = row["grow"], row["improve"]
    hp = settings.training(lr=settings.lr * settings.lr_decay**i)  # lower for each Improve
    start = {"previous": policy, "bc": reference.bc}.get(settings.start)
    if settings.start == "base":
        start, hp = task.base
    new = copy.deepcopy(start if kept.any() else policy)
    evaluations = {"best": lambda policy: mean_reward(policy, task, settings), "last": None}

    saved = run.begin(f"improve-{g}-{i}")
    if saved is None:
        checks.check_filter(D_g, kept, row, settings, run)
        done = {"updates": 0, "tokens": 0, "seconds": 0.0}
        if kept.any():
            loss = LOSSES[row["loss"]](settings, new, reference)
            done = improve(new, D_g, task.sources, settings, hp,
                           seed_of("improve", settings.seed, g, i), loss, kept,
                           evaluations[settings.checkpoint], log=run.logger(f"improve-{g}-{i}"),
                           checkpoint=run.checkpoint, title=f"Improve {g},{i}")
        row = row | {"updates": done["updates"], "tokens_trained": done["tokens"],
                     "train_seconds": done["seconds"]}
        row |= evaluate(new, reference.bc, task, settings)
        row["seconds"] = run.seconds_at_work()
        run.log("row", **row)
        saved = run.end({"policy": new.state_dict(), "row": row})
    load_weights(new, saved["policy"])
    return new, saved["row"]


def fit_behaviour_value(policy, D_g, task, settings, run, g):
    """V^μ, for losses that need one: μ is the mixture that D_g is, the policy's samples and D."""
    if not LOSSES[settings.loss].needs_value:
        return None
    value = ValueModel.from_policy(policy)
    saved = run.begin(f"value-{g}")
    if saved is None:
        train_value(value, task.sources, D_g, settings.training(updates=settings.value_updates),
                    seed_of("value", settings.seed, g), log=run.logger(f"value-{g}"),
                    checkpoint=run.checkpoint, title="value model")
        saved = run.end({"value": value.state_dict()})
    load_weights(value, saved["value"])
    return value


# ------------------------------------------------------------------------ online RL, a special case


def online(bc, task, settings, run=None):
    """Online RL with PPO: the same loop with many small Grows, no D, no filter, and another loss.

    A Grow of a few hundred samples; a few updates of PPO, whose KL to the BC policy takes the place
    of D as the anchor; and again, until settings.ppo_samples are drawn. The optimiser lives on from
    round to round. The way is cut into settings.ppo_rows parts. Yields (row, policy) after each.
    """
    run, chosen = run or InMemory(), sources_of_rounds(task, settings)
    checks.check_start(bc, task, settings, run, "online_reward")
    hp = settings.training(updates=settings.ppo_updates, lr=settings.ppo_lr, warmup=0,
                           final_lr=1.0, dropout=False,
                           parts=settings.ppo_updates * settings.accumulate)
    policy = copy.deepcopy(bc)
    state = OnlineState(policy, adamw(policy.parameters(), hp))
    parts = np.array_split(range(len(chosen)), min(settings.ppo_rows, len(chosen)))
    for part, rounds in enumerate(parts, 1):
        saved = run.begin(f"ppo-{part}")
        if saved is None:
            state.begin_part(run.checkpoint)
            for k in run.progress("PPO")(range(state.round, int(rounds[-1]) + 1)):
                state.save_if_due()
                samples, seconds, done = ppo_round(policy, bc, chosen[k], task, settings, hp,
                                                   state.optimizer, k)
                state.add_round(samples, seconds, done)
                run.log("ppo", round=k, reward=float(samples.reward.mean()))
            row = {"name": "PPO", "loss": "ppo", "grow": state.round,
                   "improve": settings.ppo_updates, "threshold": None, "kept_samples": 1.0,
                   "kept_data": None, **state.counts(), **evaluate(policy, bc, task, settings)}
            row["seconds"] = run.seconds_at_work()
            run.log("row", **row)
            saved = run.end({**state.saved(), "row": row})
        state.restore(saved)
        yield saved["row"], policy


def sources_of_rounds(task, settings):
    """A list of index arrays: the sources that each round of PPO samples for."""
    budget = settings.ppo_samples or settings.samples * len(choose_sources(task, settings, 1))
    per_round = max(1, min(settings.ppo_batch, budget) // settings.ppo_group)
    per_round = min(per_round, len(task.sources))
    rounds = max(1, budget // (per_round * settings.ppo_group))
    rng = stream("PPO sources", settings.seed)
    return [rng.choice(len(task.sources), per_round, replace=False) for _ in range(rounds)]


def ppo_round(policy, bc, chosen, task, settings, hp, optimizer, k):
    """Grow on the `chosen` sources, then PPO on what was drawn.

    Returns the scored samples, the seconds that they took, and what the training says of itself.
    The baseline of a sample is the mean reward of its source's samples, in place of a critic; the
    advantages are divided by the standard deviation of the round's rewards.
    """
    start, sources = time.monotonic(), [task.sources[i] for i in chosen]
    seed = ("PPO", settings.seed, k)
    samples = sample_outputs(policy, sources, settings.ppo_group, seed, task.max_len,
                             **settings.decoding())
    samples = score(samples, sources, task.reward)
    seconds = time.monotonic() - start
    groups = samples.reward.reshape(len(sources), -1)
    advantages = (groups - groups.mean(1, keepdims=True)) / (groups.std() + 1e-6)
    pairs = replace(samples, reward=advantages.ravel().astype(np.float32))
    done = improve(policy, pairs, sources, settings, hp, seed_of(*seed),
                   PPO(settings, policy, ReferenceModels(bc)), optimizer=optimizer)
    return replace(samples, source=chosen[samples.source].astype(np.int32)), seconds, done


# ------------------------------------------------------------------------------------ best of N


def best_of_n(policy, task, settings, counts=(1, 2, 4, 8, 16, 32, 64)):
    """Yields (N, Pairs): for each test source the best by reward of its first N samples."""
    drawn = sample_outputs(policy, task.test_sources, max(counts), ("best of N", settings.seed),
                           task.max_len, **settings.decoding())
    drawn = score(drawn, task.test_sources, task.reward)
    reward = drawn.reward.reshape(len(task.test_sources), max(counts))
    for n in counts:
        best = np.arange(len(reward)) * max(counts) + reward[:, :n].argmax(1)
        yield n, drawn.select(best)


def mean(x):
    """Of numbers or booleans; None if there are none."""
    return float(x.mean()) if len(x) else None
