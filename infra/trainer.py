"""The state behind a training loop, so that the loop itself can stand where it is read.

    with Trainer(model, lengths, token_counts, hp, seed, loss, ...) as trainer:
        while True:
            if trainer.is_evaluation_due():
                trainer.track_best(evaluate())
            if trainer.is_done():
                break
            for index in trainer.next_update():          # micro-batches: arrays of item numbers
                with trainer.autocast():
                    loss_sum = ...                       # summed over the tokens of these items
                trainer.backward(loss_sum)               # divided by the tokens of the whole update
            trainer.step()

It knows where the training stands, the best weights so far, the optimiser, the learning rate, and
the checkpoint from which a killed run goes on. rest.improve is the loop that trains policies; the
reward model and the value model have theirs in reward.py.

Left out: mixed-precision loss scaling (bfloat16 needs none), gradient checkpointing, sharding.
"""

import copy
import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from infra.batches import batches
from infra.errors import UserError
from infra.processes import all_reduce, is_main, rank, shard
from infra.progress import bar
from infra.seeds import seed_of
from infra.storage import load_weights

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
    """Settings of one training. The paper gives none of these; the programs choose their own."""

    updates: int = 1000  # most optimiser steps
    batch_tokens: int = 2048  # padded tokens of a micro-batch
    accumulate: int = 1  # micro-batches per optimiser step
    lr: float = 1e-3  # peak learning rate
    warmup: int = 100  # steps of linear warm-up
    final_lr: float = 0.05  # share of the peak that the linear decay ends at
    loss_lr: float = 0.05  # constant rate of the loss's own parameters (V-MPO's log η)
    clip: float = 1.0  # largest gradient norm
    evaluate_every: int = 100  # steps between two evaluations of the held-out score
    patience: int = 3  # evaluations without a new best before it stops
    dropout: bool = True  # off for PPO, whose ratio compares with the policy without it
    precision: str = "float32"  # or "bfloat16": autocast of the forward pass
    parts: int = 0  # cut an epoch into so many equal random micro-batches, and not by batch_tokens

    def lr_at(self, update):
        """Linear warm-up to `lr`, then linear decay to final_lr * lr at the last update."""
        rising = (update + 1) / max(1, self.warmup)
        left = (self.updates - update) / max(1, self.updates - self.warmup)
        return self.lr * min(1.0, rising, self.final_lr + (1 - self.final_lr) * left)


def adamw(parameters, hp):
    return torch.optim.AdamW(parameters, lr=hp.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


class Trainer:
    """One training of a model on n items; to be used in a `with`, at whose end the model has the
    best weights, or the last ones where nothing was evaluated.

    model: trained in place. lengths: (n,) padded tokens of each item, for batches of like length.
    token_counts: (n,) what each item counts, its tokens or 1: an update divides by the sum of them.
    loss: a module whose parameters are trained beside the model's, and whose state is kept with it.
    checkpoint: a storage.Checkpoint, which keeps this training's state under its seed. optimizer:
    one that outlives this training. log(event dict): after each evaluation. title: of a progress
    bar, shown on a terminal. names: (n,) what to call the items in a report.
    """

    NOT_FINITE = 5  # updates in a row whose loss or gradient is not finite end the training

    def __init__(self, model, lengths, token_counts, hp, seed, loss=None, checkpoint=None,
                 optimizer=None, log=None, title=None, names=None):
        self.model, self.loss, self.hp, self.seed = model, loss, hp, seed
        self.token_counts, self.checkpoint, self.names = token_counts, checkpoint, names
        self.log = log or (lambda event: None)
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.optimizer = optimizer or adamw(self.parameters, hp)
        if loss_parameters := [p for p in loss.parameters() if p.requires_grad] if loss else []:
            self.optimizer.add_param_group({"params": loss_parameters})
        self.stream = batches(lengths, hp.batch_tokens, seed, hp.parts)
        self.state = {"update": 0, "since_best": 0, "score": -np.inf, "best": None,
                      "best_update": 0, "first_score": None, "loss": 0.0, "tokens": 0,
                      "trained": 0, "seconds": 0.0, "not_finite": 0}
        self.title = title

    def __enter__(self):
        self.rng = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        self.rng.__enter__()  # dropout's global generator is left as it was
        saved = self.checkpoint.load(self.seed) if self.checkpoint is not None else None
        if saved is not None:
            self.restore(saved)
        self.begin = time.monotonic() - self.state["seconds"]
        self.bar = bar(desc=self.title, total=self.hp.updates, initial=self.state["update"],
                       disable=self.title is None or not is_main())
        self.save_if_due()
        return self

    def __exit__(self, kind, error, traceback):
        self.bar.close()
        self.rng.__exit__(kind, error, traceback)
        if kind is None:
            if self.state["best"] is not None:
                self.model.load_state_dict(self.state["best"])
            self.model.eval()

    # ---------------------------------------------------------------------- evaluating, stopping

    def is_evaluation_due(self):
        """Before the first update, after each hp.evaluate_every, and after the last."""
        update = self.state["update"]
        return update % self.hp.evaluate_every == 0 or update == self.hp.updates

    def track_best(self, score):
        """Remember the weights if their held-out score, higher is better, is the best so far.

        Of equal scores the later weights stand: what has been trained is not given up for its
        start. But only a better score is worth waiting for.
        """
        state, score = self.state, float(score)
        better = score > state["score"]
        self.log({"update": state["update"], "score": score, "best": better,
                  "loss": float(state["loss"]) / max(1, state["tokens"]),
                  "seconds": time.monotonic() - self.begin})
        if state["first_score"] is None:
            state["first_score"] = score
        state.update(loss=0.0, tokens=0, since_best=0 if better else state["since_best"] + 1)
        if score >= state["score"]:
            state.update(score=score, best_update=state["update"],
                         best=copy.deepcopy(self.model.state_dict()))

    def is_done(self):
        """All updates are made, or the score has not risen for hp.patience evaluations."""
        return (self.state["update"] >= self.hp.updates
                or self.state["since_best"] >= self.hp.patience)

    # ---------------------------------------------------------------------------------- an update

    @property
    def update(self):
        """The number of this update, from 0."""
        return self.state["update"]

    def next_update(self):
        """Start an update -> its micro-batches, of which this process gets its shard."""
        state = self.state
        self.micro_batches = [next(self.stream) for _ in range(self.hp.accumulate)]
        self.n_tokens = sum(self.token_counts[index].sum() for index in self.micro_batches)
        self.loss_sum = 0.0
        self.model.train(self.hp.dropout)
        # dropout's generator is seeded by the update's number, so that resuming needs no more
        dropout_seed = seed_of("dropout", self.seed, state["update"], rank())
        torch.default_generator.manual_seed(dropout_seed)  # torch.manual_seed, without its cost
        if self.device.type == "cuda":
            torch.cuda.manual_seed(dropout_seed)
        for index in self.micro_batches:
            self.counts = int(rank() < len(index))  # or this process has none of these items
            yield shard(index) if self.counts else index[:1]

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, self.hp.precision == "bfloat16")

    def backward(self, loss_sum):
        """Gradient of a micro-batch's loss, divided by the tokens of the whole update."""
        loss_sum = self.counts * loss_sum
        (loss_sum / self.n_tokens).backward()
        self.loss_sum += loss_sum.detach()

    def step(self):
        """Sum the gradients over all processes, clip them, and let the optimiser make its step.

        Left out if the loss or a gradient is not finite; UserError after several such in a row.
        """
        groups, state = self.optimizer.param_groups, self.state
        all_reduce([p.grad for group in groups for p in group["params"] if p.grad is not None])
        all_reduce([self.loss_sum])
        norm = torch.nn.utils.clip_grad_norm_(groups[0]["params"], self.hp.clip)
        if bool(torch.isfinite(self.loss_sum + norm)):
            groups[0]["lr"] = self.hp.lr_at(state["update"])
            for group in groups[1:]:
                group["lr"] = self.hp.loss_lr
            self.optimizer.step()
            state.update(loss=state["loss"] + self.loss_sum, tokens=state["tokens"] + self.n_tokens,
                         trained=state["trained"] + int(self.n_tokens), not_finite=0)
        else:
            self.skip_nonfinite()
        self.optimizer.zero_grad()
        state["update"] += 1
        self.bar.update()
        self.save_if_due()

    def skip_nonfinite(self):
        """Report an update that is left out; enough of them in a row are an error."""
        state, index = self.state, np.concatenate(self.micro_batches)
        state["not_finite"] += 1
        names = (index if self.names is None else self.names[index]).tolist()
        self.log({"update": state["update"], "not_finite": names})
        if state["not_finite"] >= min(self.NOT_FINITE, self.hp.updates):
            raise UserError(f"{state['not_finite']} updates in a row had a loss or a gradient that "
                            f"is not finite, the last being update {state['update']}, on sources "
                            f"{', '.join(map(str, names[:8]))}{', ...' if len(names) > 8 else ''}; "
                            "a lower learning rate may help")

    # --------------------------------------------------------------------------------- resuming

    def save_if_due(self):
        """Everything that the rest of the training depends on, as tensors and plain values."""
        if self.checkpoint is None or not self.checkpoint.due():
            return
        state = self.state
        state["seconds"] = time.monotonic() - self.begin
        self.checkpoint.save(self.seed, {
            "state": {**state, "loss": float(state["loss"]), "tokens": int(state["tokens"])},
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict() if self.loss else {}})

    def restore(self, saved):
        load_weights(self.model, saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.loss:
            load_weights(self.loss, saved["loss"])
        self.state = saved["state"]
        for _ in range(self.state["update"] * self.hp.accumulate):
            next(self.stream)

    def result(self):
        """{"updates", "score"} of the best checkpoint (or of the end), {"tokens", "seconds"} of the
        whole training, and the "first_score", before any update."""
        state = self.state
        return {"updates": state["update"] if state["best"] is None else state["best_update"],
                "score": state["score"], "first_score": state["first_score"],
                "tokens": state["trained"], "seconds": time.monotonic() - self.begin}
