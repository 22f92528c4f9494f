"""Outputs of a policy for many sources: what `model.sample` does for a batch, done for all."""

import numpy as np
import torch

from infra.batches import bucket_by_length, pad
from infra.pairs import Pairs
from infra.processes import all_gather, all_reduce, shard
from infra.seeds import seed_of
from infra.trainer import compiled
from model import PAD, Transformer, sample, token_logprobs


def sample_outputs(policy, sources, n_samples, seed, max_len, temperature=1.0, top_k=0, top_p=1.0,
                   batch_size=1024, precision="float32", compile=False, progress=None):
    """Draw `n_samples` outputs for each source -> Pairs, in the order of the sources, unscored.

    Batches of about `batch_size` outputs hold sources of like length and are laid out by the
    sources alone, and each draws from a generator of its own, seeded by (*seed, batch): any part
    can be drawn again, or elsewhere, and comes out the same. seed: a number, or a tuple of names
    and numbers. temperature = 0 is greedy. compile: the decoding step, by torch.compile. progress:
    wraps the list of batches (tqdm).
    """
    seed = seed if isinstance(seed, (tuple, list)) else (seed,)
    lengths = np.array([len(x) for x in sources])
    per_batch = max(1, batch_size // n_samples)
    order = np.argsort(lengths, kind="stable")
    cut = [order[at : at + per_batch] for at in range(0, len(order), per_batch)]
    device = policy.embedding.weight.device
    step = compiled(Transformer.step, device) if compile else Transformer.step
    batches, parts = shard(list(enumerate(cut))), []
    for k, index in progress(batches) if progress else batches:
        generator = torch.Generator().manual_seed(seed_of("batch", *seed, k))
        with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
            drawn = sample(policy, pad([sources[i] for i in index], device), n_samples, max_len,
                           temperature, top_k, top_p, generator, step)
        parts.append(unpadded(drawn, np.repeat(index, n_samples)))
    pairs = Pairs.join(all_gather(parts))
    return pairs.select(np.argsort(pairs.source, kind="stable"))


def unpadded(drawn, source):
    """What `sample` returned, B x N rows of the given sources, as Pairs."""
    tokens, logprobs = (x.flatten(0, 1).cpu().numpy() for x in (drawn.tokens, drawn.logprobs))
    real = tokens != PAD
    return Pairs(source.astype(np.int32), tokens[real].astype(np.int32),
                 np.concatenate([[0], np.cumsum(real.sum(1))]), logprobs[real].astype(np.float32),
                 np.full(len(tokens), np.nan, np.float32), np.zeros(len(tokens), bool))


@torch.inference_mode()
def logprobs_of(policy, sources, pairs, batch_tokens=2048):
    """log π(y_t | y_<t, x) of given pairs, flat like pairs.tokens."""
    out = np.zeros(len(pairs.tokens), np.float32)
    device = policy.embedding.weight.device
    policy.eval()
    for index in shard(bucket_by_length(pairs.padded_lengths(sources), batch_tokens)):
        tokens = pad(pairs.targets(index), device)
        src = pad([sources[i] for i in pairs.source[index]], device)
        flat = token_logprobs(policy, src, tokens)[tokens != PAD]
        at = np.concatenate([np.arange(pairs.starts[i], pairs.starts[i + 1]) for i in index])
        out[at] = flat.float().cpu()
    all_reduce([torch.from_numpy(out)])
    return out
