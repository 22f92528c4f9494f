"""What every training here is made of: batches of like length, and one optimiser loop.

`fit` is the only training loop: BC, each Improve, the reward model, the value model and PPO all run
through it, each with its own loss. A run that is killed inside of `fit` goes on from its
checkpoint.

Left out: mixed-precision loss scaling (bfloat16 needs none), gradient checkpointing, sharding.
"""

import copy
import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from model import PAD
from parallel import first, rank, share, sum_up
from storage import UserError, load_weights

# -------------------------------------------------------------------------------------- batches


def pad(sequences, device="cpu"):
    """n lists or arrays of ids -> (n, longest) int64, padded on the right."""
    out = np.full((len(sequences), max(1, max(map(len, sequences)))), PAD, np.int64)
    for row, sequence in zip(out, sequences):
        row[: len(sequence)] = sequence
    return moved(torch.from_numpy(out), device)


def moved(x, device):
    """A tensor of the CPU on the device; to a GPU it is copied while the program goes on."""
    if torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def batches(lengths, batch_tokens, seed):
    """Index arrays without end, epoch after epoch, each of at most `batch_tokens` padded tokens.

    lengths: (n,). Items are shuffled and taken in pools of about 50 batches; a pool is ordered by
    length, cut, and its batches shuffled: little padding, and still a new mixture in every epoch.
    Batch k is the same for the same seed, whatever else the program draws.
    """
    pool = max(1, 50 * batch_tokens // max(1, int(lengths.mean())))
    epoch = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(lengths))
        for at in range(0, len(order), pool):
            cut = by_length(lengths, batch_tokens, order[at : at + pool])
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


def seed_of(*numbers):
    """One 63-bit seed from several numbers, all of which matter."""
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


# ------------------------------------------------------------------------------------ optimiser


GRAPHS = 32  # of one function; decoding takes a dozen, one for each combination of sizes that are 1


def compiled(function, device):
    """torch.compile of a model or a function; where no compiler is, it comes back as it is."""
    if not can_compile(device.type):
        return function
    torch._dynamo.config.cache_size_limit = GRAPHS
    return torch.compile(function, dynamic=True)


@functools.cache
def can_compile(device):
    """Try it on next to nothing; one printed line if it fails."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # the back ends raise what they like
        tqdm.write(f"nothing is compiled: {(str(error).strip().splitlines() or [''])[0]}")
        return False
    return True


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
        extra=(), optimizer=None, title=None, sources=None):
    """Minimise the sum of loss_of over the items, per unit, and return to the best checkpoint.

    loss_of(index, progress) -> the loss *summed* over a batch of items; units: (n,) what each item
    counts, its tokens or 1; a step divides by the units of all of its micro-batches. evaluate() ->
    a held-out score, higher is better, looked at before the first and then every
    hp.evaluate_every updates; without it all updates are made and the last weights stand.
    extra: more parameters to train beside the model's, at hp.extra_lr. optimizer: one that
    outlives this call. log(event dict) after each evaluation. checkpoint: a storage.Checkpoint,
    which keeps the state of this `fit` under its seed. title: of a progress bar, if any; tqdm shows
    none where no one looks at a terminal. sources: (n,) what to call the items by in a report.
    Returns {"updates", "score"} of the best checkpoint, {"units", "seconds"} of the whole call.
    UserError after several updates in a row whose loss or gradient was not finite.
    """
    parameters = list(model.parameters())
    optimizer = optimizer or adamw(parameters, hp)
    if extra:
        optimizer.add_param_group({"params": list(extra)})
    stream = batches(lengths, hp.batch_tokens, seed)
    state = {"update": 0, "since": 0, "score": -np.inf, "best": None, "best_update": 0,
             "loss": 0.0, "units": 0, "trained": 0, "seconds": 0.0, "lost": 0}
    device = parameters[0].device.type
    drawing = [parameters[0].device] if device == "cuda" else []
    with torch.random.fork_rng(drawing):  # dropout's global generator is left as it was
        if checkpoint is not None and (saved := checkpoint.load(seed)) is not None:
            state = restore(saved, model, optimizer, extra)
            for _ in range(state["update"] * hp.accumulate):
                next(stream)
        begin = time.monotonic() - state["seconds"]
        bar = tqdm(desc=title, total=hp.updates, initial=state["update"], leave=False,
                   disable=title is None or not first() or None, dynamic_ncols=True)
        while True:
            update = state["update"]
            if checkpoint is not None and checkpoint.due():
                state["seconds"] = time.monotonic() - begin
                checkpoint.save(seed, as_saved(state, model, optimizer, extra))
            if evaluate is not None and (update % hp.evaluate_every == 0 or update == hp.updates):
                note_score(state, model, float(evaluate()), begin, log)
                if state["since"] >= hp.patience:
                    break
            if update == hp.updates:
                break
            micro = [next(stream) for _ in range(hp.accumulate)]
            n = sum(units[index].sum() for index in micro)
            model.train(hp.dropout)
            torch.manual_seed(seed_of(seed, update, rank()))  # so that resuming needs no more
            loss = step(optimizer, loss_of, micro, n, update, hp, device)
            if loss is None:
                note_lost(state, micro, sources, hp, log)
            else:
                state.update(loss=state["loss"] + loss, units=state["units"] + n,
                             trained=state["trained"] + int(n), lost=0)
            state["update"] += 1
            bar.update()
        bar.close()
    if state["best"] is not None:
        model.load_state_dict(state["best"])
    model.eval()
    return {"updates": state["best_update"] if evaluate else state["update"],
            "score": state["score"], "units": state["trained"],
            "seconds": time.monotonic() - begin}


def step(optimizer, loss_of, micro, n, update, hp, device):
    """One optimiser step on several micro-batches of n units in all -> their summed loss.

    None, and no step, if the loss or a gradient is not finite. Several processes take their share
    of each micro-batch, and add up their gradients.
    """
    total = 0.0
    for index in micro:
        mine, counts = (share(index), 1) if rank() < len(index) else (index[:1], 0)
        with torch.autocast(device, torch.bfloat16, hp.precision == "bfloat16"):
            loss = counts * loss_of(mine, update / hp.updates)
        (loss / n).backward()  # by the units of the whole step, not of the micro-batch
        total += loss.detach()
    sum_up([p.grad for group in optimizer.param_groups for p in group["params"]
            if p.grad is not None])
    sum_up([total])
    norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], hp.clip)
    finite = bool(torch.isfinite(total + norm))
    if finite:
        optimizer.param_groups[0]["lr"] = hp.lr_at(update)
        for group in optimizer.param_groups[1:]:
            group["lr"] = hp.extra_lr
        optimizer.step()
    optimizer.zero_grad()
    return total if finite else None


LOST = 5  # updates in a row that were not finite, and `fit` gives up


def note_lost(state, micro, sources, hp, log):
    """An update was left out, its loss or gradient being not finite: which, and is it enough?"""
    state["lost"] += 1
    index = np.concatenate(micro)
    names = (index if sources is None else sources[index]).tolist()
    if log is not None:
        log({"update": state["update"], "not_finite": names})
    if state["lost"] >= min(LOST, hp.updates):
        raise UserError(f"{state['lost']} updates in a row had a loss or a gradient that is not "
                        f"finite, the last being update {state['update']}, on sources "
                        f"{', '.join(map(str, names[:8]))}{', ...' if len(names) > 8 else ''}; a "
                        "lower learning rate may help")


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


def as_saved(state, model, optimizer, extra):
    """All that the rest of a `fit` depends on, as tensors and plain values."""
    return {"state": {**state, "loss": float(state["loss"]), "units": int(state["units"])},
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "extra": [x.detach() for x in extra]}


def restore(saved, model, optimizer, extra):
    load_weights(model, saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for mine, theirs in zip(extra, saved["extra"]):
        mine.data.copy_(theirs)
    return saved["state"]
