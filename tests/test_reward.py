"""reward.py and reward_metrics.py: the reward model, the value model, and how good a reward is."""

import math

import numpy as np
import pytest
import torch

import reward as rm
from infra.batches import pad
from infra.errors import UserError
from infra.pairs import Pairs, check_rewards
from infra.reward_metrics import (evaluate_reward_model, kendall, ranks, reference_above, table,
                                  unit_tests)
from infra.trainer import Training
from model import EOS, PAD, Config, Transformer, token_logprobs
from reward import RewardModel, ValueModel, preference_pairs

V, MAX_LEN = 11, 12


def policy(seed=0, **changes):
    sizes = dict(vocab_size=V, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=1,
                 d_ff=32, dropout=0.1, max_len=MAX_LEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(Config(**sizes | changes)).eval()


def with_head(cls, seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls.from_policy(policy(seed, **changes)).eval()


def texts(n, seed=0, shortest=0, longest=8):
    """n random lists of ids, all but the empty ones ending in eos."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, n)
    return [np.append(rng.integers(3, V, n - 1), EOS) if n else np.zeros(0, int) for n in lengths]


# -------------------------------------------------------------------- measures of a reward model


def test_ranks_share_ties():
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 2.0])), [2, 0, 1])
    np.testing.assert_array_equal(ranks(np.array([5, 1, 5, 5, 0])), [3, 1, 3, 3, 0])
    np.testing.assert_array_equal(ranks(np.array([2, 2, 1, 1])), [2.5, 2.5, 0.5, 0.5])
    np.testing.assert_array_equal(ranks(np.array([4, 4, 4])), [1, 1, 1])


def slow_kendall(x, y):
    agree, x_untied, y_untied = 0, 0, 0
    for i in range(len(x)):
        for j in range(i):
            a, b = x[i] - x[j], y[i] - y[j]
            agree += np.sign(a * b)
            x_untied += a != 0
            y_untied += b != 0
    return agree / math.sqrt(x_untied * y_untied)


def test_kendall_by_hand():
    x = np.arange(4)
    assert kendall(x, 10 * x + 3) == pytest.approx(1)
    assert kendall(x, -x) == pytest.approx(-1)
    assert kendall(x, np.array([0, 1, 3, 2])) == pytest.approx(4 / 6)  # 5 pairs agree, 1 does not
    # 1-2 tied in y: 5 agree, none disagrees, 6 pairs untied in x, 5 in y
    assert kendall(x, np.array([0, 1, 1, 2])) == pytest.approx(5 / math.sqrt(6 * 5))
    assert kendall(np.array([0, 0, 1]), np.array([0, 1, 0])) == pytest.approx(-1 / 2)


@pytest.mark.parametrize("seed", range(5))
def test_kendall_is_tau_b(seed):
    x, y = np.random.default_rng(seed).integers(0, 6, (2, 40)).astype(np.float32)
    assert kendall(x, y) == pytest.approx(slow_kendall(x, y))


def rated_texts(n_sources=6, per_source=5, seed=0):
    """Sources and outputs with all ratings different."""
    rng = np.random.default_rng(seed)
    sources = texts(n_sources, seed, shortest=2)
    outputs = texts(n_sources * per_source, seed + 1, shortest=1)
    rating = rng.permutation(np.linspace(0, 0.9, len(outputs)))
    return sources, Pairs.of(np.repeat(np.arange(n_sources), per_source), outputs, reward=rating)


def made_up(scores, sources, references=(), reference_scores=()):
    """A score function that gives `scores` to n outputs, in this order, and checks the sources."""

    def score(given, outputs):
        if len(outputs) == len(references):
            assert all(a is b for a, b in zip(given, sources))
            return np.asarray(reference_scores, np.float32)
        assert len(given) == len(outputs) == len(scores)
        return np.asarray(scores, np.float32)

    return score


def test_measures_of_a_perfect_reward_and_a_reversed_one():
    sources, rated = rated_texts()
    perfect = evaluate_reward_model(made_up(rated.reward, sources), sources, rated)
    assert set(perfect) == {"pearson", "spearman", "kendall", "pairs within a source"}
    for value in perfect.values():
        assert value == pytest.approx(1)
    other_shape = evaluate_reward_model(made_up(rated.reward**5, sources), sources, rated)
    assert other_shape["pearson"] < 0.95 and other_shape["spearman"] == pytest.approx(1)
    reverse = evaluate_reward_model(made_up(1 - rated.reward, sources), sources, rated)
    for name, value in reverse.items():
        assert value == pytest.approx(0 if name == "pairs within a source" else -1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_constant_reward_knows_nothing():
    sources, rated = rated_texts()
    constant = evaluate_reward_model(made_up(np.full(len(rated), 0.5), sources), sources, rated)
    assert constant.pop("pairs within a source") == pytest.approx(0.5)
    for value in constant.values():
        assert not abs(value) > 1e-6  # 0, or not a number


def test_pairs_within_a_source_are_pairs_of_one_source():
    """Right within each source, wrong between sources."""
    sources, rated = rated_texts(2, 3)
    rated.reward[:] = [0.7, 0.8, 0.9, 0.1, 0.2, 0.3]
    score = made_up([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], sources)
    measured = evaluate_reward_model(score, sources, rated)
    assert measured["pairs within a source"] == 1
    assert measured["kendall"] == pytest.approx((6 - 9) / 15)
    # a tie of true ratings is no pair; a tie of scores counts half
    rated.reward[:] = [0.7, 0.7, 0.9, 0.1, 0.2, 0.3]
    score = made_up([0.1, 0.2, 0.2, 0.9, 0.8, 0.7], sources)
    measured = evaluate_reward_model(score, sources, rated)
    assert measured["pairs within a source"] == pytest.approx(1.5 / 5)


def test_reference_above_is_the_share_of_outputs_below_their_own_reference():
    sources, rated = rated_texts(2, 3)
    references = texts(2, 9, shortest=2)
    score = made_up([0.1, 0.5, 0.1, 0.7, 0.2, 0.9], sources, references, [0.5, 0.75])
    assert reference_above(score, sources, references, rated) == pytest.approx(4 / 6)


# ------------------------------------------------------------------------------- the reward model


def test_scores_do_not_depend_on_batch_or_order():
    model, sources, outputs = with_head(RewardModel), texts(30, 1, shortest=1), texts(30, 2)
    scores = model.score(sources, outputs)
    assert scores.shape == (30,) and scores.dtype == np.float32
    assert (scores > 0).all() and (scores < 1).all() and len(np.unique(scores)) > 25
    alone = np.concatenate([model.score([x], [y]) for x, y in zip(sources, outputs)])
    np.testing.assert_allclose(alone, scores, atol=1e-6)
    np.testing.assert_allclose(model.score(sources, outputs, batch_tokens=20), scores, atol=1e-6)
    order = np.random.default_rng(0).permutation(30)
    permuted = model.score([sources[i] for i in order], [outputs[i] for i in order])
    np.testing.assert_allclose(permuted, scores[order], atol=1e-6)
    lists = model.score([x.tolist() for x in sources], [y.tolist() for y in outputs])
    np.testing.assert_array_equal(lists, scores)


def test_scores_depend_on_source_and_output():
    model, x, y = with_head(RewardModel), texts(2, 1, shortest=5), texts(2, 2, shortest=5)
    scores = model.score([x[0], x[0], x[1], x[1]], [y[0], y[1], y[0], y[1]])
    assert len(np.unique(scores)) == 4


def test_padding_changes_no_score():
    model = with_head(RewardModel)
    src, out = pad(texts(5, 1, shortest=1)), pad(texts(5, 2))
    wider = [torch.nn.functional.pad(x, (0, 3)) for x in (src, out)]
    torch.testing.assert_close(model(*wider), model(src, out), atol=1e-6, rtol=0)


def test_long_outputs_are_cut_and_empty_ones_have_a_score():
    model, sources = with_head(RewardModel), texts(3, 1, shortest=2)
    long = [np.random.default_rng(i).integers(3, V, 3 * MAX_LEN) for i in range(3)]
    np.testing.assert_array_equal(model.score(sources, long),
                                  model.score(sources, [y[:MAX_LEN] for y in long]))
    nothing = model.score(sources, [[], np.zeros(0, int), []])
    assert np.isfinite(nothing).all()
    mixed = model.score(sources, [[], long[0], [5, EOS]])
    np.testing.assert_allclose(mixed[0], nothing[0], atol=1e-6)
    assert model.score([], []).shape == (0,)


def test_scoring_leaves_the_model_as_it_was():
    model = with_head(RewardModel, dropout=0.5)
    sources, outputs = texts(5, 1, shortest=1), texts(5, 2)
    scores = model.score(sources, outputs)
    model.train()
    np.testing.assert_array_equal(model.score(sources, outputs), scores)  # no dropout
    assert model.training and model.body.training


def share_of_fives(pairs):
    return np.array([(y == 5).mean() for y in pairs.targets()], np.float32)


def examples(n_sources, per_source, seed):
    sources = texts(n_sources, seed, shortest=2)
    pairs = Pairs.of(np.repeat(np.arange(n_sources), per_source),
                     texts(n_sources * per_source, seed + 1, shortest=2))
    pairs.reward[:] = share_of_fives(pairs)
    return sources, pairs


@pytest.mark.parametrize("rating", [np.nan, np.inf, -0.1, 1.5])
@pytest.mark.parametrize("preferences", [False, True])
def test_ratings_that_are_none_are_refused(rating, preferences):
    sources, rated = rated_texts(2, 2)
    rated.reward[3] = rating
    with pytest.raises(UserError, match="rating of output 3"):
        rm.train_reward(with_head(RewardModel), sources, rated, Training(updates=1), 0, preferences)


@pytest.mark.parametrize("preferences", [False, True])
def test_a_reward_model_learns_a_simple_rule(preferences):
    """The share of a certain token, from ratings and from preferences; judged on new texts."""
    model, (sources, rated) = with_head(RewardModel), examples(60, 8, 10)
    held_out, test = examples(20, 8, 20)
    hp = Training(updates=100, batch_tokens=400, lr=8e-3, warmup=15)
    before = evaluate_reward_model(model.score, held_out, test)
    rm.train_reward(model, sources, rated, hp, 0, preferences=preferences)
    after = evaluate_reward_model(model.score, held_out, test)
    assert before["spearman"] < 0.6
    assert after["spearman"] > 0.85 and after["pairs within a source"] > 0.85
    if not preferences:  # on the scale of the ratings
        assert np.abs(model.score([held_out[i] for i in test.source], test.targets())
                      - test.reward).mean() < 0.06


def test_regression_finds_the_mean_of_noisy_ratings():
    """What a soft label's cross-entropy is best answered with, not the median or the mode."""
    model, sources = with_head(RewardModel), [np.array([5, EOS])]
    rated = Pairs.of(4 * [0], 4 * [[4, EOS]], reward=[0, 1, 1, 1])
    hp = Training(updates=60, batch_tokens=10**4, lr=1e-2, warmup=10, dropout=False)
    rm.train_reward(model, sources, rated, hp, 0)
    assert model.score(sources, [[4, EOS]])[0] == pytest.approx(0.75, abs=0.02)


def test_the_policy_hands_on_a_copy():
    """Its weights begin both models, share no memory with it, and stay as they are."""
    for cls in (RewardModel, ValueModel):
        net = policy()
        before = {name: x.clone() for name, x in net.state_dict().items()}
        model = cls.from_policy(net)
        assert all(torch.equal(x, before[name]) for name, x in model.body.state_dict().items())
        theirs = {x.data_ptr() for x in net.state_dict().values()}
        assert not theirs & {x.data_ptr() for x in model.state_dict().values()}
        sources, rated = examples(4, 2, 0)
        train = rm.train_reward if cls is RewardModel else rm.train_value
        train(model, sources, rated, Training(updates=2, lr=0.1, warmup=0), 0)
        assert not torch.equal(model.body.embedding.weight, net.embedding.weight)
        assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


class Last(torch.nn.Module):
    def forward(self, features):
        return features[:, -1:]


def test_the_last_feature_is_the_policys_mean_log_probability():
    net = policy().eval()
    model = RewardModel.from_policy(net).eval()
    model.head = Last()
    sources, outputs = texts(6, 3), texts(6, 4, shortest=2)
    src, tokens = pad(sources), pad(outputs)
    lengths = (tokens != PAD).sum(1)
    expected = token_logprobs(net, src, tokens).sum(1) / lengths
    torch.testing.assert_close(model(src, tokens), expected)


def test_a_frozen_body_stays_the_policys_while_the_head_learns():
    net = policy()
    model = RewardModel.from_policy(net)
    model.body.requires_grad_(False)
    before = model.head[0].weight.clone()
    sources, rated = examples(40, 3, 0)
    rm.train_reward(model, sources, rated, Training(updates=20, lr=0.01, warmup=0), 0)
    assert not torch.equal(model.head[0].weight, before)
    assert all(torch.equal(x, net.state_dict()[k]) for k, x in model.body.state_dict().items())


# ------------------------------------------------------------------------------------ preferences


@pytest.mark.parametrize("seed", range(4))
def test_preference_pairs(seed):
    rng = np.random.default_rng(seed)
    rated = Pairs.of(rng.integers(0, 9, 80), 80 * [[EOS]], reward=rng.integers(0, 5, 80) / 4)
    winners, losers = preference_pairs(rated, seed)
    assert len(winners) == len(losers) > 30
    assert (rated.source[winners] == rated.source[losers]).all()
    assert (rated.reward[winners] > rated.reward[losers]).all()
    assert len(set(zip(winners, losers))) == len(winners)
    again = preference_pairs(rated, seed)
    np.testing.assert_array_equal(again, (winners, losers))
    assert set(zip(winners, losers)) != set(zip(*preference_pairs(rated, seed + 1)))


def test_preference_pairs_of_two_outputs_and_of_ties():
    rated = Pairs.of([0, 1, 0, 1, 2], 5 * [[EOS]], reward=[0.2, 0.5, 0.9, 0.5, 0.1])
    winners, losers = preference_pairs(rated, 0)
    assert (list(winners), list(losers)) == ([2], [0])
    with pytest.raises(UserError, match="nothing to prefer"):
        rm.train_reward(with_head(RewardModel), 3 * [[EOS]], rated.select([1, 3, 4]),
                        Training(updates=1), 0, preferences=True)


# -------------------------------------------------------------------------------- the value model


def test_values_know_only_what_came_before():
    model = with_head(ValueModel)
    src, tokens = pad(texts(4, 1, shortest=3)), torch.randint(3, V, (4, 8))
    values = model(src, tokens)
    assert values.shape == (4, 8)
    for t in range(8):
        other = tokens.clone()
        other[:, t:] = 3 + (other[:, t:] - 2) % (V - 3)
        changed = model(src, other)
        torch.testing.assert_close(changed[:, : t + 1], values[:, : t + 1], atol=1e-6, rtol=0)
        if t < 7:
            assert ((changed[:, t + 1 :] - values[:, t + 1 :]).abs() > 1e-4).all()


def test_values_do_not_depend_on_padding():
    model, src, tokens = with_head(ValueModel), pad(texts(4, 1, shortest=3)), pad(texts(4, 2))
    wider = model(torch.nn.functional.pad(src, (0, 2)), torch.nn.functional.pad(tokens, (0, 2)))
    torch.testing.assert_close(wider[:, :-2], model(src, tokens), atol=1e-6, rtol=0)


def test_a_value_model_learns_constant_returns():
    model, (sources, pairs) = with_head(ValueModel), examples(20, 2, 3)
    pairs.reward[:] = 0.7
    hp = Training(updates=80, batch_tokens=512, lr=5e-3, warmup=10)
    rm.train_value(model, sources, pairs, hp, 0)
    tokens = pad(pairs.targets())
    with torch.no_grad():
        values = model(pad([sources[i] for i in pairs.source]), tokens).sigmoid()[tokens != 0]
    assert (values - 0.7).abs().max() < 0.1 and (values - 0.7).abs().mean() < 0.03


def test_a_value_model_learns_what_the_first_token_decides():
    """V(x) is the mean return; once y_1 is known, V is the return itself."""
    model, sources = with_head(ValueModel), [np.array([5, EOS])]
    pairs = Pairs.of([0, 0], [[3, 6, EOS], [4, 6, EOS]], reward=[0, 1])
    hp = Training(updates=60, batch_tokens=10**4, lr=1e-2, warmup=10, dropout=False)
    rm.train_value(model, sources, pairs, hp, 0)
    with torch.no_grad():
        values = model(pad([sources[0]] * 2), pad([[3, 6, EOS], [4, 6, EOS]])).sigmoid()
    expected = torch.tensor([[0.5, 0, 0], [0.5, 1, 1]])
    assert (values - expected).abs().max() < 0.05


# ------------------------------------------------------------ unit tests, and rewards that are fit


def test_unit_tests_damage_the_references():
    sources, references = texts(5, 1, shortest=3), texts(5, 2, shortest=5)
    calls = []

    def score(given, outputs):
        assert given is sources
        calls.append([list(y) for y in outputs])
        return np.full(len(outputs), 0.1 * len(calls), np.float32)

    rewards = unit_tests(score, sources, references, seed=3)
    assert list(rewards) == ["the reference", "its words shuffled", "repeated twice",
                             "its first half", "empty", "the source itself", "another source's"]
    assert list(rewards.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert all(type(value) is float for value in rewards.values())
    as_lists = [list(y) for y in references]
    same, shuffled, twice, half, empty, source, others = calls
    assert same == as_lists
    assert shuffled != as_lists
    assert [sorted(y) for y in shuffled] == [sorted(y) for y in as_lists]
    assert all(y[-1] == EOS for y in shuffled)
    assert twice == [y[:-1] + y for y in as_lists]
    assert half == [[*y[: (len(y) - 1) // 2], EOS] for y in as_lists]
    assert empty == 5 * [[EOS]]
    assert source == [list(x) for x in sources]
    assert others == as_lists[1:] + as_lists[:1]
    assert [list(y) for y in references] == as_lists  # left as they were


def test_unit_tests_are_the_same_each_time_and_take_cut_off_references():
    seen = []
    cut = [[5, 6, 7, 8], [6, 7, EOS], [3]]  # two without eos

    def score(sources, outputs):
        seen.append([list(y) for y in outputs])
        return np.zeros(len(outputs), np.float32)

    for _ in range(2):
        unit_tests(score, cut, cut)
    assert seen[:7] == seen[7:]
    assert seen[0] == [[5, 6, 7, 8, EOS], [6, 7, EOS], [3, EOS]]


def test_table_shows_every_measure():
    text = table({"pearson": 0.517, "kendall": -0.25}, {"the reference": 0.876, "empty": 0.031})
    for part in ("pearson", "0.52", "-0.25", "the reference", "87.6", "3.1"):
        assert part in text


@pytest.mark.parametrize("answer", [
    [0.5], [0.5, 0.5, 0.5], [[0.5, 0.5]], 0.5, [0.1, np.nan], [np.inf, 0.1], [-np.inf, 0.1],
    [0.5, 1.01], [-0.01, 0.5]], ids=str)
def test_a_reward_that_is_no_reward_is_refused(answer):
    with pytest.raises(ValueError, match="reward"):
        check_rewards(answer, 2)


def test_a_good_reward_goes_through():
    for answer in ([0, 1], (0.25, 1.0), np.array([0.0, 0.5]), np.array([1, 0])):
        scores = check_rewards(answer, 2)
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores, answer)
    assert check_rewards([], 0).shape == (0,)


def test_a_refusal_names_the_output():
    with pytest.raises(ValueError, match="output 1 .*1.5"):
        check_rewards([0.5, 1.5, 2.0], 3)
