"""ReST: Reinforced Self-Training (Gulcehre et al. 2023, arXiv:2308.08998), Algorithm 1.

    Train π_θ on D.                                                            improve(..., "bc")
    for g = 1..G:
        Grow     D_g = { (x, y): x ~ D, y ~ π_θ(·|x) } ∪ D, scored by R        grow, score
        for i = 1..I:
            Improve  choose τ_i > τ_{i-1}, τ_1 > V(π_θ);                       select
                     while the reward on D_eval rises, minimise
                     J(θ) = E_{(x,y) ~ D_g}[ 1[R(x, y) > τ_i] L(x, y; θ) ]     improve

`rest` is that loop. The filters stand in filters.py, the paper's online baseline in online.py, and
methods.py has other papers' methods as settings of this loop; what a run leaves on disk is run.py's
business.

Left out: a reward model and a policy that learn at the same time.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

import losses
import watch
from filters import FILTERS, HIGHEST, THRESHOLDS, select
from model import EOS, PAD, Transformer, sample, shift_right, token_logprobs
from pairs import PART, Pairs
from parallel import gather, share, sum_up
from reward import ValueModel, check_rewards, train_value
from run import check_settings, setting, valid
from storage import UserError, load_weights
from train import Training, by_length, compiled, fit, moved, pad, seed_of


@dataclass
class Settings:
    """What Algorithm 1 leaves open. Learning settings are the same for each Improve."""

    grow: int = setting(2, "Grow steps G", low=0)
    improve: tuple[int, ...] = setting((4, 3), "Improve steps I, one number for each Grow, the "
                                       "last one serving on", low=0)
    unfiltered: bool = setting(True, "the first Grow begins with I = 0: BC on all of D_g")
    samples: int = setting(8, "samples per source in each Grow", low=1)
    grow_sources: int = setting(0, "sources of each Grow, drawn at random; 0 is all of D's", low=0)
    temperature: tuple[float, ...] = setting((0.8,), "sampling temperature of Grow; of several, "
                                             "each draws its share of the samples", low=0)
    top_k: int = setting(0, "Grow samples among the k likeliest tokens; 0 is off", low=0)
    top_p: float = setting(1.0, "Grow samples among the tokens that hold this probability",
                           low=1e-6, high=1)
    distinct: bool = setting(False, "keep equal outputs of a source only once")
    keep_samples: bool = setting(False, "D_g holds the samples of all Grows, not only the last")
    human: str = setting("filtered", "D's own pairs in D_g: filtered like the samples, kept whole, "
                         "or left out", choices=("filtered", "whole", "out"))
    preferences: bool = setting(False, "train the reward model on preferences, not on ratings")
    filter: str = setting("auto", "what a threshold means: a reward; a quantile of D_g's rewards; "
                          "a percentile, a γ or a top-k within each source; auto is quantile, and "
                          "percentile with --preferences",
                          choices=("auto", *FILTERS))
    thresholds: tuple[float, ...] = setting((), "one for each Improve, rising (falling for top), "
                                            "the last one serving on; default: filters.THRESHOLDS")
    ties: bool = setting(False, "keep what equals the threshold too: ≥ in place of the paper's >")
    cap: int = setting(0, "most samples of a source that an Improve keeps; 0: no limit", low=0)
    start: str = setting("previous", "what an Improve starts from: the previous policy, BC, or, "
                         "with BC's learning settings, the weights that BC itself began with",
                         choices=("previous", "bc", "base"))
    stop: str = setting("best", "an Improve ends with the checkpoint of the best reward on D_eval, "
                        "or with its last update", choices=("best", "last"))
    loss: str = setting("bc", "what Improve minimises", choices=tuple(losses.LOSSES))
    updates: int = setting(300, "most updates of an Improve", low=1)
    batch_tokens: int = setting(2048, "padded tokens of a training batch", low=1)
    accumulate: int = setting(1, "batches that make one update", low=1)
    lr: float = setting(5e-4, "peak learning rate of an Improve, times lr_decay^i", low=0)
    lr_decay: float = setting(0.8, "what each further Improve i of a Grow multiplies the rate by",
                              low=0, high=1)
    label_smoothing: float = setting(0.0, "label smoothing of the BC loss", low=0, high=1)
    evaluate_every: int = setting(100, "updates between two looks at the reward on D_eval", low=1)
    patience: int = setting(2, "looks without a better reward before an Improve stops", low=1)
    value_updates: int = setting(300, "updates of the value model (OAC and BVMPO)", low=1)
    bvmpo_epsilon: float = setting(0.1, "ε of V-MPO's temperature: the larger, the more the best "
                                   "tokens outweigh the others", low=1e-6)
    gold_reward: str = setting("p", "GOLD's reward: product or sum", choices=("p", "s"))
    gold_sync: int = setting(100, "updates between two copies of GOLD's frozen policy", low=1)
    ppo_samples: int = setting(0, "samples for the PPO baseline; 0: as many as one Grow", low=0)
    ppo_rows: int = setting(1, "rows of the results along PPO's way", low=1)
    ppo_batch: int = setting(512, "samples drawn for each PPO round", low=1)
    ppo_group: int = setting(8, "of which so many share a source, and its mean as their baseline",
                             low=2)
    ppo_updates: int = setting(4, "updates in each PPO round", low=1)
    ppo_lr: float = setting(2e-4, "learning rate of PPO", low=0)
    ppo_kl: float = setting(0.1, "weight of PPO's KL to the BC policy", low=0)
    rows: int = setting(1024, "outputs drawn at once", low=1)
    precision: str = setting("float32", "of training and sampling",
                             choices=("float32", "bfloat16"))
    compile: bool = setting(False, "torch.compile the policy's training and decoding steps")
    seed: int = setting(0, "of everything that is random", low=0, high=2**63 - 1)

    def __post_init__(self):
        check_settings(self)
        if self.filter == "auto":  # a preference model's scores have a free offset per source
            self.filter = "percentile" if self.preferences else "quantile"
        self.thresholds = self.thresholds or THRESHOLDS[self.filter]
        steps = np.diff(self.thresholds) * (-1 if self.filter == "top" else 1)
        if (steps <= 0).any():
            order = "fall" if self.filter == "top" else "rise"
            raise UserError(f"--thresholds {list(self.thresholds)} must {order}: each Improve has "
                            "a stricter filter than the one before")
        highest = HIGHEST.get(self.filter, 1)
        if not all(0 <= value <= highest for value in self.thresholds):
            raise UserError(f"--thresholds {list(self.thresholds)}: with --filter {self.filter} "
                            f"they lie between 0 and {highest}")

    def improves(self, g):
        """The Improves of Grow g, by number; 0 is the one that keeps all of D_g."""
        last = self.improve[min(g, len(self.improve)) - 1]
        return range(0 if g == 1 and self.unfiltered else 1, last + 1)

    def decoding(self):
        """Arguments of `grow` that change how fast outputs are drawn, and how precisely."""
        return {"rows": self.rows, "precision": self.precision, "compile": self.compile}

    def training(self, **changes):
        """These settings as those of one `fit`."""
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
    reward: Callable = None  # (sources, outputs) -> (n,) in [0, 1]; there once it is trained
    metrics: Callable = None  # (policy, sampled, greedy) -> dict: by reference, of test outputs
    base: tuple = None  # (policy, Training): what BC began with, and how it was trained
    refresh: Callable = None  # (policy, g) -> a new `reward` for Grow g > 1, if there is one


# Whatever is drawn below has a generator of its own, seeded by settings.seed and one of these, or
# by g and i for Grow and Improve: so nothing that is added shifts what others draw.
SOURCES, PPO, VALUE, EVAL, TEST, BEST_OF, EXAMPLES = 55, 77, 99, 101, 102, 103, 104


# ----------------------------------------------------------------------------------------- Grow


def grow(policy, sources, n_samples, seed, max_len, temperature=1.0, top_k=0, top_p=1.0,
         rows=1024, precision="float32", compile=False, progress=None):
    """Draw `n_samples` outputs for each source -> Pairs, in the order of the sources, unscored.

    Batches hold sources of like length and are laid out by the sources alone, and each draws from a
    generator of its own, seeded by (*seed, batch): any part can be drawn again, or elsewhere, and
    comes out the same. temperature = 0 is greedy. compile: the decoding step, by torch.compile.
    progress: wraps the list of batches (tqdm).
    """
    lengths = np.array([len(x) for x in sources])
    per_batch = max(1, rows // n_samples)
    order = np.argsort(lengths, kind="stable")
    cut = [order[at : at + per_batch] for at in range(0, len(order), per_batch)]
    device = policy.embedding.weight.device
    step = compiled(Transformer.step, device) if compile else Transformer.step
    batches, parts = share(list(enumerate(cut))), []
    for k, index in progress(batches) if progress else batches:
        generator = torch.Generator().manual_seed(seed_of(*seed, k))
        with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
            drawn = sample(policy, pad([sources[i] for i in index], device), n_samples, max_len,
                           temperature, top_k, top_p, generator, step)
        parts.append(unpadded(drawn, np.repeat(index, n_samples)))
    pairs = Pairs.join(gather(parts))
    return pairs.select(np.argsort(pairs.source, kind="stable"))


def unpadded(drawn, source):
    """What `sample` returned, B x N rows of the given sources, as Pairs."""
    tokens, logprobs = (x.flatten(0, 1).cpu().numpy() for x in (drawn.tokens, drawn.logprobs))
    real = tokens != PAD
    return Pairs(source.astype(np.int32), tokens[real].astype(np.int32),
                 np.concatenate([[0], np.cumsum(real.sum(1))]), logprobs[real].astype(np.float32),
                 np.full(len(tokens), np.nan, np.float32), np.zeros(len(tokens), bool))


def score(pairs, sources, reward):
    """The same pairs with R(x, y), computed once and stored."""
    if len(pairs) == 0:
        return pairs
    answers = reward([sources[i] for i in pairs.source], pairs.targets())
    return replace(pairs, reward=valid(check_rewards, answers, len(pairs)))


def distinct(*pools):
    """Booleans (n,): the first of each set of equal outputs of one source, of all Pairs given."""
    fingers = np.concatenate([fingerprints(pairs) for pairs in pools])
    first = np.zeros(len(fingers), bool)
    first[np.unique(fingers, return_index=True)[1]] = True
    return first


def fingerprints(pairs):
    """A random linear hash (n,) of each pair's source and target, 64 bits wide."""
    weights = np.random.default_rng(0).integers(1, 2**63, int(pairs.lengths.max()) + 1, np.uint64)
    return np.concatenate([hashes(part, weights) for part in pairs.parts()])


def hashes(pairs, weights):
    place = np.arange(len(pairs.tokens)) - np.repeat(pairs.starts[:-1], pairs.lengths)
    terms = (pairs.tokens.astype(np.uint64) + np.uint64(1)) * weights[place]
    sums = np.concatenate([[np.uint64(0)], np.cumsum(terms)])  # wraps around, as it should
    own = sums[pairs.starts[1:]] - sums[pairs.starts[:-1]]
    return own * np.uint64(2**32 + 15) + pairs.source.astype(np.uint64) * np.uint64(2**61 - 1)


def describe(D_g, samples, seconds):
    """What one looks at after a Grow that drew `samples` in so many seconds; D_g is scored."""
    ends = samples.tokens[samples.starts[1:] - 1] == EOS
    return {"reward_samples": mean(D_g.reward[~D_g.human]),
            "reward_data": mean(D_g.reward[D_g.human]),
            "truncated": float(1 - ends.mean()),
            "distinct": float(distinct(samples).mean()),
            "entropy": float(-samples.logprobs.mean()),
            "tokens_per_second": len(samples.tokens) / max(seconds, 1e-9)}


def mean(x):
    """Of numbers or booleans; None if there are none."""
    return float(x.mean()) if len(x) else None


# -------------------------------------------------------------------------------------- Improve


@dataclass
class Frozen:
    """The networks that a loss may lean on; none of them is trained by it."""

    bc: torch.nn.Module = None  # the BC policy: GOLD's p_MLE, PPO's anchor
    behaviour: torch.nn.Module = None  # the policy that grew D_g: BVMPO's anchor
    value: torch.nn.Module = None  # its value V(x, y_<t): OAC, BVMPO


@dataclass
class Batch:
    """What the losses see of B pairs, padded."""

    src: torch.Tensor  # (B, S)
    tokens: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T), 1 on real tokens
    reward: torch.Tensor  # (B, 1); for PPO the advantage
    old_logprobs: torch.Tensor  # (B, T), of the policy that drew them


def collect(pairs, sources, index, device):
    """The pairs at `index` as one Batch."""
    pairs = pairs.select(index)
    src, tokens = pad([sources[i] for i in pairs.source]), pad(pairs.targets())
    mask = (tokens != PAD).float()
    old = mask.masked_scatter(mask > 0, torch.from_numpy(pairs.logprobs))
    reward = torch.from_numpy(pairs.reward)[:, None]
    return Batch(*(moved(x, device) for x in (src, tokens, mask, reward, old)))


def improve(policy, pairs, sources, settings, hp, seed, loss="bc", frozen=Frozen(), kept=None,
            **kwargs):
    """Fine-tune `policy`, in place, on the pairs at `kept` (booleans (n,); default: on all).

    BC on D is this; so is each Improve, on what the filter kept, and each round of PPO. **kwargs
    go to `fit` (evaluate, log, ...).
    """
    kept = np.arange(len(pairs)) if kept is None else np.flatnonzero(kept)
    device = policy.embedding.weight.device
    forward = compiled(policy, device) if settings.compile else policy
    log_eta = torch.zeros((), device=device, requires_grad=True)  # V-MPO's temperature, its log
    frozen_copy = FrozenCopy(policy, settings.gold_sync) if loss == "gold" else None

    def loss_of(index, progress):
        batch = collect(pairs, sources, kept[index], device)
        logits = forward(batch.src, shift_right(batch.tokens)).float()  # (B, T, V)
        if loss == "bc":
            return losses.bc(logits, batch.tokens, settings.label_smoothing)
        logprobs = logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
        if loss == "gold":
            return losses.gold(logprobs, frozen_copy.logprobs(batch, round(progress * hp.updates)),
                               known(frozen.bc, batch), batch.mask, settings.gold_reward)
        if loss == "ppo":
            kl = losses.kl_divergence(logits, logits_of(frozen.bc, batch))
            return losses.ppo(logprobs, batch.old_logprobs, batch.reward.expand_as(logprobs), kl,
                              batch.mask, kl_weight=settings.ppo_kl)
        advantages = batch.reward - values_of(frozen.value, batch)  # A_t = G_t - V(s_t)
        if loss == "oac":
            return losses.oac(logprobs, advantages, batch.mask)
        kl = losses.kl_divergence(logits_of(frozen.behaviour, batch), logits)
        return losses.bvmpo(logprobs, advantages, kl, batch.mask, log_eta,
                            losses.anneal(progress), settings.bvmpo_epsilon)

    lengths, units = pairs.padded_lengths(sources)[kept], pairs.lengths[kept]
    extra = (log_eta,) if loss == "bvmpo" else ()
    if loss == "gold":  # gets no gradient and so never moves; but the checkpoint must hold it
        extra = tuple(frozen_copy.copy.parameters())
    return fit(policy, loss_of, lengths, units, hp, seed, extra=extra, sources=pairs.source[kept],
               **kwargs)


class FrozenCopy:
    """GOLD's π̃: a copy of the policy, made anew every so many updates."""

    def __init__(self, policy, every):
        self.policy, self.every, self.made = policy, every, None
        self.copy = copy.deepcopy(policy).requires_grad_(False)

    def logprobs(self, batch, update):
        if update % self.every == 0 and update != self.made:
            self.copy.load_state_dict(self.policy.state_dict())
            self.made = update
        return known(self.copy, batch)


@torch.no_grad()
def known(network, batch):
    """log-probabilities (B, T) of the batch's targets under a frozen policy."""
    return token_logprobs(network.eval(), batch.src, batch.tokens)


@torch.no_grad()
def logits_of(network, batch):
    return network.eval()(batch.src, shift_right(batch.tokens)).float()


@torch.no_grad()
def values_of(value, batch):
    return value.eval()(batch.src, batch.tokens).sigmoid()


# ------------------------------------------------------------------------------------- measures


def mean_reward(policy, task, settings):
    """V(π) on D_eval: a sample of each source at temperature 1, the same random numbers always."""
    drawn = grow(policy, task.eval_sources, 1, (settings.seed, EVAL), task.max_len,
                 **settings.decoding())
    return float(score(drawn, task.eval_sources, task.reward).reward.mean())


def evaluate(policy, bc, task, settings):
    """What a row of the results reports, on test sources; the random numbers never change."""
    draw = {"max_len": task.max_len, **settings.decoding()}
    sampled = grow(policy, task.test_sources, 1, (settings.seed, TEST), **draw)
    greedy = grow(policy, task.test_sources, 1, (0,), temperature=0, **draw)
    sampled, greedy = (score(x, task.test_sources, task.reward) for x in (sampled, greedy))
    under_bc = logprobs_of(bc, task.test_sources, sampled)
    row = {"reward": sampled.reward.mean(), "greedy_reward": greedy.reward.mean(),
           "entropy": -sampled.logprobs.mean(),  # per token, in nats
           "kl_to_bc": (sampled.logprobs - under_bc).mean()}
    row = {name: float(value) for name, value in row.items()}
    return row | task.metrics(policy, sampled, greedy)


@torch.inference_mode()
def logprobs_of(policy, sources, pairs, batch_tokens=2048):
    """log π(y_t | y_<t, x) of given pairs, flat like pairs.tokens."""
    out = np.zeros(len(pairs.tokens), np.float32)
    device = policy.embedding.weight.device
    lengths = pairs.padded_lengths(sources)
    policy.eval()
    for index in share(by_length(lengths, batch_tokens)):
        tokens = pad(pairs.targets(index), device)
        src = pad([sources[i] for i in pairs.source[index]], device)
        flat = token_logprobs(policy, src, tokens)[tokens != PAD]
        at = np.concatenate([np.arange(pairs.starts[i], pairs.starts[i + 1]) for i in index])
        out[at] = flat.float().cpu()
    sum_up([torch.from_numpy(out)])
    return out


def bc_row(bc, task, settings, run):
    """The first row of the results, "BC (G=0, I=0)"."""
    def make():
        row = {"name": "BC", "loss": "bc", "grow": 0, "improve": 0, "threshold": None,
               "kept_samples": None, "kept_data": 1.0, "samples": 0, "distinct_samples": 0,
               "tokens_drawn": 0, "grow_seconds": 0.0,
               **evaluate(bc, bc, task, settings), "seconds": run.seconds("bc")}
        run.log("row", **row)
        return {"row": row}

    return run.step("evaluate-bc", make)["row"]


def best_of_n(policy, task, settings, counts=(1, 2, 4, 8, 16, 32, 64)):
    """Yields (N, Pairs): for each test source the best by reward of its first N samples."""
    drawn = grow(policy, task.test_sources, max(counts), (settings.seed, BEST_OF), task.max_len,
                 **settings.decoding())
    drawn = score(drawn, task.test_sources, task.reward)
    reward = drawn.reward.reshape(len(task.test_sources), max(counts))
    for n in counts:
        best = np.arange(len(reward)) * max(counts) + reward[:, :n].argmax(1)
        yield n, drawn.select(best)


# ------------------------------------------------------------------------------------ Algorithm 1


def rest(bc, task, settings, run):
    """Algorithm 1, from the BC policy on. Yields (row, policy, D_g) after each Improve.

    run.step(name, make) calls make() once, and on resuming gives back what it made; run.pairs is
    the same for Pairs that are made part by part.
    """
    policy, pool, fingers = bc, [], []
    counts = {"samples": 0, "tokens_drawn": 0, "grow_seconds": 0.0}
    for g in range(1, settings.grow + 1):
        if g > 1 and task.refresh:
            task.reward = task.refresh(policy, g)
        # Grow: samples of the current policy, joined with D; all scored once.
        samples = run.pairs(f"grow-{g}", draws(policy, task, settings, g, run))
        pool = [*(pool if settings.keep_samples else []), samples]
        D_g = run.pairs(f"score-{g}", scores(pool, task, settings),
                        lambda D_g: look_at(D_g, samples, settings, g, run))
        fingers.append(fingerprints(samples))
        counts["samples"] += settings.samples * len(some_sources(task, settings, g))
        counts["distinct_samples"] = len(np.unique(np.concatenate(fingers)))
        counts["tokens_drawn"] += len(samples.tokens)
        counts["grow_seconds"] += run.seconds(f"grow-{g}") + run.seconds(f"score-{g}")
        frozen = Frozen(bc, behaviour=policy, value=behaviour_value(policy, D_g, task, settings,
                                                                    run, g))
        # Improve: ever stricter filters, ever lower learning rates, each from the policy before.
        # The first Grow begins with no filter: what Grow alone is worth, the paper's I = 0.
        for i in settings.improves(g):
            kept, tau = select(D_g, settings, i)
            row = {"name": "ReST", "loss": settings.loss if i else "bc", "grow": g, "improve": i,
                   "threshold": tau, "kept_samples": mean(kept[~D_g.human]),
                   "kept_data": mean(kept[D_g.human]), **counts}
            policy, row = improve_step(policy, D_g, kept, task, settings, frozen, run, row)
            yield row, policy, D_g


def draws(policy, task, settings, g, run):
    """Grow's parts, functions that draw one each: N outputs for some of this Grow's sources."""
    chosen = some_sources(task, settings, g)

    def draw(index, n, temperature, seeds):
        drawn = grow(policy, [task.sources[i] for i in index], n, seeds, task.max_len, temperature,
                     settings.top_k, settings.top_p, **settings.decoding(),
                     progress=run.progress(f"Grow {g}"))
        return replace(drawn, source=index[drawn.source])

    parts = []
    for k, temperature in enumerate(settings.temperature[: settings.samples]):
        n = len(range(k, settings.samples, len(settings.temperature)))  # its share of the samples
        some = max(1, PART // n)
        for at in range(0, len(chosen), some):
            seeds = (settings.seed, g, k, at)
            parts.append(partial(draw, chosen[at : at + some], n, temperature, seeds))
    return parts


def scores(pool, task, settings):
    """D_g's parts, functions that score one each: the pool's samples, then D.

    pool: the samples of each Grow that counts, the last one being this Grow's.
    """
    drawn = [part for samples in pool for part in samples.parts()]
    parts = drawn + ([] if settings.human == "out" else list(task.data.parts()))
    ends = np.cumsum([len(part) for part in drawn])
    # for each drawn part, which of it is new; worked out when the first part is scored, if at all
    new = cache(lambda: np.split(distinct(*pool), ends[:-1]))

    def scored(k):
        part = parts[k]
        if settings.distinct and k < len(drawn):
            part = part.select(new()[k])
        return score(part, task.sources, task.reward)

    return [partial(scored, k) for k in range(len(parts))]


def look_at(D_g, samples, settings, g, run):
    """A line about a new D_g, and a warning where one is due."""
    seen = describe(D_g, samples, run.seconds(f"grow-{g}"))
    run.log("grow", grow=g, **seen)
    watch.grown(D_g, seen, settings, run)


def some_sources(task, settings, g):
    """The sources that this Grow samples for: all of them, or a random part."""
    n = len(task.sources)
    if settings.grow_sources == 0 or settings.grow_sources >= n:
        return np.arange(n, dtype=np.int32)
    rng = np.random.default_rng((settings.seed, g, SOURCES))
    return np.sort(rng.choice(n, settings.grow_sources, replace=False)).astype(np.int32)


def improve_step(policy, D_g, kept, task, settings, frozen, run, row):
    """One Improve on what is kept -> (new policy, its row). Nothing kept: the policy stays."""
    g, i = row["grow"], row["improve"]
    name, hp = f"improve-{g}-{i}", settings.training(lr=settings.lr * settings.lr_decay**i)
    start = {"previous": policy, "bc": frozen.bc}.get(settings.start)
    if settings.start == "base":
        start, hp = task.base
    new = copy.deepcopy(start if kept.any() else policy)
    on_eval = (lambda: mean_reward(new, task, settings)) if settings.stop == "best" else None

    def make():
        watch.filtered(D_g, kept, row, settings, run)
        fitted = {"updates": 0, "units": 0, "seconds": 0.0}
        if kept.any():
            fitted = improve(new, D_g, task.sources, settings, hp, seed_of(settings.seed, g, i),
                             row["loss"], frozen, kept, evaluate=on_eval, log=run.logger(name),
                             checkpoint=run.checkpoint, title=f"Improve {g},{i}")
        done = row | {"updates": fitted["updates"], "tokens_trained": fitted["units"],
                      "train_seconds": fitted["seconds"]}
        done |= evaluate(new, frozen.bc, task, settings)
        done["seconds"] = run.seconds_at_work()
        run.log("row", **done)
        return {"policy": new.state_dict(), "row": done}

    made = run.step(name, make)
    load_weights(new, made["policy"])
    return new, made["row"]


def behaviour_value(policy, D_g, task, settings, run, g):
    """V^μ, for the two losses that need one: μ is the mixture that D_g is, π's samples and D."""
    if settings.loss not in ("oac", "bvmpo"):
        return None
    value = ValueModel.from_policy(policy)

    def make():
        hp = settings.training(updates=settings.value_updates)
        train_value(value, task.sources, D_g, hp, seed_of(settings.seed, g, VALUE),
                    log=run.logger(f"value-{g}"), checkpoint=run.checkpoint, title="value model")
        return {"value": value.state_dict()}

    load_weights(value, run.step(f"value-{g}", make)["value"])
    return value
