"""Beam search, by which translations are evaluated and made; ReST itself only samples."""

import math

import torch

from model import (BOS, EOS, PAD, Cache, at_least_float32, check, check_lengths, eval_mode)


def beam_search(model, src, beam=5, max_len=None, length_penalty=1.0, n_best=1):
    """The n_best finished hypotheses of each source by log π(y|x) / |y|^length_penalty.

    Returns tokens (B, n_best, T): no bos, eos kept, pad after it. A source is done when `beam` of
    its hypotheses have ended and none that goes on is better than the n_best of them. What has not
    ended at the maximum length makes up for hypotheses that are missing.
    """
    max_len = model.config.max_len if max_len is None else max_len
    check(beam >= 1, f"beam = {beam}, but must be at least 1")
    check(model.config.vocab_size > beam + EOS, f"beam = {beam} is wider than the vocabulary")
    check_lengths(model, src, max_len)
    check(1 <= n_best <= beam, f"n_best = {n_best}, but must be between 1 and beam = {beam}")
    n_sources = len(src)
    best = src.new_full((n_sources, n_best, max_len), PAD)
    with eval_mode(model), torch.inference_mode():
        cache = Cache(model, src, beam)
        source = torch.arange(n_sources, device=src.device)  # of the output, for each row here
        history = src.new_full((n_sources, beam, max_len), PAD)
        last = src.new_full((n_sources, beam), BOS)
        precision = torch.promote_types(model.embedding.weight.dtype, torch.float32)
        score = torch.full((n_sources, beam), -math.inf, dtype=precision, device=src.device)
        score[:, 0] = 0.0  # at first all beams are the same: let only one of them speak
        best_score = score.new_full((n_sources, n_best), -math.inf)
        ended = torch.zeros_like(source)
        for t in range(max_len):
            cache.advance()
            logprobs = at_least_float32(model.step(last.flatten(), cache)).log_softmax(-1)
            logprobs[..., : BOS + 1] = -math.inf
            total = (score.flatten()[:, None] + logprobs).view(len(score), -1)  # (B', beam * V)
            # 2 * beam candidates, of which at most `beam` end: so `beam` always go on.
            candidate, index = total.topk(2 * beam)
            parent, token = index // logprobs.size(-1), index % logprobs.size(-1)
            ends = token == EOS
            ended += ends[:, :beam].sum(1)
            # The endings that are among the best so far are kept.
            final = candidate[:, :beam].masked_fill(~ends[:, :beam], -math.inf)
            text = history.gather(1, parent[:, :beam, None].expand(-1, -1, max_len)).clone()
            text[:, :, t] = EOS
            keep_best(best, best_score, source, text, final / (t + 1) ** length_penalty)
            # The best others go on.
            score, going = candidate.masked_fill(ends, -math.inf).topk(beam)
            parent, last = parent.gather(1, going), token.gather(1, going)
            hope = score[:, 0] / (t + 1) ** length_penalty > best_score[source, -1]
            alive = ((ended < beam) | hope).nonzero()[:, 0]
            if len(alive) == 0 or t == max_len - 1:
                break
            history = history[alive[:, None], parent[alive]]
            source, last, score, ended = (x[alive] for x in (source, last, score, ended))
            history[:, :, t] = last
            cache.select((alive[:, None] * beam + parent[alive]).flatten())
        # What ran to the end without an ending stands behind all that ended, in its own order.
        text = history.gather(1, parent[..., None].expand(-1, -1, max_len)).clone()
        text[:, :, t] = last
        behind = -1e4 - torch.arange(beam).to(score)
        keep_best(best, best_score, source, text, behind.expand_as(score))
        longest = int((best != PAD).any(0).any(0).sum())
    return best[:, :, :longest].clone()


def keep_best(best, best_score, source, text, score):
    """Among the best (B, n, T) of the given sources (B',), keep what of text (B', k, T) belongs."""
    n = best.size(1)
    scores, which = torch.cat([best_score[source], score], 1).topk(n)
    texts = torch.cat([best[source], text], 1)
    best[source] = texts.gather(1, which[..., None].expand(-1, -1, texts.size(-1)))
    best_score[source] = scores
