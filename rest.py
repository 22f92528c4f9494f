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
RL as a special case of them, and best-of-N.

What is not as in the paper: τ is by default a quantile of D_g's rewards, as absolute values need a
reward whose scale one knows; an Improve stops after `patience` evaluations without a better reward,
or after `updates` updates (the paper: always 500 000); its loss is the mean over the tokens of what
is kept, where J(θ) divides by all of D_g; the first Grow begins with I = 0, by the BC loss, from
which its other Improves go on. The learning rate falls within a Grow, and starts again in the next.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from infra import checks
from infra.batches import collate
from infra.measures import OnlineState, Tally, evaluate, mean, mean_reward
from infra.pairs import PART, Pairs, Parts, score
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
    # Switches (infra/relatives.py) are other methods' variants; by default they change nothing.

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
            by_source = self.preferences and not self.thresholds
            self.filter = "percentile" if by_source else "quantile"
        checks.check_algorithm(self, FILTERS, LOSSES, ReferenceModels)

    def improves(self, g):
        """The Improves of Grow g, by number; 0 is the one that keeps all of D_g."""
        last = self.improve[min(g, len(self.improve)) - 1]
        return range(0 if g == 1 and self.unfiltered else 1, last + 1)

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
    metrics: Callable = None  # (policy, sampled, greedy) -> dict: more for a row, by reference say
    base: tuple = None  # (policy, Training): what BC began with, and how it was trained
    refresh: Callable = None  # (policy, g) -> a new `reward` for Grow g > 1, if there is one

    def __post_init__(self):
        checks.check_task(self)


# -------------------------------------------------------------------------------------- filters
#
# A filter draws a line τ and keeps what lies strictly above it. The default is Algorithm 1's, one τ
# for all sources; but that also chooses between sources, and favours easy ones. A τ for each source
# does not, and gains 1 to 2 points of reward more at equal shares (experiments/filters.py): where
# sources are as unlike as sentences are, it is the better choice, and `train_mt.py`'s default.


def above(reward, tau, inclusive=False):
    """The paper's F(x, y; τ) = 1[R(x, y) > τ]: reward (n,), τ a number or (n,) -> booleans (n,)."""
    return reward >= tau if inclusive else reward > tau


def quantile(source, reward, q):
    """τ is the quantile q in [0, 1] of all rewards of D_g."""
    return np.quantile(reward, q)


def percentile(source, reward, p):
    """τ(x) (n,): for each pair the percentile p in [0, 100] of its source's rewards (A.7)."""
    _, of, counts = np.unique(source, return_inverse=True, return_counts=True)
    ordered = reward[np.lexsort((reward, source))].astype(np.float64)
    last = counts.cumsum() - 1
    at = last - (1 - p / 100) * (counts - 1)  # linear interpolation, as np.percentile does
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, last)
    return (ordered[low] + (at - low) * (ordered[high] - ordered[low]))[of]


def gamma(source, reward, weight):
    """τ(x) (n,): γ max + (1 - γ) mean of each pair's source, γ = weight, which rises (A.7)."""
    _, of, counts = np.unique(source, return_inverse=True, return_counts=True)
    best, mean = np.full(len(counts), -np.inf), np.bincount(of, reward) / counts
    np.maximum.at(best, of, reward)
    return (best - (1 - weight) * (best - mean))[of]  # so written, exact where all are equal


def top(source, reward, k):
    """Booleans (n,): the k best of each source; of equal ones the earlier."""
    order = np.lexsort((-reward, source))  # a stable sort: of equal ones the earlier comes first
    _, first, counts = np.unique(source[order], return_index=True, return_counts=True)
    kept = np.empty(len(source), bool)
    kept[order] = np.arange(len(source)) - np.repeat(first, counts) < k
    return kept


@dataclass
class Filter:
    """A filter: the line that it draws, or how it chooses without one."""

    thresholds: tuple  # of Improve 1, 2, ..., by default
    tau: Callable = None  # (source (n,), reward (n,), threshold) -> τ, a number or (n,)
    choose: Callable = None  # the same -> booleans (n,)
    highest: float = 1.0  # largest threshold that is valid
    falling: bool = False  # the thresholds fall from Improve to Improve
    within_source: bool = False  # there is no one τ for all sources

    def keep(self, source, reward, threshold, inclusive=False):
        if self.tau is None:
            return self.choose(source, reward, threshold)
        return above(reward, self.tau(source, reward, threshold), inclusive)


FILTERS = {  # for --filter; "threshold" has the paper's, but for its first, 0.0
    "threshold": Filter((0.7, 0.8, 0.9, 0.95, 0.99), lambda source, reward, tau: tau),
    "quantile": Filter((0.5, 0.7, 0.85, 0.95, 0.98), quantile),
    "percentile": Filter((50, 70, 80, 90, 95), percentile, highest=100, within_source=True),
    "gamma": Filter((0.2, 0.4, 0.6, 0.8, 0.9), gamma, within_source=True),
    "top": Filter((4, 3, 2, 1), choose=top, highest=float("inf"), falling=True, within_source=True),
}


def select(D_g, settings, i):
    """The filter of Improve i -> (booleans (n,), τ): what it keeps, and the line it draws.

    i = 0 keeps everything. τ is None then, and for a filter within each source, which has many.
    """
    if i == 0:
        return np.ones(len(D_g), bool), None
    rule, value = FILTERS[settings.filter], settings.thresholds[:i][-1]  # the last one repeats
    if rule.within_source:
        tau, kept = None, rule.keep(D_g.source, D_g.reward, value, settings.inclusive)
    else:
        tau = rule.tau(D_g.source, D_g.reward, value)
        tau, kept = float(tau), above(D_g.reward, tau, settings.inclusive)
    if settings.human_data == "whole":
        kept = kept | D_g.human
    if settings.max_per_source:  # the first kept samples of a source are as good as any
        samples = kept & ~D_g.human
        few = samples & top(D_g.source, samples.astype(float), settings.max_per_source)
        kept = (kept & D_g.human) | few
    return kept, tau


# ----------------------------------------------------------------------------------------- Grow


def grow(policy, task, settings, g, run, earlier=()):
    """Grow g -> (D_g = samples of the policy ∪ D, all scored once; this Grow's samples).

    earlier: the samples of Grows before, where they are kept too. Both steps are made part by part:
    run.parts gives those that are still to be made, run.add keeps one, run.pairs joins them all.
    """
    # { (x, y): x ~ D, y ~ π_θ(·|x) }: so many samples of each source
    chosen, parts = choose_sources(task, settings, g), []
    for k, temperature in enumerate(settings.temperature[: settings.samples]):
        n = len(range(k, settings.samples, len(settings.temperature)))  # samples k, k + K, ... of K
        size = max(1, PART // n)
        parts += [(chosen[at : at + size], n, temperature, ("grow", settings.seed, g, k, at))
                  for at in range(0, len(chosen), size)]
    for index, n, temperature, seed in run.parts(f"grow-{g}", parts):
        drawn = sample_outputs(policy, [task.sources[i] for i in index], n, seed, task.max_len,
                               temperature, settings.top_k, settings.top_p, **settings.decoding(),
                               progress=run.progress(f"Grow {g}"))
        run.add(replace(drawn, source=index[drawn.source]))
    samples = run.pairs(f"grow-{g}")

    # ∪ D; every pair is annotated with R(x, y), once; when all are, checks look at the whole D_g
    pools = [*earlier, samples] + ([] if settings.human_data == "out" else [task.data])
    for part in run.parts(f"score-{g}", Parts(pools, settings.distinct),
                          lambda D_g: checks.log_grow(D_g, samples, select, settings, g, run)):
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


def improve(policy, pairs, sources, settings, hp, seed, loss=None, kept=None, held_out=None,
            **trainer_args):
    """Fine-tune `policy`, in place, on the pairs at `kept` (booleans (n,); default: on all).

    BC on D is this; so is each Improve, on what the filter kept, and each round of PPO.
    loss: a losses.Loss; default: BC. held_out(policy) -> a score, higher is better: the policy
    returns to the best checkpoint; without it all updates are made, and the last weights stand.
    """
    items = np.arange(len(pairs)) if kept is None else np.flatnonzero(kept)
    device = policy.embedding.weight.device
    forward = compiled(policy, device) if settings.compile else policy
    loss = (loss or LOSSES["bc"](settings, policy, ReferenceModels())).to(device)
    with Trainer(policy, pairs.padded_lengths(sources)[items], pairs.lengths[items], hp, seed, loss,
                 names=pairs.source[items], **trainer_args) as trainer:
        while True:
            # "while the reward on D_eval improves": evaluate now and then, remember the best
            if held_out and trainer.is_evaluation_due():
                trainer.track_best(held_out(policy))
            if trainer.is_done():  # no better for a while, or all updates are made
                break
            for index in trainer.next_update():  # one or several micro-batches
                batch = collate(pairs, sources, items[index], device)
                with trainer.autocast():
                    logits = forward(batch.source, shift_right(batch.tokens)).float()  # (B, T, V)
                    # F · L: what the filter dropped is not among the pairs
                    loss_sum = loss(logits, batch, trainer.update, hp.updates)
                trainer.backward(loss_sum)  # divided by the tokens of all micro-batches
            trainer.step()  # clip the gradients; optimizer.step() at the next learning rate
    return trainer.result()


def behaviour_cloning(policy, task, settings, hp=None, run=None, held_out=None, **trainer_args):
    """Train π_θ on D: the step "bc" of a run -> the BC policy, a trained copy of `policy`.

    The task keeps what it began with, as its `base`. held_out, trainer_args: as for `improve`.
    """
    run, hp = run or InMemory(), hp or settings.training()
    task.base, policy = (policy, hp), copy.deepcopy(policy)
    saved = run.begin("bc")
    if saved is None:
        done = improve(policy, task.data, task.sources, settings, hp,
                       seed_of("bc", settings.seed), held_out=held_out, checkpoint=run.checkpoint,
                       **{"log": run.logger("bc"), "title": "BC", **trainer_args})
        checks.check_bc(done, run)
        saved = run.end({"policy": policy.state_dict(), **done})
    load_weights(policy, saved["policy"])
    return policy.eval()


# ------------------------------------------------------------------------------------ Algorithm 1


def rest(bc, task, settings, run=None):
    """Algorithm 1, from the BC policy on. Yields (row, policy, D_g) after each Improve.

    run: keeps each step on disk, so that it can be resumed (infra/run.py); by default nothing is
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
        # Improve: ever stricter filters, lower learning rates, each from the policy before.
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
    start = reference.bc if settings.start == "bc" else policy
    if settings.start == "base":
        start, hp = task.base
    new = copy.deepcopy(start if kept.any() else policy)

    def held_out(policy):
        return mean_reward(policy, task, settings)

    saved = run.begin(f"improve-{g}-{i}")
    if saved is None:
        checks.check_filter(D_g, kept, row, settings, run)
        done = {"updates": 0, "tokens": 0, "seconds": 0.0}
        if kept.any():
            loss = LOSSES[row["loss"]](settings, new, reference)
            done = improve(new, D_g, task.sources, settings, hp,
                           seed_of("improve", settings.seed, g, i), loss, kept,
                           held_out if settings.checkpoint == "best" else None,
                           log=run.logger(f"improve-{g}-{i}"), checkpoint=run.checkpoint,
                           title=f"Improve {g},{i}")
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
    round to round. Yields (row, policy) at most settings.ppo_rows times, the last time at the end.
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
