"""What every training here is made of: pairs, batches of like length, and one optimiser loop.

`Pairs` is the record that the whole project passes around: D, D_g, ratings. `fit` is the only
training loop: BC, each Improve, the reward model, the value model and PPO all run through it, each
with its own loss. A run that is killed inside of `fit` goes on from its checkpoint.

Left out: mixed-precision loss scaling (bfloat16 needs none), gradient checkpointing, sharding.
"""

import copy
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model import PAD

# ---------------------------------------------------------------------------------------- pairs


@dataclass
class Pairs:
    """n pairs (source, target) as flat arrays: 16 million of them are six files, not objects.

    The targets lie end to end in `tokens`: that of pair i is tokens[starts[i] : starts[i + 1]],
    without bos, with eos unless it was cut off at the maximum length.
    """

    source: np.ndarray  # (n,) int32, index into the list of sources
    tokens: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (n + 1,) int64
    logprobs: np.ndarray  # (sum of lengths,) float32, of the policy that drew it
    reward: np.ndarray  # (n,) float32 in [0, 1]; NaN until scored
    human: np.ndarray  # (n,) bool, true for D's own pairs, false for samples

    def __len__(self):
        return len(self.source)

    @property
    def lengths(self):
        return np.diff(self.starts)

    def padded_lengths(self, sources):
        """(n,): the longer side of each pair, which is what a batch has to make room for."""
        return np.maximum(self.lengths, np.array([len(sources[i]) for i in self.source]))

    def target(self, i):
        return self.tokens[self.starts[i] : self.starts[i + 1]]

    def targets(self, index=None):
        return [self.target(i) for i in (range(len(self)) if index is None else index)]

    def select(self, index):
        """The pairs at `index` (integers or booleans), in that order."""
        index = np.arange(len(self))[index]
        lengths = self.lengths[index]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # where each kept token comes from: its pair's start, plus its place within the pair
        place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        at = np.repeat(self.starts[:-1][index], lengths) + place
        return Pairs(self.source[index], self.tokens[at], starts, self.logprobs[at],
                     self.reward[index], self.human[index])

    @staticmethod
    def of(source, targets, logprobs=None, reward=None, human=False):
        """From n source indices and n targets; without rewards they are NaN: not scored yet."""
        n, lengths = len(targets), [len(target) for target in targets]
        flat = np.concatenate([np.zeros(0, np.int32), *targets]).astype(np.int32)
        logprobs = np.zeros(len(flat)) if logprobs is None else np.concatenate([[], *logprobs])
        reward = np.full(n, np.nan) if reward is None else np.asarray(reward)
        return Pairs(np.asarray(source, np.int32), flat, np.concatenate([[0], np.cumsum(lengths)])
                     .astype(np.int64), logprobs.astype(np.float32), reward.astype(np.float32),
                     np.full(n, human))

    @staticmethod
    def join(parts):
        """One after the other."""
        joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts])
                  for f in fields(Pairs) if f.name != "starts"}
        lengths = np.concatenate([p.lengths for p in parts])
        return Pairs(starts=np.concatenate([[0], np.cumsum(lengths)]), **joined)

    def save(self, path):
        write(path, lambda file: np.savez(file, **vars(self)))

    @staticmethod
    def load(path):
        with np.load(path, allow_pickle=False) as arrays:
            return Pairs(**{f.name: arrays[f.name] for f in fields(Pairs)})


def write(path, save):
    """Call save(file) on a file beside `path`, then rename: `path` is whole, or as it was."""
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except RuntimeError as error:  # what torch.save makes of a full disk
        raise OSError(f"{path} cannot be written: {error.__context__ or error}") from None
    finally:
        beside.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------- batches


def pad(sequences, device="cpu"):
    """n lists or arrays of ids -> (n, longest) int64, padded on the right."""
    out = np.full((len(sequences), max(1, max(map(len, sequences)))), PAD, np.int64)
    for row, sequence in zip(out, sequences):
        row[: len(sequence)] = sequence
    return torch.from_numpy(out).to(device)


def batches(lengths, batch_tokens, seed):
    """Index arrays without end, epoch after epoch, each of at most `batch_tokens` padded tokens.

    lengths: (n,). Items are shuffled, ordered by length within pools of 50 batches, cut, and the
    batches shuffled: little padding, and still a new mixture in every epoch. Batch k is the same
    for the same seed, whatever else the program draws.
    """
    pool = max(1, 50 * batch_tokens // max(1, int(lengths.mean())))
    epoch = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(lengths))
        cut = []
        for at in range(0, len(order), pool):
            part = order[at : at + pool]
            cut += by_length(lengths, batch_tokens, part)
        for k in rng.permutation(len(cut)):
            yield cut[k]
        epoch += 1


def by_length(lengths, batch_tokens, index=None):
    """Cut the items into batches of like length, each at most `batch_tokens` when padded."""
    index = np.arange(len(lengths)) if index is None else index
    index = index[np.argsort(lengths[index], kind="stable")]
    cut, start = [], 0
    for end in range(1, len(index) + 1):
        full = end < len(index) and lengths[index[end]] * (end + 1 - start) > batch_tokens
        if full or end == len(index):
            cut.append(index[start:end])
            start = end
    return cut


# ------------------------------------------------------------------------------------ optimiser


@dataclass
class Training:
    """Settings of one `fit`. The paper gives none of these; the programs choose their own."""

    updates: int = 1000  # most optimiser steps
    batch_tokens: int = 2048  # padded tokens of a micro-batch
    accumulate: int = 1  # micro-batches per optimiser step
    lr: float = 1e-3  # peak learning rate
    warmup: int = 100  # steps of linear warm-up
    final_lr: float = 0.05  # share of the peak that the linear decay ends at
    extra_lr: float = 0.05  # constant rate of scalars trained beside the model (V-MPO's log η)
    clip: float = 1.0  # largest gradient norm
    weight_decay: float = 0.0
    evaluate_every: int = 100  # steps between two looks at the held-out score
    patience: int = 3  # evaluations without a new best before it stops
    dropout: bool = True  # off for PPO, whose ratio compares with the policy without it
    precision: str = "float32"  # or "bfloat16": autocast of the forward pass

    def lr_at(self, update):
        """Linear warm-up to `lr`, then linear decay to final_lr * lr at the last update."""
        rising = (update + 1) / max(1, self.warmup)
        left = (self.updates - update) / max(1, self.updates - self.warmup)
        return self.lr * min(1.0, rising, self.final_lr + (1 - self.final_lr) * left)


def adamw(parameters, hp):
    return torch.optim.AdamW(parameters, lr=hp.lr, betas=(0.9, 0.98),
                             weight_decay=hp.weight_decay, fused=True)


def fit(model, loss_of, lengths, units, hp, seed, evaluate=None, log=None, checkpoint=None,
        extra=(), optimizer=None, title=None):
    """Minimise the sum of loss_of over the items, per unit, and return to the best checkpoint.

    loss_of(index, progress) -> the loss *summed* over a batch of items; units: (n,) what each item
    counts, its tokens or 1; a step divides by the units of all of its micro-batches. evaluate() ->
    a held-out score, higher is better, looked at before the first and then every
    hp.evaluate_every updates; without it all updates are made and the last weights stand.
    extra: more parameters to train beside the model's, at hp.extra_lr. optimizer: one that
    outlives this call. log(event dict) after each evaluation. title: of a progress bar, if any;
    tqdm shows none where no one looks at a terminal.
    Returns {"updates", "score"} of the best checkpoint, {"units", "seconds"} of the whole call.
    """
    parameters = list(model.parameters())
    optimizer = optimizer or adamw(parameters, hp)
    if extra:
        optimizer.add_param_group({"params": list(extra)})
    stream = batches(lengths, hp.batch_tokens, seed)
    state = {"update": 0, "since": 0, "score": -np.inf, "best": None, "best_update": 0,
             "loss": 0.0, "units": 0, "trained": 0}
    device = parameters[0].device.type
    with torch.random.fork_rng():  # dropout draws from the global generator: leave it as it was
        torch.manual_seed(seed)
        if checkpoint is not None and checkpoint.exists():
            state = resume(checkpoint, model, optimizer, extra)
            for _ in range(state["update"] * hp.accumulate):
                next(stream)
        begin = saved = time.monotonic()
        bar = tqdm(desc=title, total=hp.updates, initial=state["update"], leave=False,
                   disable=True if title is None else None, dynamic_ncols=True)
        while True:
            update = state["update"]
            if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                suspend(checkpoint, state, model, optimizer, extra)
                saved = time.monotonic()
            if evaluate is not None and (update % hp.evaluate_every == 0 or update == hp.updates):
                note_score(state, model, float(evaluate()), begin, log)
                if state["since"] >= hp.patience:
                    break
            if update == hp.updates:
                break
            micro = [next(stream) for _ in range(hp.accumulate)]
            n = sum(units[index].sum() for index in micro)
            model.train(hp.dropout)
            state["loss"] += step(optimizer, loss_of, micro, n, update, hp, device)
            state["units"] += n
            state["trained"] += int(n)
            state["update"] += 1
            bar.update()
        bar.close()
    if state["best"] is not None:
        model.load_state_dict(state["best"])
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    model.eval()
    return {"updates": state["best_update"] if evaluate else state["update"],
            "score": state["score"], "units": state["trained"],
            "seconds": time.monotonic() - begin}


def step(optimizer, loss_of, micro, n, update, hp, device):
    """One optimiser step on several micro-batches of n units in all -> their summed loss."""
    total = 0.0
    for index in micro:
        with torch.autocast(device, torch.bfloat16, hp.precision == "bfloat16"):
            loss = loss_of(index, update / hp.updates)
        (loss / n).backward()  # by the units of the whole step, not of the micro-batch
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], hp.clip)
    optimizer.param_groups[0]["lr"] = hp.lr_at(update)
    for group in optimizer.param_groups[1:]:
        group["lr"] = hp.extra_lr
    optimizer.step()
    optimizer.zero_grad()
    return total


SAVE_EVERY = 60.0  # seconds between two checkpoints inside of `fit`


def note_score(state, model, score, begin, log):
    """Keep the weights if `score` is the best so far; count the evaluations since it was."""
    better = score > state["score"]
    if log is not None:
        mean_loss = float(state["loss"]) / max(1, state["units"])
        log({"update": state["update"], "loss": mean_loss, "score": score, "best": better,
             "seconds": time.monotonic() - begin})
    state.update(loss=0.0, units=0, since=0 if better else state["since"] + 1)
    if better:
        state.update(score=score, best_update=state["update"],
                     best=copy.deepcopy(model.state_dict()))


def suspend(path, state, model, optimizer, extra):
    whole = {"state": {**state, "loss": float(state["loss"]), "units": int(state["units"])},
             "model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "extra": [x.detach() for x in extra], "rng": torch.get_rng_state(),
             "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    write(path, lambda file: torch.save(whole, file))


def resume(path, model, optimizer, extra):
    whole = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(whole["model"])
    optimizer.load_state_dict(whole["optimizer"])
    for mine, theirs in zip(extra, whole["extra"]):
        mine.data.copy_(theirs)
    torch.set_rng_state(whole["rng"])
    if whole["cuda_rng"]:
        torch.cuda.set_rng_state_all(whole["cuda_rng"])
    return whole["state"]
