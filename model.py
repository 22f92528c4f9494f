"""The policy π(y|x): an encoder-decoder transformer, its key-value cache, and its sampler.

The paper's model ("Attention is all you need", with layer norms moved to the front of each block),
small enough to read in one sitting and fast enough to draw the millions of samples that ReST needs.
What makes sampling cheap is the shape of the problem: every row of a batch stands at the same
target position, so nothing is padded on the left; a source is encoded once, and its N samples are
N more queries against the same cross-attention keys, of which there is one copy.

    model = Transformer(Config(vocab_size=4000))
    logits = model(src, tgt)                           # (B, T, V), for training
    out = sample(model, src, n_samples=8, temperature=0.8)

Letters: B sources, N samples per source, R rows being decoded, S source length, T target length,
D width, H heads, V vocabulary. Left out on purpose: relative positions, mixture of experts,
quantisation, speculative decoding; and beam search, which only evaluation uses (infra/beam.py).
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

PAD, BOS, EOS = 0, 1, 2


@dataclass
class Config:
    """Size of a Transformer. Sources and targets share one vocabulary, ids 0-2 being special."""

    vocab_size: int
    d_model: int = 128  # width D of every hidden state
    n_heads: int = 4  # attention heads H, each of width D / H
    n_encoder_layers: int = 3
    n_decoder_layers: int = 3
    d_ff: int = 512  # hidden width of the feed-forward blocks
    dropout: float = 0.1
    max_len: int = 128  # longest source, and longest target, in tokens

    def __post_init__(self):
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ValueError(f"d_model = {self.d_model} must be even and a multiple of "
                             f"n_heads = {self.n_heads}")
        if self.vocab_size <= EOS:
            raise ValueError(f"vocab_size = {self.vocab_size} leaves no room beside pad, bos, eos")


class Attention(nn.Module):
    """Multi-head scaled dot-product attention of queries x over keys and values of a memory."""

    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key_value = nn.Linear(config.d_model, 2 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def heads(self, x):
        """(B, T, D) -> (B, H, T, D/H)"""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def keys_values(self, memory):
        """(B, S, D) -> two of (B, H, S, D/H)"""
        return [self.heads(x) for x in self.key_value(memory).chunk(2, dim=-1)]

    def forward(self, x, keys_values, mask=None, causal=False):
        """x (B, T, D), keys and values (B, H, S, D/H), mask (B, 1, 1, S) true where allowed."""
        q = self.heads(self.query(x))
        y = F.scaled_dot_product_attention(q, *keys_values, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, D)


class Dropout(nn.Module):
    """Dropout with masks from random bytes: p is rounded to 1/256.

    On a CPU one call of the random number generator then serves eight elements, where nn.Dropout
    needs one each: a third of the time of a training step at width 128.
    """

    def __init__(self, p):
        super().__init__()
        self.dropped = round(256 * p)  # of the 256 values of a byte

    def forward(self, x):
        if not self.training or self.dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(torch.iinfo(torch.int64).min, None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) > self.dropped - 1
        return x * kept * (256 / max(1, 256 - self.dropped))  # p = 1 leaves nothing


class FeedForward(nn.Sequential):
    """Two linear maps around a ReLU, at every position by itself."""

    def __init__(self, config):
        super().__init__(nn.Linear(config.d_model, config.d_ff), nn.ReLU(),
                         nn.Linear(config.d_ff, config.d_model))


class EncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attention, self.feed_forward = Attention(config), FeedForward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x, mask):
        h = self.norms[0](x)
        x = x + self.dropout(self.self_attention(h, self.self_attention.keys_values(h), mask))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(config), Attention(config)
        self.feed_forward = FeedForward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(3))
        self.dropout = Dropout(config.dropout)

    def forward(self, x, memory, mask):
        """T positions of one target for each source, x (B, T, D)."""
        h = self.norms[0](x)
        # no mask of the padding, which stands on the right: what comes later is never seen
        h = self.self_attention(h, self.self_attention.keys_values(h), causal=True)
        x = x + self.dropout(h)
        x = x + self.dropout(self.cross_attention(self.norms[1](x), memory, mask))
        return x + self.dropout(self.feed_forward(self.norms[2](x)))

    def step(self, x, memory, layer_kv, cache):
        """The same for the newest position of R rows, x (R, 1, D); `layer_kv` is this layer's."""
        h = self.norms[0](x)
        x = x + self.self_attention(h, cache.append(layer_kv, self.self_attention.keys_values(h)))
        h = cache.group_by_source(self.norms[1](x))  # to a source, its rows are like positions
        x = x + cache.ungroup(self.cross_attention(h, memory, cache.mask))
        return x + self.feed_forward(self.norms[2](x))


class Transformer(nn.Module):
    """Encoder-decoder with pre-norm and sinusoidal positions; sources, targets and logits share one
    embedding."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.decoder_norm = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_len, config.d_model),
                             persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)

    def embed(self, tokens, start=0):
        """Ids (B, T), the first of which stand at the position `start` -> (B, T, D)."""
        positions = self.positions[start : start + tokens.size(1)]
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)
        return self.dropout(x + positions.to(x.dtype))

    def encode(self, src):
        """src (B, S) -> memory (B, S, D) and its mask (B, 1, 1, S), true on real tokens."""
        mask = (src != PAD)[:, None, None, :]
        x = self.embed(src)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def decode(self, tgt, memory, mask):
        """tgt (B, T), starting with bos -> hidden states (B, T, D) that know of tgt[:, :t+1]."""
        x = self.embed(tgt)
        for layer in self.decoder:
            x = layer(x, layer.cross_attention.keys_values(memory), mask)
        return self.decoder_norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embedding.weight)  # (..., D) -> (..., V)

    def forward(self, src, tgt):
        """src (B, S), tgt (B, T) starting with bos, right-padded -> logits (B, T, V), unmasked."""
        return self.logits(self.decode(tgt, *self.encode(src)))

    def step(self, last, cache):
        """The next logits (R, V), given the last token of every row (R,); after cache.advance()."""
        x = self.embed(last[:, None], start=cache.length - 1)
        for layer, memory, layer_kv in zip(self.decoder, cache.cross_kv, cache.self_kv):
            x = layer.step(x, memory, layer_kv, cache)
        return self.logits(self.decoder_norm(x[:, 0]))


def sinusoids(length, width):
    """(length, width): sin and cos of the position at wavelengths from 2π to 10 000 · 2π."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def shift_right(tokens):
    """Targets (B, T) -> decoder inputs (B, T): bos first, the last token gone."""
    return F.pad(tokens[:, :-1], (1, 0), value=BOS)


def token_logprobs(model, src, tokens):
    """log π(y_t | y_<t, x) of given targets (B, T) (no bos, eos kept, right-padded); 0 on pad."""
    logits = at_least_float32(model(src, shift_right(tokens)))
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return logprobs.masked_fill(tokens == PAD, 0.0)


def at_least_float32(x):
    """Probabilities are worked out in float32 where the model runs in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---------------------------------------------------------------------------------- the cache


class Cache:
    """All that decoding remembers of B sources, and of R rows that are drawn for them.

    At first there are N rows for each source. When some have ended they differ in number; only
    cross-attention has to have them as a rectangle, in which then some places are empty.

    cross_kv, self_kv: for each layer its keys and values, (B, H, S, D/H) of the sources, and
    (R, H, room, D/H) of the rows, of which the first `length` positions are filled.
    """

    ROOM = 16  # positions that the buffers of `self_kv` grow by when they are full

    def __init__(self, model, src, n_samples):
        memory, self.mask = model.encode(src)
        self.cross_kv = [layer.cross_attention.keys_values(memory) for layer in model.decoder]
        self.source = torch.arange(len(src), device=src.device).repeat_interleave(n_samples)
        self.self_kv = [[x.new_empty(len(self.source), x.size(1), 0, x.size(3)) for x in memory]
                        for memory in self.cross_kv]
        self.length = 0
        self.arrange()

    def advance(self):
        """Go to the next position, and have room for it: then `step` changes no shape."""
        if self.length == self.self_kv[0][0].size(2):
            for layer_kv in self.self_kv:  # layer by layer, so that only one is there twice
                layer_kv[:] = [F.pad(x, (0, 0, 0, self.ROOM)) for x in layer_kv]
        self.length += 1

    def append(self, layer_kv, new):
        """Keys and values (R, H, 1, D/H) of this position -> all so far (R, H, length, D/H)."""
        for buffer, x in zip(layer_kv, new):  # a slice: an index would be compiled for each number
            buffer[:, :, self.length - 1 : self.length] = x
        return [buffer[:, :, : self.length] for buffer in layer_kv]

    def arrange(self):
        """Find each row a place of its own in a rectangle B x N, among those of its source."""
        n = int(self.source.bincount().max())
        self.shape = len(self.mask), n
        # a source's rows are consecutive and at most n, so that their numbers modulo n all differ
        nth = torch.arange(len(self.source), device=self.source.device) % n
        self.place = self.source * n + nth

    def group_by_source(self, x):
        """(R, 1, D) -> (B, N, D): the rows of a source side by side."""
        x = x[:, 0]
        spread = x.new_zeros(self.shape[0] * self.shape[1], x.size(-1))
        spread[self.place] = x
        return spread.view(*self.shape, -1)

    def ungroup(self, x):
        """(B, N, D) -> (R, 1, D)"""
        return x.flatten(0, 1)[self.place][:, None]

    def select(self, rows):
        """Keep these rows (R',), in order of their sources, and the sources that still have any."""
        left, self.source = self.source[rows].unique_consecutive(return_inverse=True)
        if len(left) < len(self.mask):
            self.mask = self.mask[left]
            self.cross_kv = [[x[left] for x in memory] for memory in self.cross_kv]
        for layer_kv in self.self_kv:
            layer_kv[:] = [x[rows] for x in layer_kv]
        self.arrange()


# ------------------------------------------------------------------------------------ sampling


@dataclass
class Samples:
    """tokens (B, N, T): no bos, eos kept, pad after it; logprobs (B, N, T): 0 on pad."""

    tokens: torch.Tensor
    logprobs: torch.Tensor


CHECK_EVERY = {"cpu": 2, "cuda": 8}  # steps until a look at which rows have ended; on CUDA it waits
SHRINK_BELOW = 0.9  # when fewer than this share of the rows goes on, the others are dropped


def sample(model, src, n_samples=1, max_len=None, temperature=1.0, top_k=0, top_p=1.0,
           generator=None, step=Transformer.step):
    """Draw y ~ π(·|x), `n_samples` for each source. temperature = 0 is greedy.

    src: (B, S) int64, right-padded. max_len: most tokens of an output, eos included (default: the
    model's). top_k = 0 and top_p = 1 truncate nothing. The log-probabilities returned are those
    of the untempered, untruncated policy; pad and bos are never drawn. All random numbers are taken
    from `generator` at the start, one for each row and position, so that what a row becomes does
    not depend on when the others end. step: Transformer.step, or the same compiled. Raises
    ValueError on arguments out of range.
    """
    max_len = model.config.max_len if max_len is None else max_len
    check(n_samples >= 1, f"n_samples = {n_samples}, but must be at least 1")
    check(temperature >= 0, f"temperature = {temperature}, but must not be negative")
    check(top_k >= 0, f"top_k = {top_k}, but must be 0 (off) or positive")
    check(0 < top_p <= 1, f"top_p = {top_p}, but must be in (0, 1]")
    check_lengths(model, src, max_len)
    n_rows = len(src) * n_samples
    tokens = src.new_full((n_rows, max_len), PAD)
    precision = torch.promote_types(model.embedding.weight.dtype, torch.float32)
    logprobs = torch.zeros(n_rows, max_len, dtype=precision, device=src.device)
    with eval_mode(model), torch.inference_mode():
        cache = Cache(model, src, n_samples)
        row = torch.arange(n_rows, device=src.device)  # of the output, for each row here
        last = torch.full_like(row, BOS)
        live = torch.ones_like(row, dtype=torch.bool)
        uniform = random_numbers((max_len, n_rows), generator, src.device)
        look = CHECK_EVERY.get(src.device.type, 8)
        for t in range(max_len):
            cache.advance()
            logits = at_least_float32(step(model, last, cache))  # (R, V), of the rows left
            last, logprob = sample_token(logits, uniform[t, row], temperature, top_k, top_p)
            last = last.where(live, PAD)
            tokens[row, t], logprobs[row, t] = last, logprob.where(live, 0.0)
            live &= last != EOS
            if t % look == look - 1:
                left = live.nonzero()[:, 0]
                if len(left) == 0:
                    break
                if len(left) < SHRINK_BELOW * len(live):
                    cache.select(left)
                    row, last, live = row[left], last[left], live[left]
        longest = int((tokens != PAD).any(0).sum())
    shape = (len(src), n_samples, longest)  # clone, to let go of the unused width
    return Samples(tokens[:, :longest].clone().view(shape),
                   logprobs[:, :longest].clone().view(shape))


def sample_token(logits, u, temperature, top_k=0, top_p=1.0):
    """One token per row by the inverse of the CDF: logits (..., V), u (...) in [0, 1).

    Returns ids (...) and their log-probabilities (...) without temperature and truncation. One
    uniform number a row, where Gumbel noise takes V of them: on a CPU that halves the time.
    """
    if temperature == 1:  # one pass over V instead of two; what is drawn has a probability above 0
        probs = logits.softmax(-1)
        ids = inverse_cdf(truncate(probs[..., EOS:], top_k, top_p), u) + EOS  # never pad or bos
        return ids, probs.gather(-1, ids[..., None])[..., 0].log()
    logprobs = logits.log_softmax(-1)
    allowed = logprobs[..., EOS:]
    if temperature < 1e-6:  # greedy, and what lies next to it: dividing by less would overflow
        ids = allowed.argmax(-1) + EOS
    else:
        probs = (allowed / temperature).softmax(-1)
        ids = inverse_cdf(truncate(probs, top_k, top_p), u) + EOS
    return ids, logprobs.gather(-1, ids[..., None])[..., 0]


def inverse_cdf(probs, u, block=64):
    """The ids (...) where the running sum of probs (..., V) passes u (...) of their total.

    In a running sum over V each term waits for the one before. So whole blocks are summed first,
    and run through; then the entries of one block. `right` takes the first sum that is above the
    point, even at 0: an id of probability 0 is never drawn.
    """
    whole = probs.size(-1) // block * block  # what is left over makes a shorter block at the end
    sums = torch.cat([probs[..., :whole].unflatten(-1, (-1, block)).sum(-1),
                      probs[..., whole:].sum(-1, keepdim=True)], dim=-1).cumsum(-1)
    point = (u * sums[..., -1])[..., None]  # below the total, for u < 1
    k = torch.searchsorted(sums, point, right=True)
    ids = k * block + torch.arange(block, device=probs.device)
    within = probs.gather(-1, ids.clamp(max=probs.size(-1) - 1))
    within = within.where(ids < probs.size(-1), 0.0).cumsum(-1)
    # the two ways of summing a block may round differently, so the point is held inside of it
    point = point - F.pad(sums, (1, 0)).gather(-1, k)
    point = torch.minimum(point, within[..., -1:] * (1 - 1e-6)).clamp(min=0)
    return (k * block + torch.searchsorted(within, point, right=True))[..., 0]


def truncate(probs, top_k, top_p):
    """Zero all but the top_k likeliest entries, then all but the fewest that hold top_p of them."""
    if 0 < top_k < probs.size(-1):
        kept, index = probs.topk(top_k)
        probs = torch.zeros_like(probs).scatter_(-1, index, kept / kept.sum(-1, keepdim=True))
    if top_p < 1:
        ordered, index = probs.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the mass of likelier entries
        kept = before < top_p * ordered.sum(-1, keepdim=True)
        probs = torch.zeros_like(probs).scatter_(-1, index, ordered.where(kept, 0.0))
    return probs


def random_numbers(shape, generator, device):
    """Uniform in [0, 1), drawn where the generator lives and moved to `device`."""
    at = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=at).to(device)


# ----------------------------------------------------------------------------------- arguments


@contextmanager
def eval_mode(model):
    """Dropout off inside, and every module's mode as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check(condition, message):
    if not condition:
        raise ValueError(message)


def check_lengths(model, src, max_len):
    config = model.config
    check(1 <= max_len <= config.max_len,
          f"max_len = {max_len}, but this model's positions allow 1 to {config.max_len}")
    check(src.dim() == 2 and src.numel() > 0, f"src has shape {tuple(src.shape)}, not (B, S)")
    check(src.dtype == torch.int64, f"src holds {src.dtype}, but ids are torch.int64")
    check(src.size(1) <= config.max_len,
          f"a source has {src.size(1)} tokens, but this model's positions allow {config.max_len}")
    low, high = int(src.min()), int(src.max())
    check(0 <= low and high < config.vocab_size,
          f"token ids {low} to {high}, but the vocabulary has 0 to {config.vocab_size - 1}")
