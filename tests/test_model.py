"""model.py: the cache and sampling against slow loops through the uncached model.

Beam search is here where it must do as sampling does; its own tests are in test_beam.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_py
from infra.beam import beam_search
from infra.trainer import GRAPHS
from model import (BOS, EOS, PAD, Cache, Config, Dropout, Transformer, sample, sample_token,
                   shift_right, token_logprobs, truncate)

V = 11  # the vocabulary of most models here
TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(seed=16, **changes):
    sizes = dict(vocab_size=V, d_model=16, n_heads=2, n_encoder_layers=2, n_decoder_layers=2,
                 d_ff=32, dropout=0.0, max_len=12)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(Config(**sizes | changes))


def tiny(seed=16, dtype=torch.float32, bias=(), **changes):
    """A random model in eval mode. bias: {token: what is added to its logit}, at every position.

    A random model with tied embeddings repeats its last token; flipping the hidden state keeps
    this one from it, and so makes outputs and lengths that differ from source to source.
    """
    net = plain(seed, **dict(dropout=0.1) | changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # so that no norm is still 1 and no bias still 0
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng(seed))
        for layer in net.decoder:  # so that more than the last token matters
            layer.self_attention.out.weight *= 4
    added = torch.zeros(net.config.vocab_size)
    for token, amount in dict(bias).items():
        added[token] = amount
    net.logits = lambda hidden: Transformer.logits(net, hidden.flip(-1)) + added.to(hidden.dtype)
    return net.to(dtype)


def ragged(*lengths, seed=0, vocab_size=V):
    """Sources of these lengths, right-padded."""
    src = torch.randint(EOS + 1, vocab_size, (len(lengths), max(lengths)), generator=rng(seed))
    return src.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)


def own_logprobs(net, src, tokens):
    """token_logprobs, for samples (B, N, T)."""
    src = src.repeat_interleave(tokens.size(1), dim=0)
    with torch.no_grad():
        return token_logprobs(net, src, tokens.flatten(0, 1)).view(tokens.shape)


def next_logprobs(net, source, prefix):
    """log π(·|prefix, source) by the uncached model, and -inf for pad and bos. source: (S)."""
    with torch.no_grad():
        logits = net(source[None], torch.tensor([[BOS, *prefix]]))[0, -1]
    return logits.log_softmax(-1).index_fill(0, torch.tensor([PAD, BOS]), -math.inf)


def strip(row):
    """A padded row of ids -> the list of its tokens."""
    return [token for token in row.tolist() if token != PAD]


def greedy(net, source, max_len):
    tokens = []
    while len(tokens) < max_len and tokens[-1:] != [EOS]:
        tokens.append(int(next_logprobs(net, source, tokens).argmax()))
    return tokens


def chi_square(counts, probs):
    expected = torch.tensor(probs, dtype=torch.float64) * sum(counts)
    return float(((torch.tensor(counts) - expected) ** 2 / expected).sum())


def lengths_of(tokens):
    return (tokens != PAD).sum(-1)


def count_compactions(monkeypatch, every=1):
    """Compact as often as that; the list returned grows by one with every compaction."""
    calls, select = [], Cache.select
    monkeypatch.setitem(model_py.CHECK_EVERY, "cpu", every)
    monkeypatch.setattr(Cache, "select", lambda *args: (calls.append(1), select(*args)))
    return calls


# -------------------------------------------------------------------------- cached = uncached


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_cached_logits_are_the_uncached_ones_at_every_step(dtype, tolerance):
    net, src, n = tiny(dtype=dtype), ragged(7, 1, 4), 3
    tgt = torch.randint(EOS, V, (len(src), n, 12), generator=rng(1))
    tgt[:, :, 0] = BOS
    full = net(src.repeat_interleave(n, 0), tgt.flatten(0, 1)).view(len(src), n, 12, V)
    cache = Cache(net, src, n)
    for t in range(12):
        cache.advance()
        cached = net.step(tgt[:, :, t].flatten(), cache)
        assert (cached - full[:, :, t].flatten(0, 1)).abs().max() < tolerance


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_cached_logits_after_rows_are_dropped_reordered_and_repeated(monkeypatch, dtype, tolerance):
    """Also when a buffer has to grow, and when sources have different numbers of rows."""
    monkeypatch.setattr(Cache, "ROOM", 5)
    net, src = tiny(dtype=dtype), ragged(2, 6, 4)
    source, tgt = torch.arange(3).repeat_interleave(3), torch.randint(EOS, V, (9, 12),
                                                                       generator=rng(1))
    tgt[:, 0] = BOS
    selections = {3: [2, 0, 4, 4, 6], 7: [1, 0, 4], 8: [1, 2]}  # of source 0, 1, 2; 0, 2; 0, 2
    cache = Cache(net, src, 3)
    for t in range(12):
        if t in selections:
            cache.select(torch.tensor(selections[t]))
            source, tgt = source[selections[t]], tgt[selections[t]]
        full = net(src[source], tgt[:, : t + 1])[:, -1]
        cache.advance()
        assert (net.step(tgt[:, t], cache) - full).abs().max() < tolerance
    assert len(cache.mask) == 2 and cache.self_kv[0][0].size(2) == 15


@pytest.mark.parametrize("how", [{}, dict(temperature=0.5), dict(temperature=0), dict(top_k=3),
                                 dict(temperature=2.0, top_k=6, top_p=0.7)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_samples_carry_the_logprobs_of_the_plain_policy(monkeypatch, dtype, tolerance, how):
    """However they were drawn, and while rows and sources are dropped all the time."""
    net, src = tiny(dtype=dtype, bias={EOS: 1.5}), ragged(5, 2, 9, 3)
    compactions = count_compactions(monkeypatch)
    out = sample(net, src, n_samples=5, generator=rng(2), **how)
    assert compactions and len(set(lengths_of(out.tokens).flatten().tolist())) > 1
    assert out.logprobs.dtype == dtype
    assert (out.logprobs - own_logprobs(net, src, out.tokens)).abs().max() < tolerance
    assert (out.logprobs[out.tokens == PAD] == 0).all()
    assert (out.logprobs[out.tokens != PAD] < 0).all()


def test_token_logprobs_by_hand():
    net, src = tiny(dtype=torch.float64), ragged(5, 3)
    tokens = torch.tensor([[4, 9, EOS, PAD], [5, 5, 6, EOS]])
    assert shift_right(tokens).tolist() == [[BOS, 4, 9, EOS], [BOS, 5, 5, 6]]
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for i, t in tokens.nonzero().tolist():
        source = src[i][src[i] != PAD]
        expected[i, t] = next_logprobs(net, source, tokens[i, :t].tolist())[tokens[i, t]]
    torch.testing.assert_close(token_logprobs(net, src, tokens), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_compaction_changes_no_token(monkeypatch, every):
    net, src = tiny(bias={EOS: 1.5}), ragged(5, 2, 9, 3, 1, 6)
    compactions = count_compactions(monkeypatch, every)
    often = sample(net, src, n_samples=7, generator=rng(3))
    assert compactions
    compactions = count_compactions(monkeypatch, 10**9)
    never = sample(net, src, n_samples=7, generator=rng(3))
    assert not compactions
    assert torch.equal(often.tokens, never.tokens)
    torch.testing.assert_close(often.logprobs, never.logprobs)


# ---------------------------------------------------------------------------- batch invariance


def test_a_source_alone_in_a_padded_and_in_a_permuted_batch_has_the_same_logits():
    net, src = tiny(dtype=torch.float64), ragged(3, 8, 1, 5)
    tgt = F.pad(torch.randint(EOS, V, (4, 5), generator=rng(1)), (1, 0), value=BOS)
    batch, order = net(src, tgt), [2, 0, 3, 1]
    torch.testing.assert_close(net(src[order], tgt[order]), batch[order])
    torch.testing.assert_close(net(F.pad(src, (0, 3)), tgt), batch)
    for i in range(4):
        alone = net(src[i : i + 1, : lengths_of(src)[i]], tgt[i : i + 1])
        torch.testing.assert_close(alone[0], batch[i])


@pytest.mark.parametrize("decode", [
    lambda net, src: sample(net, src, temperature=0).tokens[:, 0],
    lambda net, src: beam_search(net, src, beam=3)[:, 0]], ids=["greedy", "beam"])
def test_a_source_alone_in_a_padded_and_in_a_permuted_batch_has_the_same_output(decode):
    net, src, order = tiny(bias={EOS: 1.5}), ragged(3, 8, 1, 5, 6, 2), [2, 0, 5, 3, 1, 4]
    batch = decode(net, src)
    assert len(set(map(tuple, batch.tolist()))) > 2 and len(set(lengths_of(batch).tolist())) > 1
    assert torch.equal(decode(net, src[order]), batch[order])
    assert torch.equal(decode(net, F.pad(src, (0, 3))), batch)
    for i in range(len(src)):
        alone = decode(net, src[i : i + 1, : lengths_of(src)[i]])
        assert strip(alone[0]) == strip(batch[i])


# ----------------------------------------------------------------------------------- causality


def test_a_later_target_token_leaves_the_earlier_logits_alone():
    net, src = tiny(dtype=torch.float64), ragged(5, 3)
    tgt = F.pad(torch.randint(EOS, V, (2, 7), generator=rng(1)), (1, 0), value=BOS)
    before = net(src, tgt)
    for t in range(7):
        changed = tgt.clone()
        changed[:, t + 1] = EOS + (changed[:, t + 1] - EOS + 1) % (V - EOS)
        difference = (net(src, changed) - before).abs().amax((0, 2))
        assert difference[: t + 1].max() < 1e-12 and difference[t + 1 :].min() > 1e-6


def test_what_stands_on_a_padded_source_position_changes_nothing():
    net, src = tiny(dtype=torch.float64), ragged(6, 2, 4)
    tgt = torch.randint(EOS, V, (3, 5), generator=rng(1))
    before = net(src, tgt)
    memory, mask = net.encode(src)
    garbage = memory.masked_fill((src == PAD)[..., None], 1e3)
    torch.testing.assert_close(net.logits(net.decode(tgt, garbage, mask)), before)
    with torch.no_grad():
        net.embedding.weight[PAD] = 1e3
    torch.testing.assert_close(net(src, tgt)[..., 1:], before[..., 1:])


def test_a_real_source_token_changes_the_logits():
    net, src = tiny(dtype=torch.float64), ragged(6)
    tgt, changed = torch.tensor([[BOS, 4]]), src.clone()
    changed[0, 5] = EOS + 1 + (changed[0, 5] - EOS) % (V - EOS - 1)
    assert (net(src, tgt) - net(changed, tgt)).abs().amax(-1).min() > 1e-6


def test_target_padding_changes_no_logprob_and_has_none():
    net, src = tiny(dtype=torch.float64), ragged(6, 2)
    tokens = torch.tensor([[5, 6, 7, EOS], [4, EOS, PAD, PAD]])
    padded = token_logprobs(net, src, F.pad(tokens, (0, 4)))
    torch.testing.assert_close(padded, F.pad(token_logprobs(net, src, tokens), (0, 4)))
    short = token_logprobs(net, src[1:], tokens[1:, :2])
    torch.testing.assert_close(padded[1:, :2], short)
    assert (padded[1, 2:] == 0).all()


# ------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("p", [0.0, 0.001, 0.25, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    x = torch.ones(300, 301, requires_grad=True)  # no multiple of the eight that share a number
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = Dropout(p)(x)
    share = round(256 * p) / 256
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - share)))
    y.sum().backward()
    assert torch.equal(x.grad, y) and torch.equal(Dropout(p).eval()(x), x)


def test_dropout_of_all_leaves_zeros():
    """And a gradient of zeros: nothing is divided by the share that is kept."""
    x = torch.full((5, 7), 3.0, requires_grad=True)
    y = Dropout(1.0)(x)
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == torch.zeros(5, 7).tolist()


# ------------------------------------------------------------------------------------- sampling


def test_same_generator_same_tokens_and_the_global_generator_is_left_alone():
    net, src, before = tiny(), ragged(5, 3), torch.get_rng_state()
    a, b, c = (sample(net, src, n_samples=4, generator=rng(seed)).tokens for seed in (5, 5, 6))
    assert torch.equal(a, b) and not (a.shape == c.shape and torch.equal(a, c))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_samples_of_a_source_differ():
    tokens = sample(tiny(), ragged(5), n_samples=6, generator=rng()).tokens
    assert len(set(map(tuple, tokens[0].tolist()))) == 6


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-7])
def test_temperature_0_is_greedy(temperature):
    net, src = tiny(bias={EOS: 1.5}), ragged(3, 8, 1, 5, 6, 2)
    out = sample(net, src, n_samples=2, temperature=temperature, generator=rng()).tokens
    expected = [greedy(net, source[source != PAD], 12) for source in src]
    assert [strip(row) for row in out[:, 0]] == [strip(row) for row in out[:, 1]] == expected
    assert len(set(map(len, expected))) > 2


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_frequencies_of_whole_samples_fit_the_model(temperature):
    """Chi-square over all 13 outputs of at most two tokens from {eos, 3, 4, 5}, and two sources."""
    net, src = tiny(vocab_size=6, bias={PAD: 1.0, BOS: 1.0, EOS: 1.5}), ragged(4, 2, vocab_size=6)
    tokens = sample(net, src, 4000, max_len=2, temperature=temperature, generator=rng(7)).tokens
    for source, rows in zip(src, tokens):
        source = source[source != PAD]
        first = (next_logprobs(net, source, []) / temperature).softmax(-1).tolist()
        outputs, probs = [[EOS, PAD]], [first[EOS]]
        for a in (3, 4, 5):
            second = (next_logprobs(net, source, [a]) / temperature).softmax(-1).tolist()
            outputs += [[a, b] for b in (EOS, 3, 4, 5)]
            probs += [first[a] * second[b] for b in (EOS, 3, 4, 5)]
        counts = [rows.tolist().count(output) for output in outputs]
        assert sum(counts) == 4000 and sum(probs) == pytest.approx(1)
        assert min(probs) * 4000 > 5
        assert chi_square(counts, probs) < 32.9  # 12 degrees of freedom: exceeded once in 1000


def test_draw_inverts_the_cdf():
    probs = torch.tensor([0.3, 0.2, 0.05, 0.25, 0.2, 0.125, 0.375])  # pad, bos, eos, 3, ...
    grid = (torch.arange(1000) + 0.5) / 1000
    drawn, _ = sample_token(probs.log().expand(1000, -1), grid, 1.0)
    assert drawn.diff().min() >= 0  # in the order of the ids
    assert drawn.bincount(minlength=7).tolist() == [0, 0, 50, 250, 200, 125, 375]


def test_draw_finds_the_same_ids_as_one_running_sum():
    logits = 3 * torch.randn(500, 1000, generator=rng(), dtype=torch.float64)
    u = torch.rand(500, generator=rng(), dtype=torch.float64)
    probs = logits.softmax(-1)
    probs[:, [PAD, BOS]] = 0
    sums = probs.cumsum(-1)
    ids, logprobs = sample_token(logits, u, 1.0)
    expected = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(ids, expected) and ids.unique().numel() > 200
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", [{}, dict(top_k=2), dict(top_p=0.5), dict(top_k=5, top_p=0.9)],
                         ids=str)
@pytest.mark.parametrize("size", [50, 64 + EOS, 300])  # of inverse_cdf's blocks: one, one, five
def test_draw_at_the_ends_of_the_unit_interval(dtype, how, size):
    """u = 0 gives the first entry that is allowed, the largest u below 1 the last."""
    logits = torch.randn(300, size, generator=rng(), dtype=dtype)
    logits[:, EOS : EOS + 3] = logits[:, -3:] = -math.inf  # nothing at either end of what is left
    logits[::2, 20:] = -math.inf
    logits[:, [PAD, BOS]] = 9.0
    allowed = logits.index_fill(-1, torch.tensor([PAD, BOS]), -math.inf).softmax(-1)
    allowed = truncate(allowed, **dict(top_k=0, top_p=1.0) | how) > 0
    below_1 = torch.nextafter(torch.ones(300, dtype=dtype), torch.zeros(300, dtype=dtype))
    for u, end in [(torch.zeros(300, dtype=dtype), 0), (below_1, -1)]:
        drawn, _ = sample_token(logits, u, 1.0, **how)
        assert drawn.tolist() == [int(row.nonzero()[end]) for row in allowed]


def test_top_k_keeps_exactly_k_and_their_proportions():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.3, 0.3, 0.1, 0.3], [0.25, 0.25, 0.25, 0.25]])
    kept = truncate(probs, top_k=2, top_p=1.0)
    assert (kept > 0).sum(-1).tolist() == [2, 2, 2]  # ties included
    torch.testing.assert_close(kept[0], torch.tensor([0, 4, 0, 3]) / 7)
    assert kept[1, 2] == 0
    assert (truncate(probs[0], top_k=1, top_p=1.0) > 0).tolist() == [False, True, False, False]
    for top_k in (0, 4, 9):
        assert torch.equal(truncate(probs, top_k, 1.0), probs)


@pytest.mark.parametrize("top_p, expected", [
    (0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.76, [0, 1, 3]),
    (0.875, [0, 1, 3]), (0.88, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_fewest_that_hold_it(top_p, expected):
    """The tie between tokens 0 and 2 goes to the first; exactly top_p is enough."""
    probs = torch.tensor([0.125, 0.5, 0.125, 0.25])
    kept = truncate(probs, top_k=0, top_p=top_p)
    assert kept.nonzero()[:, 0].tolist() == expected
    assert torch.equal(kept[expected] / kept.sum(), probs[expected] / probs[expected].sum())


def test_top_p_is_of_what_top_k_left():
    probs = torch.tensor([0.25, 0.5, 0.125, 0.125])
    assert (truncate(probs, top_k=2, top_p=0.6) > 0).tolist() == [False, True, False, False]
    assert (truncate(probs, top_k=2, top_p=0.7) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("how", [dict(top_k=2), dict(top_p=0.5), dict(temperature=0.4, top_p=0.5)],
                         ids=str)
def test_truncated_samples_keep_to_the_nucleus(how):
    """Of the tempered probabilities; and all of the nucleus is sampled."""
    net, src = tiny(), ragged(5)
    probs = (next_logprobs(net, src[0], []) / how.get("temperature", 1)).softmax(-1)
    ordered, total = sorted(range(V), key=lambda token: -probs[token]), 0.0
    nucleus = set(ordered[: how.get("top_k", 0)])
    while total < how.get("top_p", 0):
        total += float(probs[ordered[len(nucleus)]])
        nucleus.add(ordered[len(nucleus)])
    tokens = sample(net, src, n_samples=500, max_len=1, generator=rng(), **how).tokens
    assert set(tokens.flatten().tolist()) == nucleus and 0 < len(nucleus) < V - 2


def test_eos_ends_a_row_and_pad_follows():
    out = sample(tiny(bias={EOS: 2.0}), ragged(5, 2, 7), n_samples=30, generator=rng()).tokens
    assert out.shape[:2] == (3, 30)  # exactly N rows of each source
    lengths = lengths_of(out)
    assert lengths.min() == 1 and lengths.max() == out.size(2)
    for row, length in zip(out.flatten(0, 1).tolist(), lengths.flatten().tolist()):
        assert PAD not in row[:length] and EOS not in row[: length - 1]
        assert set(row[length:]) <= {PAD}
        assert row[length - 1] == EOS or length == 12


class Waits(TorchDispatchMode):
    """Counts the operations that on CUDA wait for the device, their shape or answer being data."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1])
        self.count += masks or name in ("_local_scalar_dense", "item", "is_nonzero", "equal",
                                        "nonzero", "bincount", "masked_select",
                                        "unique_consecutive")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("how", [{}, dict(temperature=0),
                                 dict(temperature=0.5, top_k=3, top_p=0.9)], ids=str)
def test_between_two_looks_at_what_has_ended_decoding_waits_for_nothing(monkeypatch, how):
    monkeypatch.setitem(model_py.CHECK_EVERY, "cpu", 4)
    drawn, draws = [], model_py.random_numbers  # a copy to the device, which waits as well
    monkeypatch.setattr(model_py, "random_numbers", lambda *x: drawn.append(x) or draws(*x))
    net, src, waits = tiny(bias={EOS: -50.0}), ragged(5, 2), {}
    for length in (3, 7, 11):
        with Waits() as mode:
            sample(net, src, 3, length, generator=rng(), **how)
        waits[length] = mode.count
    assert waits[7] == waits[3] + 1 and waits[11] == waits[3] + 2 and len(drawn) == 3


@pytest.mark.slow
def test_the_decoding_step_compiles_to_a_few_graphs_for_all_shapes_and_models(monkeypatch):
    """By the part of the compiler that is Python: one graph a step, no break, samples as without.

    With fullgraph, one graph too many is an error.
    """
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", GRAPHS // 2)
    torch._dynamo.reset()
    counter, dropped = CompileCounterWithBackend("eager"), count_compactions(monkeypatch, 2)
    step = torch.compile(Transformer.step, dynamic=True, fullgraph=True, backend=counter)
    for seed, lengths, n in ((1, (5, 2, 7), 30), (2, (9, 3), 1), (3, (4, 4, 4, 4), 50),
                             (4, (6,), 8)):
        net = plain(seed, max_len=20, n_decoder_layers=1).eval()
        src = ragged(*lengths)
        expected = sample(net, src, n, generator=rng(seed))
        found = sample(net, src, n, generator=rng(seed), step=step)
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.logprobs, expected.logprobs)
    assert len(dropped) > 10 and counter.frame_count > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("how", [{}, dict(temperature=0), dict(top_k=1), dict(top_p=0.1)], ids=str)
def test_pad_and_bos_are_never_sampled(how):
    net = tiny(bias={PAD: 50.0, BOS: 50.0, EOS: -50.0})
    tokens = sample(net, ragged(5, 2), n_samples=20, generator=rng(), **how).tokens
    assert tokens.shape == (2, 20, 12) and tokens.min() > EOS


@pytest.mark.parametrize("max_len", [1, 4, 5, 12, None])
def test_max_len_is_respected(max_len):
    net, src = tiny(bias={EOS: -50.0}), ragged(12, 2)  # a source of the full length, too
    out = sample(net, src, n_samples=2, max_len=max_len, generator=rng())
    assert out.tokens.shape == out.logprobs.shape == (2, 2, max_len or 12)
    assert (own_logprobs(net, src, out.tokens) - out.logprobs).abs().max() < 1e-5


def test_outputs_are_no_wider_than_the_longest():
    net, src = tiny(bias={EOS: 50.0}), ragged(3, 2)
    assert sample(net, src, n_samples=2, generator=rng()).tokens.tolist() == [[[EOS]] * 2] * 2


@pytest.mark.parametrize("decode", [lambda net, src: sample(net, src, generator=rng()),
                                    lambda net, src: beam_search(net, src, beam=2)],
                         ids=["sample", "beam_search"])
def test_decoding_is_without_dropout_and_leaves_every_mode_as_it_was(monkeypatch, decode):
    net, src = tiny(dropout=0.5).train(), ragged(4)
    net.decoder[0].eval()
    net.encoder[1].dropout.eval()
    modes = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    decode(net, src)
    assert [module.training for module in net.modules()] == modes and len(set(modes)) == 2
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout would have drawn from it
    monkeypatch.setattr(net, "logits", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(net, src)
    assert [module.training for module in net.modules()] == modes


def test_samples_can_be_trained_on():
    net, src = tiny(), ragged(4, 2)
    out = sample(net, src, generator=rng())
    best = beam_search(net, src, beam=2)[:, 0]
    assert not (out.tokens.is_inference() or out.logprobs.is_inference() or best.is_inference())
    logprobs = token_logprobs(net, src, out.tokens[:, 0])
    ((logprobs - out.logprobs[:, 0]).exp() * logprobs).sum().backward()
    token_logprobs(net, src, best).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in net.parameters())


def test_bfloat16():
    net, src = tiny(dtype=torch.bfloat16), ragged(5, 2, 8)
    out = sample(net, src, n_samples=8, generator=rng())
    own = own_logprobs(net, src, out.tokens)
    assert out.logprobs.dtype == own.dtype == torch.float32
    assert (out.logprobs - own).abs().max() < 0.1


# --------------------------------------------------------------------------- arguments, learning


@pytest.mark.parametrize("how, named", [
    (dict(temperature=-0.5), "temperature = -0.5"),
    (dict(temperature=math.nan), "temperature = nan"), (dict(top_p=0), "top_p = 0,"),
    (dict(top_p=1.1), "top_p = 1.1"), (dict(top_k=-2), "top_k = -2"),
    (dict(n_samples=0), "n_samples = 0"), (dict(max_len=13), "max_len = 13.* 12"),
    (dict(max_len=0), "max_len = 0")])
def test_sample_names_the_argument_that_is_out_of_range(how, named):
    with pytest.raises(ValueError, match=named):
        sample(tiny(), ragged(3), **how)


@pytest.mark.parametrize("decode", [sample, beam_search])
@pytest.mark.parametrize("src, named", [
    (torch.full((1, 13), 3), "13 tokens.* 12"), (torch.tensor([[3, V]]), f"3 to {V},.* {V - 1}$"),
    (torch.tensor([[-1, 3]]), "-1 to 3"), (torch.tensor([3, 4]), r"shape \(2,\)"),
    (torch.zeros(0, 4, dtype=torch.long), r"shape \(0, 4\)"),
    (torch.tensor([[3, 4]], dtype=torch.int32), "torch.int32.* torch.int64")])
def test_decoding_names_what_is_wrong_with_the_sources(decode, src, named):
    with pytest.raises(ValueError, match=named):
        decode(tiny(), src)


@pytest.mark.parametrize("sizes, named", [
    (dict(d_model=10, n_heads=4), "10 .* 4"), (dict(d_model=9, n_heads=3), "d_model = 9"),
    (dict(vocab_size=2), "vocab_size = 2")])
def test_config_names_sizes_that_do_not_fit(sizes, named):
    with pytest.raises(ValueError, match=named):
        Config(**dict(vocab_size=V) | sizes)


def train(net, batches, lr):
    """Adam on the mean loss per token, with a rate that falls to 0; returns the last loss."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for i, (src, tokens) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / len(batches))
        loss = -token_logprobs(net, src, tokens).sum() / (tokens != PAD).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def reversals(n, generator):
    """Sources of 1 to 4 tokens from 3 to 8, and their reversals with eos."""
    lengths = torch.randint(1, 5, (n,), generator=generator).tolist()
    rows = [torch.randint(3, 9, (k,), generator=generator) for k in lengths]
    src = torch.stack([F.pad(row, (0, 4 - len(row))) for row in rows])
    tokens = [F.pad(row.flip(0), (0, 1), value=EOS) for row in rows]
    return src, torch.stack([F.pad(row, (0, 5 - len(row))) for row in tokens])


def test_one_batch_overfits():
    net, src = plain(), ragged(5, 2, 7, 3)
    tokens = F.pad(ragged(4, 6, 1, 3, seed=1), (0, 1))
    tokens[torch.arange(4), lengths_of(tokens)] = EOS
    assert train(net, [(src, tokens)] * 100, lr=0.01) < 0.05
    out = sample(net, src, temperature=0).tokens[:, 0]
    assert [strip(row) for row in out] == [strip(row) for row in tokens]


@pytest.mark.slow
def test_reversal_is_learned():
    net = plain(vocab_size=9, d_model=32, n_encoder_layers=1, n_decoder_layers=1)
    generator = rng(1)
    train(net, [reversals(64, generator) for _ in range(220)], lr=0.008)
    src, tokens = reversals(200, generator)
    out = sample(net, src, temperature=0, max_len=5).tokens[:, 0]
    out = F.pad(out, (0, 5 - out.size(1)))
    assert (out == tokens).all(1).float().mean() >= 0.95
