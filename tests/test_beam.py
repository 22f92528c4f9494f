"""beam.py: beam search against plain loops, and against all outputs that there are.

What it has in common with sampling is tested in test_model.py.
"""

import itertools

import pytest
import torch

from infra.beam import beam_search
from model import BOS, EOS, PAD, sample, token_logprobs
from test_model import V, lengths_of, ragged, strip, tiny


def reference_beam(net, source, beam, max_len, length_penalty, n_best):
    """One source, Python lists, no cache -> the n_best outputs: those that ended, then others."""
    beams, best, n_ended = [(0.0, [])], [], 0
    for t in range(1, max_len + 1):
        with torch.no_grad():
            logits = net(source.expand(len(beams), -1),
                         torch.tensor([[BOS, *tokens] for _, tokens in beams]))[:, -1]
        logprobs = logits.log_softmax(-1).tolist()
        candidates = [(score + row[token], tokens + [token])
                      for (score, tokens), row in zip(beams, logprobs) for token in range(EOS, V)]
        candidates = sorted(candidates, reverse=True)[: 2 * beam]
        ended = [(score / t**length_penalty, tokens) for score, tokens in candidates[:beam]
                 if tokens[-1] == EOS]
        best, n_ended = sorted(best + ended, reverse=True)[:n_best], n_ended + len(ended)
        beams = [candidate for candidate in candidates if candidate[1][-1] != EOS][:beam]
        if n_ended >= beam and beams[0][0] / t**length_penalty <= best[-1][0]:
            break
    return [tokens for _, tokens in best + beams][:n_best]


@pytest.mark.parametrize("n_best", [1, 2, None])  # None: the whole beam
@pytest.mark.parametrize("beam, length_penalty, eos", [
    (2, 1.0, 1.5), (4, 1.0, 2.0), (4, 0.0, 2.0), (3, 0.6, 1.5), (5, 2.0, 3.0), (4, 1.0, -1.0)])
def test_beam_search_is_that_of_a_plain_loop(beam, length_penalty, eos, n_best):
    """Were the cache not reordered along with the beams, their later scores would be wrong."""
    net, src, max_len = tiny(bias={EOS: eos}), ragged(5, 2, 7, 1, 4, 3, 6, 8), 7
    n_best = n_best or beam
    out = beam_search(net, src, beam, max_len, length_penalty, n_best)
    for source, rows in zip(src, out):
        expected = reference_beam(net, source[source != PAD], beam, max_len, length_penalty, n_best)
        assert [strip(row) for row in rows] == expected


@pytest.mark.parametrize("length_penalty, eos", [(1.0, 1.5), (0.0, 2.0), (1.0, -1.0)])
def test_the_n_best_differ_and_their_scores_fall(length_penalty, eos):
    """Those that ended come first, best first; then those that did not."""
    net, src, n_best = tiny(bias={EOS: eos}), ragged(5, 2, 7, 1, 4, 3, 6, 8), 4
    out = beam_search(net, src, 5, 7, length_penalty, n_best)
    assert out.shape[:2] == (8, n_best)
    for source, rows in zip(src, out):
        assert len({tuple(strip(row)) for row in rows}) == n_best
        with torch.no_grad():
            score = token_logprobs(net, source.expand(n_best, -1), rows).sum(-1)
        score = score / lengths_of(rows) ** length_penalty
        ended = (rows == EOS).any(-1)
        assert ended.tolist() == sorted(ended.tolist(), reverse=True)
        for part in (score[ended], score[~ended]):
            assert (part.diff() < 1e-5).all()


def test_outputs_that_did_not_end_are_in_order_however_close_they_are():
    net, src = tiny(seed=3, bias={EOS: -50.0}), ragged(*range(1, 13), *range(1, 13), seed=3)
    out = beam_search(net, src, 8, 5, n_best=8)
    score = token_logprobs(net, src.repeat_interleave(8, 0), out.flatten(0, 1)).sum(-1).view(-1, 8)
    assert ((score.diff() > -1e-3) & (score.diff() < 0)).any()  # or this test would say little
    assert (score.diff() < 1e-5).all()


def test_for_more_of_them_it_searches_longer_and_the_best_is_no_worse():
    net, src = tiny(bias={EOS: 2.0}), ragged(5, 2, 7, 1, 4, 3, 6, 8)
    one, more = beam_search(net, src, 4), beam_search(net, src, 4, n_best=4)[:, :1]

    def score(rows):
        return token_logprobs(net, src, rows[:, 0]).sum(-1) / lengths_of(rows[:, 0])

    assert (score(more) >= score(one) - 1e-5).all()


def test_beam_search_in_float64():
    net, src = tiny(seed=2, dtype=torch.float64, bias={EOS: 2.0}), ragged(5, 2)
    assert torch.equal(beam_search(net, src, beam=3), beam_search(net.float(), src, beam=3))


def test_beam_search_in_bfloat16():
    net, src = tiny(dtype=torch.bfloat16), ragged(5, 2, 8)
    assert beam_search(net, src, beam=2, n_best=2).shape[:2] == (3, 2)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("max_len", [3, 4])
def test_a_wide_beam_finds_the_best_of_all_outputs(max_len, length_penalty):
    """Only eos, 3, 4 and 5 can be: a vocabulary this large is there to allow a beam this wide."""
    size, n_best = 130, 6
    net = tiny(seed=3, vocab_size=size, bias={token: -1e4 for token in range(6, size)} | {EOS: 1.0})
    src = ragged(*[5, 2, 4, 1, 3] * 4, vocab_size=6)
    out = beam_search(net, src, size - 3, max_len, length_penalty, n_best)
    bodies = [body for n in range(max_len) for body in itertools.product((3, 4, 5), repeat=n)]
    tokens = torch.tensor([[*body, EOS] + [PAD] * (max_len - 1 - len(body)) for body in bodies])
    for source, rows in zip(src, out):
        with torch.no_grad():
            score = token_logprobs(net, source.expand(len(tokens), -1), tokens).sum(-1)
        winners = tokens[(score / lengths_of(tokens) ** length_penalty).topk(n_best).indices]
        assert [strip(row) for row in rows] == [strip(winner) for winner in winners]


@pytest.mark.parametrize("eos", [1.5, -50.0])
def test_a_beam_of_1_is_greedy(eos):
    net, src = tiny(bias={EOS: eos}), ragged(3, 8, 1, 5, 6, 2)
    out = sample(net, src, temperature=0).tokens
    assert torch.equal(beam_search(net, src, beam=1), out)
    assert (out == EOS).any() == (eos > 0)


def test_a_beam_never_returns_pad_or_bos():
    net = tiny(bias={PAD: 50.0, BOS: 50.0, EOS: -50.0})
    assert beam_search(net, ragged(5, 2), beam=3, n_best=3).min() > EOS


@pytest.mark.parametrize("max_len", [1, 4, 5, 12, None])
def test_max_len_is_respected(max_len):
    net, src = tiny(bias={EOS: -50.0}), ragged(12, 2)  # a source of the full length, too
    for n_best in (1, 2):
        out = beam_search(net, src, beam=2, max_len=max_len, n_best=n_best)
        assert out.shape == (2, n_best, max_len or 12)


def test_outputs_are_no_wider_than_the_longest():
    net, src = tiny(bias={EOS: 50.0}), ragged(3, 2)
    assert beam_search(net, src, beam=2).tolist() == [[[EOS]]] * 2


@pytest.mark.parametrize("how, named", [
    (dict(beam=0), "beam = 0"), (dict(beam=9), "beam = 9"), (dict(max_len=13), "max_len = 13"),
    (dict(n_best=0), "n_best = 0"), (dict(beam=3, n_best=4), "n_best = 4.* beam = 3")])
def test_it_names_the_argument_that_is_out_of_range(how, named):
    with pytest.raises(ValueError, match=named):
        beam_search(tiny(), ragged(3), **how)
