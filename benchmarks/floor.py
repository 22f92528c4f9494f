"""The floor: what the matrix products alone take, each timed at the very shape it has in the model.

What is left of the time goes to anything else: softmax, norms, random numbers, copies, Python. (Not
quite a lower bound: a causal attention needs only half of its products, which are a few percent.)
"""

import statistics
import time
from collections import Counter

import torch
import torch.nn.functional as F


def seconds_of(function, calls=7):
    """Median seconds of a call."""
    found = []
    for _ in range(calls):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def linear(rows, width_in, width_out, training=False):
    """Seconds of one linear map of so many rows; with `training`, of its two gradients too."""
    x, w = torch.randn(rows, width_in), torch.randn(width_out, width_in)
    total = seconds_of(lambda: F.linear(x, w))
    if training:
        g = torch.randn(rows, width_out)
        total += seconds_of(lambda: g @ w) + seconds_of(lambda: g.T @ x)
    return total


def attention(batch, queries, keys, width, training=False):
    """Seconds of the two batched products of an attention (batch: rows times heads)."""
    q, k = torch.randn(batch, queries, width), torch.randn(batch, keys, width)
    p = torch.randn(batch, queries, keys)
    forward = seconds_of(lambda: torch.bmm(q, k.mT)) + seconds_of(lambda: torch.bmm(p, k))
    return forward * (3 if training else 1)  # each product has two gradients of its own size


def decode_step(config, sources, samples, source_length, length):
    """Seconds of the products of one cached decoding step at target position `length`."""
    D, rows = config.d_model, sources * samples
    layer = 4 * linear(rows, D, D) + linear(rows, D, 2 * D)
    layer += linear(rows, D, config.d_ff) + linear(rows, config.d_ff, D)
    heads, width = config.n_heads, D // config.n_heads
    layer += attention(rows * heads, 1, length, width)
    layer += attention(sources * heads, samples, source_length, width)
    return config.n_decoder_layers * layer + linear(rows, D, config.vocab_size)


def grow(config, sources, samples, source_length, length):
    """Seconds of the products of encoding the sources, and of `length` decoding steps."""
    middle = max(1, length // 2)  # attention grows evenly with the position
    memories = config.n_decoder_layers * linear(sources * source_length, config.d_model,
                                                2 * config.d_model)
    return (encoder(config, sources, source_length) + memories
            + length * decode_step(config, sources, samples, source_length, middle))


def encoder(config, rows, length, training=False):
    """Seconds of the products of one pass over `rows` sources."""
    D, heads, S = config.d_model, config.n_heads, rows * length
    layer = 2 * linear(S, D, D, training) + linear(S, D, 2 * D, training)
    layer += linear(S, D, config.d_ff, training) + linear(S, config.d_ff, D, training)
    layer += attention(rows * heads, length, length, D // heads, training)
    return config.n_encoder_layers * layer


def training(config, batches):
    """Seconds of the products of a training step on each of the batches, pairs (B, S), (B, T)."""
    shapes = Counter((*src.shape, tokens.size(1)) for src, tokens in batches)
    return sum(count * training_step(config, *shape) for shape, count in shapes.items())


def training_step(config, rows, source_length, length):
    """Seconds of the products of one forward and backward pass over `rows` pairs."""
    D, heads, width = config.d_model, config.n_heads, config.d_model // config.n_heads
    S, T = rows * source_length, rows * length
    layer = 4 * linear(T, D, D, True) + linear(T, D, 2 * D, True) + linear(S, D, 2 * D, True)
    layer += linear(T, D, config.d_ff, True) + linear(T, config.d_ff, D, True)
    layer += attention(rows * heads, length, length, width, True)
    layer += attention(rows * heads, length, source_length, width, True)
    return (encoder(config, rows, source_length, True) + config.n_decoder_layers * layer
            + linear(T, D, config.vocab_size, True))
