"""Batches: padded tensors of the CPU or the device, from items of unlike length."""

from dataclasses import dataclass

import numpy as np
import torch

from infra.seeds import stream
from model import PAD


@dataclass
class Batch:
    """B pairs as padded tensors: what the losses see."""

    source: torch.Tensor  # (B, S)
    tokens: torch.Tensor  # (B, T), the targets: no bos, eos kept
    mask: torch.Tensor  # (B, T), 1 on real tokens
    reward: torch.Tensor  # (B, 1); for PPO the advantage
    old_logprobs: torch.Tensor  # (B, T), of the policy that drew them


def collate(pairs, sources, index, device="cpu"):
    """The pairs at `index` (integers) as one Batch."""
    pairs = pairs.select(index)
    source, tokens = pad([sources[i] for i in pairs.source]), pad(pairs.targets())
    mask = (tokens != PAD).float()
    old = mask.masked_scatter(mask > 0, torch.from_numpy(pairs.logprobs))
    reward = torch.from_numpy(pairs.reward)[:, None]
    return Batch(*(to_device(x, device) for x in (source, tokens, mask, reward, old)))


def pad(sequences, device="cpu"):
    """n lists or arrays of ids -> (n, longest) int64, padded on the right."""
    out = np.full((len(sequences), max(1, max(map(len, sequences)))), PAD, np.int64)
    for row, sequence in zip(out, sequences):
        row[: len(sequence)] = sequence
    return to_device(torch.from_numpy(out), device)


def to_device(x, device):
    """A tensor of the CPU on the device; to a GPU it is copied while the program goes on."""
    if torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def batches(lengths, batch_tokens, seed, parts=0):
    """Index arrays without end, epoch after epoch, each of at most `batch_tokens` padded tokens.

    lengths: (n,). Items are shuffled and taken in pools of about 50 batches; a pool is ordered by
    length, cut, and its batches shuffled: little padding, and still a new mixture in every epoch.
    parts: instead, each epoch is cut into so many equal parts at random, whatever their lengths.
    Batch k is the same for the same seed, whatever else the program draws.
    """
    pool = max(1, 50 * batch_tokens // max(1, int(lengths.mean())))
    epoch = 0
    while True:
        rng = stream("epoch", seed, epoch)
        order = rng.permutation(len(lengths))
        if parts:
            yield from np.array_split(order, min(parts, len(order)))
        for at in range(0, 0 if parts else len(order), pool):
            cut = bucket_by_length(lengths, batch_tokens, order[at : at + pool])
            for k in rng.permutation(len(cut)):
                yield cut[k]
        epoch += 1


def bucket_by_length(lengths, batch_tokens, index=None):
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
