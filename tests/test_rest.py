"""rest.py: settings, filters, Grow, Improve, Algorithm 1 and online RL, on helpers.py's task."""

import copy
import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import losses
import rest
import train_toy
from helpers import (BASE_HP, FILLER, MAX_LEN, FakeRun, kept_by, oracle, same, some_bc,
                     some_policy, some_sources, some_task, spy, weights)
from infra import sampling, trainer
from infra.batches import bucket_by_length, collate, pad
from infra.checks import grow_stats
from infra.errors import UserError
from infra.measures import bc_row, evaluate, mean_reward
from infra.pairs import Pairs, first_of_equal, hash_outputs, score, size_of
from infra.run import Run, Stopped
from infra.sampling import logprobs_of, sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import RunSettings, parse
from infra.storage import Checkpoint
from infra.trainer import Training
from losses import ReferenceModels
from model import BOS, EOS, PAD, Transformer, token_logprobs
from rest import FILTERS, Filter, Settings, improve, select
from reward import RewardModel, ValueModel, train_reward

SETTINGS = Settings(grow=2, improve=(2, 1), samples=6, updates=30, evaluate_every=15,
                    batch_tokens=256, lr=3e-3, filter="threshold", thresholds=(0.25, 0.75),
                    sample_batch_size=256, seed=5, value_updates=4, gold_sync=3, ppo_batch=32,
                    ppo_group=4, ppo_updates=2)


@pytest.fixture(scope="module")
def task():
    return some_task()


@pytest.fixture(scope="module")
def bc():
    return some_bc()


def grown_samples(policy, task, settings, g=1):
    """The samples of Grow g."""
    return rest.grow(policy, task, settings, g, FakeRun())[1]


def small_parts(monkeypatch, n):
    """Grow, and whatever goes part by part, take n pairs at a time."""
    monkeypatch.setattr(rest, "PART", n)
    monkeypatch.setattr(Pairs.parts, "__defaults__", (n,))


# -------------------------------------------------------------------------------------- filters


def random_rewards(seed, n=300, levels=7):
    """Source and reward of n pairs in any order, with many ties; some sources have one pair."""
    rng = np.random.default_rng(seed)
    source = rng.choice(np.array([0, 1, 2, 3, 5, 8, 13, 40]), n)
    source = np.append(source, [100, 101]).astype(np.int32)
    reward = (rng.integers(0, levels, n + 2) / (levels - 1)).astype(np.float32)
    return source, reward


def per_source(source, reward, keep):
    """keep(rewards of one source) -> which of them; by a loop over the sources."""
    kept = np.zeros(len(source), bool)
    for x in set(source.tolist()):
        rows = [i for i in range(len(source)) if source[i] == x]
        kept[rows] = keep(reward[rows].astype(np.float64))
    return kept


def slow_top(rewards, k):
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    return [i in order[:k] for i in range(len(rewards))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_filters_against_loops(seed, levels):
    source, reward = random_rewards(seed, levels=levels)
    for tau in (-1.0, 0.0, 0.5, 0.83, 1.0):
        np.testing.assert_array_equal(FILTERS["threshold"].keep(source, reward, tau),
                                      [float(r) > tau for r in reward])
    for q in (0.0, 0.3, 0.5, 0.9, 1.0):
        tau = np.quantile(reward, q)
        np.testing.assert_array_equal(FILTERS["quantile"].keep(source, reward, q),
                                      [r > tau for r in reward])
    for p in (0, 10, 25, 50, 90, 99, 100):
        np.testing.assert_array_equal(
            FILTERS["percentile"].keep(source, reward, p),
            per_source(source, reward, lambda r: r > np.percentile(r, p)))
    for gamma in (0.0, 0.25, 0.5, 0.75, 1.0):
        expected = per_source(source, reward, lambda r: r - ((1 - gamma) * r.mean()
                                                             + gamma * r.max()) > 1e-12)
        np.testing.assert_array_equal(FILTERS["gamma"].keep(source, reward, gamma), expected)
    for k in (1, 2, 5, 1000):
        kept = FILTERS["top"].keep(source, reward, k)
        np.testing.assert_array_equal(kept, per_source(source, reward, lambda r: slow_top(r, k)))
        for x in set(source.tolist()):
            assert kept[source == x].sum() == min(k, (source == x).sum())


VALUES = {"threshold": (0.0, 0.4, 0.5, 0.8, 1.0), "quantile": (0.0, 0.2, 0.5, 0.9, 1.0),
          "percentile": (0, 20, 50, 90, 100), "gamma": (0.0, 0.1, 0.3, 0.5, 0.9, 1.0),
          "top": (40, 5, 2, 1)}


def test_every_filter_is_tried():
    """But for one of experiments/ that looks at no reward, if that was imported before."""
    assert VALUES.keys() == FILTERS.keys() - {"random"}


@pytest.mark.parametrize("name", VALUES)
def test_stricter_filters_keep_a_part_of_what_laxer_ones_keep(name):
    source, reward = random_rewards(3)
    kept = [FILTERS[name].keep(source, reward, value) for value in VALUES[name]]
    for laxer, stricter in itertools.pairwise(kept):
        assert not (stricter & ~laxer).any()
    assert kept[-1].sum() < kept[0].sum()
    assert all(k.dtype == bool and k.shape == source.shape for k in kept)


@pytest.mark.parametrize("name", VALUES)
def test_filters_do_not_depend_on_the_order_of_the_pairs(name):
    source, reward = random_rewards(4, levels=10**6)
    order = np.random.default_rng(0).permutation(len(source))
    for value in VALUES[name]:
        np.testing.assert_array_equal(FILTERS[name].keep(source[order], reward[order], value),
                                      FILTERS[name].keep(source, reward, value)[order])


def test_what_equals_the_threshold_is_dropped():
    source, reward = np.zeros(4, int), np.array([0.25, 0.5, 0.5, 0.75], np.float32)
    assert list(FILTERS["threshold"].keep(source, reward, 0.5)) == [False, False, False, True]
    assert list(FILTERS["quantile"].keep(source, reward, 0.5)) == [False, False, False, True]
    assert list(FILTERS["percentile"].keep(source, reward, 50)) == [False, False, False, True]
    assert list(FILTERS["gamma"].keep(source, reward, 0)) == [False, False, False, True]
    assert list(FILTERS["gamma"].keep(source, reward, 0.75)) == [False, False, False, True]
    for name, value in [("threshold", 0.75), ("quantile", 1), ("percentile", 100), ("gamma", 1)]:
        assert not FILTERS[name].keep(source, reward, value).any()
    assert list(FILTERS["threshold"].keep(source, reward, -1)) == 4 * [True]
    assert list(FILTERS["quantile"].keep(source, reward, 0)) == [False, True, True, True]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 0.7, 0.9, 1.0])
def test_of_equal_rewards_none_is_above(level):
    """Neither in one source of many pairs, nor in sources of one pair each."""
    for source in (np.zeros(7, int), np.arange(7), np.array([4, 4, 1, 1, 1, 0, 9])):
        reward = np.full(7, level, np.float32)
        for tau in np.linspace(0, 1, 21):
            assert not FILTERS["quantile"].keep(source, reward, tau).any()
            assert not FILTERS["percentile"].keep(source, reward, 100 * tau).any()
            assert not FILTERS["gamma"].keep(source, reward, tau).any(), tau


def test_inclusive_keeps_what_equals_the_threshold():
    source, reward = np.zeros(4, int), np.array([0.25, 0.5, 0.5, 0.75], np.float32)
    best, better = [False, False, False, True], [False, True, True, True]
    for name, value, kept in [("threshold", 0.5, better), ("threshold", 0.75, best),
                              ("quantile", 0.5, better), ("quantile", 1, best),
                              ("percentile", 50, better), ("percentile", 100, best),
                              ("gamma", 0, better), ("gamma", 1, best),
                              ("gamma", 0.75, best),  # between the two: 0.6875
                              ("threshold", 0.25, 4 * [True]), ("quantile", 0, 4 * [True]),
                              ("percentile", 0, 4 * [True])]:
        found = FILTERS[name].keep(source, reward, value, inclusive=True)
        assert list(found) == kept, (name, value)


def test_inclusive_within_each_source():
    source = np.array([3, 1, 3, 1, 1])
    reward = np.array([0.25, 0.75, 0.5, 0.75, 0.25], np.float32)
    best_of_each = [False, True, True, True, False]
    for name, value in (("percentile", 100), ("gamma", 1)):
        assert not FILTERS[name].keep(source, reward, value).any()
        assert list(FILTERS[name].keep(source, reward, value, inclusive=True)) == best_of_each
    # of source 1 the median is 0.75 itself, of source 3 it lies between its two
    assert list(FILTERS["percentile"].keep(source, reward, 50, inclusive=True)) == best_of_each
    assert list(FILTERS["percentile"].keep(source, reward, 50)) == [
        False, False, True, False, False]


@pytest.mark.parametrize("name", VALUES)
def test_inclusive_adds_only_what_lies_on_the_line(name):
    """What it adds is the lowest of what is kept; top has no line, and does not change."""
    source, reward = random_rewards(5)
    for value in VALUES[name]:
        strict, kept = (FILTERS[name].keep(source, reward, value, inclusive)
                        for inclusive in (False, True))
        assert not (strict & ~kept).any()
        group = source if FILTERS[name].within_source else 0 * source
        for x in set(group.tolist()):
            added = reward[(group == x) & kept & ~strict]
            assert len(set(added.tolist())) <= 1
            if len(added):
                assert added[0] < reward[(group == x) & strict].min(initial=np.inf)
                assert added[0] > reward[(group == x) & ~kept].max(initial=-np.inf)
    assert (kept != strict).any() == (name != "top")  # at the strictest value: the best of all


@pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 0.7, 0.9, 1.0])
def test_inclusive_keeps_all_of_equal_rewards(level):
    """Whatever the rounding of a mean: else a source whose outputs are equally good loses them."""
    for source in (np.zeros(7, int), np.arange(7), np.array([4, 4, 1, 1, 1, 0, 9])):
        reward = np.full(7, level, np.float32)
        for tau in np.linspace(0, 1, 21):
            assert FILTERS["quantile"].keep(source, reward, tau, inclusive=True).all()
            assert FILTERS["percentile"].keep(source, reward, 100 * tau, inclusive=True).all()
            assert FILTERS["gamma"].keep(source, reward, tau, inclusive=True).all(), tau


def test_top_takes_the_earlier_of_equal_ones():
    source = np.array([1, 0, 1, 0, 1, 7])
    reward = np.array([0.5, 0.9, 0.5, 0.9, 0.4, 0.0])
    assert list(FILTERS["top"].keep(source, reward, 1)) == [True, True, False, False, False, True]
    assert list(FILTERS["top"].keep(source, reward, 2.0)) == [True, True, True, True, False, True]


def rewards_of(*rewards):
    """One pair of the reward 0 in a source of its own, and these in another."""
    return Pairs.of([0, *[1] * len(rewards)], (len(rewards) + 1) * [[EOS]], reward=[0, *rewards])


def test_select_takes_the_threshold_of_its_improve_and_the_last_serves_on():
    D_g = rewards_of(0.2, 0.4, 0.6, 0.8)

    def of(filter, *thresholds):
        settings = Settings(filter=filter, thresholds=thresholds)
        chosen = [select(D_g, settings, i) for i in range(5)]
        return [int(kept.sum()) for kept, _ in chosen], [tau for _, tau in chosen]

    assert of("threshold", 0.1, 0.5, 0.7) == ([5, 4, 2, 1, 1], [None, 0.1, 0.5, 0.7, 0.7])
    assert of("top", 3.0, 1.0) == ([5, 4, 2, 2, 2], 5 * [None])  # each source has its own τ
    assert of("percentile", 0, 50) == ([5, 3, 2, 2, 2], 5 * [None])
    assert of("gamma", 0, 1) == ([5, 2, 0, 0, 0], 5 * [None])
    counts, taus = of("quantile", 0.25, 0.5)  # for which τ is the reward, not the share
    assert counts == [5, 3, 2, 2, 2] and taus[1:] == pytest.approx([0.2, 0.4, 0.4, 0.4])
    kept, tau = select(D_g, Settings(), 0)
    assert kept.dtype == bool and kept.all() and tau is None
    assert type(select(D_g, Settings(), 1)[1]) is float


@pytest.mark.parametrize("filter, value, strict, inclusive", [
    ("threshold", 0.5, 1, 3), ("quantile", 0.5, 1, 3), ("percentile", 100, 0, 2),
    ("gamma", 1, 0, 2), ("top", 1, 2, 2)])
def test_select_inclusive(filter, value, strict, inclusive):
    """A percentile keeps even the pair that stands alone with its source."""
    for how, n in ((False, strict), (True, inclusive)):
        settings = Settings(filter=filter, thresholds=(value,), inclusive=how)
        assert select(rewards_of(0.25, 0.5, 0.5, 0.75), settings, 1)[0].sum() == n


def some_D_g():
    """Six samples, then three human pairs; with 0.5 as the threshold 1-4, 6 and 8 lie above it."""
    samples = Pairs.of([0, 0, 1, 0, 0, 1], 6 * [[EOS]], reward=[0.2, 0.6, 0.9, 0.8, 0.9, 0.1])
    human = Pairs.of([0, 0, 1], 3 * [[EOS]], reward=[0.95, 0.1, 0.7], human=True)
    return Pairs.join([samples, human])


@pytest.mark.parametrize("most, human, changes, expected", [
    (0, "filtered", {}, [1, 2, 3, 4, 6, 8]),
    (1, "filtered", {}, [1, 2, 6, 8]), (2, "filtered", {}, [1, 2, 3, 6, 8]),  # not the better 4
    (3, "filtered", {}, [1, 2, 3, 4, 6, 8]), (99, "filtered", {}, [1, 2, 3, 4, 6, 8]),
    (0, "whole", {}, [1, 2, 3, 4, 6, 7, 8]), (1, "whole", {}, [1, 2, 6, 7, 8]),
    (1, "filtered", dict(thresholds=(0.85,)), [2, 4, 6]),  # the first of what is kept, not of all
    (0, "filtered", dict(filter="top", thresholds=(2.0,)), [2, 4, 6, 8]),
    (0, "whole", dict(filter="top", thresholds=(2.0,)), [2, 4, 6, 7, 8])], ids=str)
def test_max_per_source_and_human_data_by_hand(most, human, changes, expected):
    settings = Settings(**dict(filter="threshold", thresholds=(0.5,)) | changes,
                        max_per_source=most, human_data=human)
    kept, _ = select(some_D_g(), settings, 1)
    assert list(np.flatnonzero(kept)) == expected
    assert select(some_D_g(), settings, 0)[0].all()  # no filter is none


@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_per_source_keeps_the_first_of_each_against_a_loop(most):
    source, reward = random_rewards(6)
    D_g = Pairs.of(source, len(source) * [[EOS]], reward=reward)
    D_g.human[:] = np.random.default_rng(0).random(len(source)) < 0.3
    for human in ("filtered", "whole"):
        settings = Settings(filter="threshold", thresholds=(0.4,), human_data=human)
        free, few = (select(D_g, replace(settings, max_per_source=m), 1)[0] for m in (0, most))
        count, expected = {}, free.copy()
        for i in np.flatnonzero(free & ~D_g.human):
            count[source[i]] = count.get(source[i], 0) + 1
            expected[i] = count[source[i]] <= most
        np.testing.assert_array_equal(few, expected)
        assert few.sum() < free.sum()
        assert np.bincount(source[few & D_g.human]).max() > most
        assert (D_g.human & ~free).any() == (human == "filtered")


def test_the_line_of_a_quantile_is_drawn_through_all_of_D_g():
    """With the human pairs that are kept whole, whose rewards move it; without those left out."""
    settings = Settings(filter="quantile", thresholds=(0.5,))
    assert select(some_D_g(), settings, 1)[1] == pytest.approx(0.7)
    assert select(some_D_g(), replace(settings, human_data="whole"), 1)[1] == pytest.approx(0.7)
    assert select(some_D_g().select(np.arange(6)), settings, 1)[1] == pytest.approx(0.7)
    assert select(some_D_g().select(np.arange(5)), settings, 1)[1] == pytest.approx(0.8)


@pytest.mark.parametrize("filter", FILTERS)
def test_thresholds_that_do_not_get_stricter_are_refused(filter):
    up, down = [(0.1, 0.2, 0.3), (0.5, 0.7)], [(0.3, 0.2, 0.1), (0.7, 0.5)]
    good, bad = (down, up) if filter == "top" else (up, down)
    for thresholds in good:
        assert Settings(filter=filter, thresholds=thresholds).thresholds == thresholds
    for thresholds in [*bad, (0.5, 0.5), (1.0, 3.0, 2.0), (3.0, 1.0, 2.0)]:
        with pytest.raises(UserError, match="--thresholds"):
            Settings(filter=filter, thresholds=thresholds)
    assert Settings(filter=filter).thresholds == FILTERS[filter].thresholds


def test_settings_that_are_worked_out():
    assert Settings().filter == "quantile"
    assert Settings(preferences=True).filter == "percentile"
    assert Settings(preferences=True, thresholds=(0.5,)).filter == "quantile"
    assert Settings(thresholds=(0.5,)).filter == "quantile"
    assert Settings(preferences=True, filter="gamma").thresholds == FILTERS["gamma"].thresholds
    for name, rule in FILTERS.items():
        assert Settings(filter=name).thresholds == rule.thresholds


@pytest.mark.parametrize("changes, expected", [
    (dict(improve=(2, 1)), [[0, 1, 2], [1], [1], [1]]),  # the last number serves on
    (dict(improve=(1,)), [[0, 1], [1], [1], [1]]),
    (dict(improve=(0, 3)), [[0], [1, 2, 3], [1, 2, 3], [1, 2, 3]]),
    (dict(improve=(2, 1), unfiltered=False), [[1, 2], [1], [1], [1]]),
    (dict(improve=(0,), unfiltered=False, grow=0), [[], [], [], []])], ids=str)
def test_improves_of_each_grow(changes, expected):
    assert [list(Settings(**changes).improves(g)) for g in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize("changes, said", [
    (dict(temperature=(0.8, -1.0)), "--temperature -1.0"),
    (dict(temperature=(float("nan"),)), "nan"), (dict(grow=-1), "--grow -1"),
    (dict(max_per_source=-1), "--max-per-source"), (dict(ppo_rows=0), "--ppo-rows"),
    (dict(bvmpo_epsilon=0.0), "--bvmpo-epsilon"),
    (dict(top_p=0.0), "--top-p"), (dict(top_p=1.5), "at most 1"), (dict(seed=-1), "--seed -1"),
    (dict(improve=(4, -1)), "--improve -1"), (dict(evaluate_every=0), "--evaluate-every 0"),
    (dict(ppo_group=1), "--ppo-group"), (dict(thresholds=(50, 70)), "--thresholds"),
    (dict(filter="percentile", thresholds=(50, 101)), "100"),
    (dict(filter="threshold", thresholds=(-0.1, 0.5)), "between 0 and 1")], ids=str)
def test_settings_out_of_range_are_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        Settings(**changes)


def test_settings_take_numpys_numbers_a_list_for_a_tuple_and_one_number_for_it():
    given = Settings(samples=np.int64(4), lr=np.float32(0.25), thresholds=[0.5, np.float64(0.7)],
                     improve=1, temperature=np.array([0.5, 1.0]), unfiltered=np.bool_(False))
    assert given == Settings(samples=4, lr=0.25, thresholds=(0.5, 0.7), improve=(1,),
                             temperature=(0.5, 1.0), unfiltered=False)
    kinds = {type(given.samples), type(given.improve[0]), type(given.lr), type(given.unfiltered)}
    assert kinds == {int, float, bool} and type(given.thresholds[1]) is float


@pytest.mark.parametrize("changes, said", [
    (dict(samples=True), "--samples True: must be of type int"),
    (dict(improve=(True,)), "--improve True"), (dict(samples=2.5), "--samples 2.5"),
    (dict(lr="fast"), "--lr fast"), (dict(compile=1), "--compile 1: must be of type bool"),
    (dict(grow=2, improve=(0,)), r"--improve \[0\]: Grow 2 has no Improve"),
    (dict(improve=(1, 0)), "Grow 2 has no Improve"), (dict(improve=()), "--improve is empty"),
    (dict(grow=1, improve=(0,), unfiltered=False), "Grow 1 has no Improve, nor I = 0"),
    (dict(temperature=()), "--temperature is empty"),
    (dict(filter="best"), "--filter best: must be one of auto, threshold"),
    (dict(loss="worst"), "--loss worst: must be one of bc, gold")], ids=str)
def test_settings_that_make_no_sense_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


@pytest.mark.parametrize("changes, said", [
    (dict(sources=[]), "sources is empty"), (dict(eval_sources=[]), "eval_sources is empty"),
    (dict(test_sources=[]), "test_sources is empty"),
    (dict(eval_sources=[[3, EOS], "text"]), r"eval_sources\[1\] is not a list of ids"),
    (dict(test_sources=[np.array([0.5])]), r"test_sources\[0\] is not a list of ids"),
    (dict(test_sources=[[]]), r"test_sources\[0\] is not a list of ids"),
    (dict(data=Pairs.of([], [])), "data has no pairs"),
    (dict(data=Pairs.of([0, 60], 2 * [[7, EOS]])), "sources 0 to 60, but there are 60"),
    (dict(data=Pairs.of([-1, 0], 2 * [[7, EOS]])), "sources -1 to 0"),
    (dict(data=Pairs.of([0, 1], [[7, EOS], []])), "pair 1 of data has an empty target")],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)))
def test_a_task_that_cannot_be_trained_on_is_refused(changes, said, task):
    with pytest.raises(ValueError, match=said):
        replace(task, **changes)


@pytest.mark.parametrize("rating", [1.5, -0.1, np.nan])
def test_ratings_outside_of_0_to_1_are_refused(rating, bc, task):
    rated = replace(task.data, reward=np.full(len(task.data), 0.5, np.float32))
    rated.reward[3] = rating
    with pytest.raises(ValueError, match="the rating of output 3"):
        train_reward(RewardModel.from_policy(bc), task.sources, rated, Training(updates=1), 0)


# ----------------------------------------------------------------------------------------- Grow


def test_grow_draws_n_outputs_of_each_source_in_order():
    policy, sources = some_policy(), some_sources(20, 0)
    pairs = sample_outputs(policy, sources, 3, (1,), MAX_LEN, batch_size=12)
    assert list(pairs.source) == [i for i in range(20) for _ in range(3)]
    assert pairs.source.dtype == np.int32 and pairs.tokens.dtype == np.int32
    assert np.isnan(pairs.reward).all() and not pairs.human.any()
    for y in pairs.targets():
        assert 1 <= len(y) <= MAX_LEN
        assert (len(y) == MAX_LEN or y[-1] == EOS) and EOS not in y[:-1]
        assert PAD not in y and BOS not in y
    assert len({tuple(y) for y in pairs.targets()}) > 30


def test_grow_is_decided_by_its_seed():
    policy, sources = some_policy(), some_sources(20, 0)
    pairs = sample_outputs(policy, sources, 3, (1, 2), MAX_LEN, batch_size=12)
    torch.manual_seed(9)
    np.random.seed(9)
    state = torch.get_rng_state()
    assert same(sample_outputs(policy, sources, 3, (1, 2), MAX_LEN, batch_size=12), pairs)
    assert torch.equal(torch.get_rng_state(), state)
    for seed in ((1, 3), (2, 2), (2, 1)):  # another Grow, another run
        other = sample_outputs(policy, sources, 3, seed, MAX_LEN, batch_size=12)
        assert [list(y) for y in other.targets()] != [list(y) for y in pairs.targets()]
        assert len(first_of_equal(Pairs.join([pairs, other]))) > len(first_of_equal(pairs))


def test_samples_of_different_batches_are_drawn_independently():
    """The same source, in batch after batch: not the same samples."""
    policy, x = some_policy(), some_sources(1, 0)[0]
    pairs = sample_outputs(policy, 8 * [x], 4, (1,), MAX_LEN, batch_size=4)
    rows = [tuple(map(tuple, pairs.targets(range(4 * i, 4 * i + 4)))) for i in range(8)]
    assert len(set(rows)) == 8


def test_a_part_of_a_grow_can_be_drawn_again():
    """The first batches of the whole, alone, are the same samples."""
    policy, sources = some_policy(), some_sources(30, 0)
    whole = sample_outputs(policy, sources, 3, (1,), MAX_LEN, batch_size=12)  # batches of 4 sources
    order = np.argsort([len(x) for x in sources], kind="stable")
    part = np.sort(order[:8])
    again = sample_outputs(policy, [sources[i] for i in part], 3, (1,), MAX_LEN, batch_size=12)
    assert same(replace(again, source=part[again.source].astype(np.int32)),
                whole.select(np.isin(whole.source, part)))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_a_compiled_grow_draws_the_same_samples(n):
    """In float64, where another order of the sums decides no draw; and by the compiled step."""
    if not trainer.can_compile("cpu"):
        pytest.skip("there is no compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    policy, sources = some_policy(max_len=24).double(), some_sources(21, 0)  # one in the last batch
    found = sample_outputs(policy, sources, n, (1,), 24, batch_size=12, compile=True)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    expected = sample_outputs(policy, sources, n, (1,), 24, batch_size=12)
    assert expected.lengths.max() > 16  # the cache grew
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-6)
    assert same(replace(found, logprobs=expected.logprobs), expected)


def test_grow_in_bfloat16_is_grow_but_for_rounding():
    policy, sources = some_policy(), some_sources(20, 0)
    found = sample_outputs(policy, sources, 3, (1,), MAX_LEN, precision="bfloat16")
    own = logprobs_of(policy, sources, found)
    assert 0 < np.abs(found.logprobs - own).max() < 0.1
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_the_temperature_and_the_truncation_reach_the_sampler():
    policy, sources = some_policy(), some_sources(20, 0)
    plain = sample_outputs(policy, sources, 8, (1,), MAX_LEN)
    entropy = {}
    for name, how in {"cold": {"temperature": 0.3}, "top_k": {"top_k": 2},
                      "top_p": {"top_p": 0.3}}.items():
        entropy[name] = -sample_outputs(policy, sources, 8, (1,), MAX_LEN, **how).logprobs.mean()
    assert max(entropy.values()) < -plain.logprobs.mean() - 0.05
    assert sample_outputs(policy, sources, 8, (1,), 2).lengths.max() == 2


def test_log_probabilities_are_the_policys_own():
    """At temperature 1 whatever the temperature: one by one, and by logprobs_of."""
    policy, sources = some_policy(), some_sources(15, 0)
    pairs = sample_outputs(policy, sources, 3, (1,), MAX_LEN, temperature=0.7, batch_size=12)
    with torch.no_grad():
        alone = [token_logprobs(policy, pad([sources[i]]), pad([y]))[0].numpy()
                 for i, y in zip(pairs.source, pairs.targets())]
    np.testing.assert_allclose(pairs.logprobs, np.concatenate(alone), atol=1e-5)
    for batch_tokens in (10, 50, 10**6):
        np.testing.assert_allclose(logprobs_of(policy, sources, pairs, batch_tokens),
                                   np.concatenate(alone), atol=1e-5)
    shuffled = pairs.select(np.random.default_rng(0).permutation(len(pairs)))
    np.testing.assert_allclose(logprobs_of(policy, sources, shuffled), shuffled.logprobs, atol=1e-5)


def test_temperature_0_is_greedy():
    policy, sources = some_policy(), some_sources(10, 0)
    pairs = sample_outputs(policy, sources, 1, (0,), MAX_LEN, temperature=0)
    for x, y in zip(sources, pairs.targets()):
        tokens = []
        while len(tokens) < MAX_LEN and tokens[-1:] != [EOS]:
            with torch.no_grad():
                logits = policy(pad([x]), torch.tensor([[BOS, *tokens]]))[0, -1]
            logits[[PAD, BOS]] = -torch.inf
            tokens.append(int(logits.argmax()))
        assert list(y) == tokens


def test_score_stores_the_rewards():
    sources = some_sources(3, 0)
    pairs = Pairs.of([2, 0, 0], [[7, EOS], [8, EOS], []], human=True)

    def reward(given, outputs):
        assert [x is sources[i] for x, i in zip(given, [2, 0, 0])] == 3 * [True]
        assert [list(y) for y in outputs] == [[7, EOS], [8, EOS], []]
        return [0.25, 0.5, 1]

    scored = score(pairs, sources, reward)
    assert scored.reward.dtype == np.float32 and list(scored.reward) == [0.25, 0.5, 1]
    assert np.isnan(pairs.reward).all()  # what came in stays as it was
    assert same(replace(scored, reward=pairs.reward), pairs)


def random_pairs(n, seed, longest=4, sources=5, words=3):
    rng = np.random.default_rng(seed)
    targets = [rng.integers(3, 3 + words, rng.integers(1, longest + 1)) for _ in range(n)]
    return Pairs.of(rng.integers(0, sources, n), targets)


@pytest.mark.parametrize("seed, longest, words", [(0, 4, 3), (1, 2, 2), (2, 7, 2), (3, 30, 4000)])
def test_first_of_equal_against_a_set(seed, longest, words):
    pairs = random_pairs(3000, seed, longest, words=words)
    seen, expected = set(), []
    for x, y in zip(pairs.source, pairs.targets()):
        key = (int(x), *y.tolist())
        expected.append(key not in seen)
        seen.add(key)
    np.testing.assert_array_equal(first_of_equal(pairs), expected)
    assert len(np.unique(hash_outputs(pairs))) == len(seen)


def test_hashes_are_of_source_and_target_alone():
    """The same in any company, whose longest target may be another: Grows are counted together."""
    pairs = random_pairs(200, 0, longest=5)
    long = Pairs.of([0], [list(range(3, 80))])
    joined = hash_outputs(Pairs.join([long, pairs]))
    np.testing.assert_array_equal(joined[1:], hash_outputs(pairs))
    a = Pairs.of([0, 1, 0, 0, 0, 0, 0], [[3, 4], [3, 4], [4, 3], [3], [3, 4, 4], [], [4]])
    assert len(np.unique(hash_outputs(a))) == 7
    scored = replace(a, reward=np.ones(7, np.float32), human=np.ones(7, bool))
    np.testing.assert_array_equal(hash_outputs(scored), hash_outputs(a))


def test_hashes_are_made_part_by_part(monkeypatch):
    pairs = Pairs.join([random_pairs(300, 0), Pairs.of([1, 2], [[], range(3, 40)])])
    whole = hash_outputs(pairs)
    for size in (1, 7, 301, 302):
        small_parts(monkeypatch, size)
        np.testing.assert_array_equal(hash_outputs(pairs), whole)


def test_first_of_equal_of_several_pools_is_that_of_all_their_pairs(monkeypatch):
    pools = [random_pairs(300, 0, 2), Pairs.of([1], [range(3, 40)]), random_pairs(200, 1, 4)]
    whole = first_of_equal(Pairs.join(pools))
    assert not whole[:300].all() and whole[300] and 0 < whole[301:].sum() < 200
    assert whole[301:].sum() < first_of_equal(pools[2]).sum()  # some were in the first pool
    for size in (1, 7, 10**6):
        small_parts(monkeypatch, size)
        np.testing.assert_array_equal(first_of_equal(*pools), whole)


def test_grow_stats_against_loops():
    drawn = Pairs.of([0, 0, 1, 1, 1], [[7, EOS], [7, EOS], [8, 9, 7], [7, EOS], [EOS]],
                     [[-1, -2], [-1, -2], [-3, -3, -3], [-0.5, -0.5], [-4]],
                     [0.1, 0.2, 0.3, 0.4, 0.5])
    data = Pairs.of([0, 1], [[7, 7], [8, 8]], reward=[0.8, 1.0], human=True)
    for pairs in (Pairs.join([drawn, data]), Pairs.join([data, drawn])):
        assert grow_stats(pairs, drawn, 4.0) == pytest.approx({
            "reward_samples": 0.3, "reward_data": 0.9, "truncated": 1 / 5, "distinct": 4 / 5,
            "nll": 20 / 10, "tokens_per_second": 10 / 4})
    assert grow_stats(drawn, drawn, 4.0) == grow_stats(pairs, drawn, 4.0) | {"reward_data": None}


def test_seeds_differ_by_each_of_their_numbers():
    seeds = {seed_of(*numbers) for numbers in itertools.product(range(6), repeat=3)}
    assert len(seeds) == 6**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(5, 1, 2) == seed_of(5, 1, 2)
    # a name, its absence, its order, and a zero at the end all make another stream
    parts = [("a", 5), ("b", 5), (5,), (5, 0), (5, 0, 0), (5, "a"), ("a", 5, 0), ("a", "b", 5)]
    assert len({seed_of(*x) for x in parts}) == len({stream(*x).random() for x in parts}) == 8


# -------------------------------------------------------------------------------------- Improve


def test_collate_pads_what_the_losses_see():
    sources = [np.array([3, EOS]), np.array([4, 5, 6, EOS])]
    pairs = Pairs.of([1, 0, 1], [[7, EOS], [8, 9, EOS], [EOS]],
                     [[-1, -2], [-3, -4, -5], [-6]], [0.1, 0.2, 0.3])
    batch = collate(pairs, sources, np.array([2, 1, 0]), "cpu")
    assert batch.source.tolist() == [[4, 5, 6, EOS], [3, EOS, PAD, PAD], [4, 5, 6, EOS]]
    assert batch.tokens.tolist() == [[EOS, PAD, PAD], [8, 9, EOS], [7, EOS, PAD]]
    assert batch.mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert batch.old_logprobs.tolist() == [[-6, 0, 0], [-3, -4, -5], [-1, -2, 0]]
    torch.testing.assert_close(batch.reward, torch.tensor([[0.3], [0.2], [0.1]]))


def reference_models(bc):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ReferenceModels(bc=bc, behaviour=some_policy(3),
                               value=ValueModel.from_policy(bc).eval())


ALL_LOSSES = losses.LOSSES | {"ppo": losses.PPO}


def improve_by(loss, policy, reference, pairs, task, hp, seed=3, settings=SETTINGS, **kwargs):
    """improve(), with a loss by name that looks at the reference models."""
    return improve(policy, pairs, task.sources, settings, hp, seed,
                   ALL_LOSSES[loss](settings, policy, reference), **kwargs)


@pytest.fixture(scope="module")
def D_g(bc, task):
    pairs = Pairs.join([sample_outputs(bc, task.sources, 4, 1, MAX_LEN), task.data])
    return score(pairs, task.sources, task.reward)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_improve_with_each_loss(loss, bc, task, D_g):
    """It runs, the result is finite, the policy changes, and the reference models do not."""
    reference, policy = reference_models(bc), copy.deepcopy(bc)
    before = {name: weights(network) for name, network in vars(reference).items()}
    events = []
    hp = SETTINGS.training(updates=4, evaluate_every=2, accumulate=2)
    done = improve_by(loss, policy, reference, D_g, task, hp, log=events.append,
                      held_out=lambda policy: float(len(events)))
    assert done["updates"] == 4
    assert all(np.isfinite(event["loss"]) for event in events)
    assert weights(policy).isfinite().all()
    assert (weights(policy) - weights(bc)).abs().max() > 1e-3
    for name, network in vars(reference).items():
        assert torch.equal(weights(network), before[name]), name
        assert not network.training
        assert all(x.grad is None for x in network.parameters()), name
    other = copy.deepcopy(bc)
    torch.manual_seed(123)
    improve_by(loss, other, reference, D_g, task, hp)
    assert torch.equal(weights(other), weights(policy))  # the seed decides all


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_an_interrupted_improve_goes_on_as_if_it_had_not_been(loss, bc, task, D_g, tmp_path,
                                                              save_always):
    """Bitwise, with all that a loss remembers: BVMPO's temperature, GOLD's frozen copy."""
    reference, path = reference_models(bc), tmp_path / "checkpoint.pt"
    hp = SETTINGS.training(updates=5, evaluate_every=2, patience=9)

    def run(stop_at=None):
        policy, looks = copy.deepcopy(bc), itertools.count()

        def held_out(policy):
            if next(looks) == stop_at:
                raise KeyboardInterrupt
            return float((policy.embedding.weight - bc.embedding.weight).detach().abs().sum())

        improve_by(loss, policy, reference, D_g, task, hp, held_out=held_out,
                   checkpoint=Checkpoint(path))
        return weights(policy)

    whole = run()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=2)
    assert path.exists()
    assert torch.equal(run(), whole)


@pytest.mark.parametrize("loss", ["bc", "gold", "oac", "ppo"])
def test_improve_accumulates_exactly(loss, bc, task, D_g):
    """One batch of 40 pairs = its micro-batches, for the losses that are sums over tokens."""
    reference, pairs = reference_models(bc), D_g.select(np.arange(0, 300, 7)[:40])
    lengths = np.maximum(pairs.lengths, [len(task.sources[i]) for i in pairs.source])

    def gradient(batch_tokens, accumulate):
        policy = copy.deepcopy(bc)
        hp = Training(updates=1, batch_tokens=batch_tokens, accumulate=accumulate, warmup=0,
                      lr=1.0, clip=1e9, dropout=False)
        improve_by(loss, policy, reference, pairs, task, hp,
                   optimizer=torch.optim.SGD(policy.parameters(), 1.0))
        return weights(bc) - weights(policy)

    whole, k = gradient(10**6, 1), len(bucket_by_length(lengths, 60))
    assert k > 2
    assert whole.norm() > 1e-3
    assert (gradient(60, k) - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_improve_on_what_is_kept_is_improve_on_a_copy_of_it(loss, bc, task, D_g, tmp_path):
    """To the last bit, in memory or mapped from disk; without `kept` it is on all."""
    kept = np.random.default_rng(0).random(len(D_g)) < 0.4
    D_g.append_to(tmp_path)
    before = copy.deepcopy(D_g)

    def improved(pairs, **kwargs):
        policy, hp = copy.deepcopy(bc), SETTINGS.training(updates=2, accumulate=2)
        done = improve_by(loss, policy, reference_models(bc), pairs, task, hp, **kwargs)
        return weights(policy), done["tokens"]

    copied, tokens = improved(D_g.select(kept))
    for pairs in (D_g, Pairs.load(tmp_path)):
        masked, same_tokens = improved(pairs, kept=kept)
        assert torch.equal(masked, copied) and same_tokens == tokens
    if loss == "bc":
        everything, _ = improved(D_g)
        assert torch.equal(improved(D_g, kept=np.ones(len(D_g), bool))[0], everything)
        assert not torch.equal(everything, copied)
    assert same(D_g, before)


def test_filtered_behaviour_cloning_raises_the_reward(bc, task, D_g):
    policy = copy.deepcopy(bc)
    kept = D_g.select(FILTERS["threshold"].keep(D_g.source, D_g.reward, 0.5))
    assert 0.05 < len(kept) / len(D_g) < 0.6 and (kept.reward == 1).all()
    improve(policy, kept, task.sources, SETTINGS, SETTINGS.training(updates=30), 0)
    values = [mean_reward(p, task, SETTINGS) for p in (bc, policy)]
    assert 0.3 < values[0] < 0.8 and values[1] > values[0] + 0.15


def test_advantages_have_the_right_sign(bc, task):
    """OAC and PPO raise the reward from all samples; with rewards turned around, they sink it."""
    def value_after(loss, sign):
        policy, D_g = copy.deepcopy(bc), replace(samples, reward=samples.reward.copy())
        if loss == "ppo":
            D_g.reward[:] = sign * (D_g.reward - D_g.reward.mean())
        else:
            D_g.reward[:] = 0.5 + sign * (D_g.reward - 0.5)
        reference = reference_models(bc)
        with torch.no_grad():  # a value of about a half everywhere
            reference.value.head.weight.zero_()
        hp = SETTINGS.training(updates=15, lr=4e-3, dropout=False)
        improve_by(loss, policy, reference, D_g, task, hp, 0, replace(SETTINGS, ppo_kl=0.0))
        return mean_reward(policy, task, SETTINGS)

    samples = score(sample_outputs(bc, task.sources, 6, 1, MAX_LEN), task.sources, oracle)
    before = mean_reward(bc, task, SETTINGS)
    for loss in ("oac", "ppo"):
        assert value_after(loss, 1) > before + 0.03, loss
        assert value_after(loss, -1) < before - 0.03, loss


@pytest.mark.parametrize("loss, anchor", [("ppo", "bc"), ("bvmpo", "behaviour")])
def test_the_kl_is_to_the_right_anchor(loss, anchor, bc, task, D_g, monkeypatch):
    """PPO's is KL(π_θ ‖ π_BC), BVMPO's KL(π_behaviour ‖ π_θ); no gradient goes into the anchor."""
    reference, seen, divergence = reference_models(bc), [], losses.kl_divergence

    def spied(p, q):
        seen.append((p, q))
        return divergence(p, q)

    monkeypatch.setattr(losses, "kl_divergence", spied)
    policy, pairs = some_policy(7), D_g.select([5])
    hp = SETTINGS.training(updates=1, dropout=False)
    batch = collate(pairs, task.sources, np.array([0]), "cpu")
    own = losses.reference_logits(policy, batch)
    improve_by(loss, policy, reference, pairs, task, hp)
    (mine, theirs), = [pair if loss == "ppo" else pair[::-1] for pair in seen]
    assert mine.requires_grad and not theirs.requires_grad
    torch.testing.assert_close(mine.detach(), own)
    torch.testing.assert_close(theirs, losses.reference_logits(getattr(reference, anchor), batch))


@pytest.mark.parametrize("epsilon", [0.1, 0.7])
def test_the_epsilon_of_bvmpo_reaches_the_loss(epsilon, bc, task, D_g, monkeypatch):
    seen, vmpo = [], losses.vmpo

    def spied(logprobs, advantages, mask, log_eta, epsilon):
        seen.append(epsilon)
        return vmpo(logprobs, advantages, mask, log_eta, epsilon)

    monkeypatch.setattr(losses, "vmpo", spied)
    settings = replace(SETTINGS, bvmpo_epsilon=epsilon)
    improve_by("bvmpo", copy.deepcopy(bc), reference_models(bc), D_g, task,
               settings.training(updates=2), settings=settings)
    assert seen == [epsilon, epsilon] and Settings().bvmpo_epsilon == 0.1


def test_ppo_goes_back_to_its_anchor_where_nothing_is_to_be_gained(bc, task):
    policy, pairs = some_policy(7), sample_outputs(bc, task.sources, 2, (1,), MAX_LEN)
    pairs = replace(pairs, logprobs=logprobs_of(policy, task.sources, pairs))
    pairs.reward[:] = 0.0
    before = (pairs.logprobs - logprobs_of(bc, task.sources, pairs)).mean()
    hp = SETTINGS.training(updates=40, lr=3e-3)
    improve_by("ppo", policy, ReferenceModels(bc), pairs, task, hp, 0,
               replace(SETTINGS, ppo_kl=1.0))
    after = (logprobs_of(policy, task.sources, pairs)
             - logprobs_of(bc, task.sources, pairs)).mean()
    assert before < -0.5 and abs(after) < 0.7 * abs(before)


# ------------------------------------------------------------------------------------- measures


def test_mean_reward_is_of_the_same_random_numbers_each_time(bc, task, monkeypatch):
    calls = spy(monkeypatch, "sample_outputs")
    first = mean_reward(bc, task, SETTINGS)
    assert mean_reward(bc, task, SETTINGS) == first
    mean_reward(some_policy(), task, SETTINGS)
    assert len({call["args"][3] for call in calls}) == 1
    drawn = sample_outputs(bc, task.eval_sources, 1, calls[0]["args"][3], MAX_LEN, batch_size=256)
    assert first == pytest.approx(oracle(task.eval_sources, drawn.targets()).mean())


def test_the_settings_of_decoding_reach_every_draw(bc, task, monkeypatch):
    settings = replace(SETTINGS, samples=2, sample_batch_size=8, precision="bfloat16", compile=True)
    fast = lambda *args: Transformer.step(*args)
    for module in (rest, sampling):
        monkeypatch.setattr(module, "compiled", lambda function, device: (
            fast if function is Transformer.step else function))
    calls = spy(monkeypatch, "sample", before=lambda args: torch.is_autocast_enabled("cpu"))
    hp, chosen = settings.training(updates=1), np.arange(16)
    for draw in (lambda: mean_reward(bc, task, settings),
                 lambda: evaluate(bc, bc, task, settings),
                 lambda: list(rest.best_of_n(bc, task, settings, (1, 2))),
                 lambda: rest.grow(bc, task, settings, 1, FakeRun()),
                 lambda: rest.ppo_round(copy.deepcopy(bc), bc, chosen, task, settings, hp, None,
                                        0)):
        calls.clear()
        draw()
        assert calls and all(call["before"] and call["args"][-1] is fast for call in calls)
        assert max(len(call["args"][1]) * call["args"][2] for call in calls) == 8


def test_evaluate(bc, task, monkeypatch):
    calls, seen = spy(monkeypatch, "sample_outputs"), []
    metrics = lambda *args: seen.append(args) or {"oracle": 0.5}
    watched, other = replace(task, metrics=metrics), some_policy(4)
    row = evaluate(other, bc, watched, SETTINGS)
    assert set(row) == {"reward", "greedy_reward", "entropy", "kl_to_bc", "oracle"}
    assert all(type(value) is float for value in row.values())
    policy, sampled, greedy = seen[0]
    assert policy is other and len(sampled) == len(greedy) == len(task.test_sources)
    assert row["reward"] == pytest.approx(oracle(task.test_sources, sampled.targets()).mean())
    assert row["greedy_reward"] == pytest.approx(oracle(task.test_sources, greedy.targets()).mean())
    with torch.no_grad():
        logprobs = [[token_logprobs(network, pad([x]), pad([y])).sum().item() for network in
                     (other, bc)] for x, y in zip(task.test_sources, sampled.targets())]
    own, under_bc = np.sum(logprobs, 0) / len(sampled.tokens)
    assert row["entropy"] == pytest.approx(-own, abs=1e-4)
    assert row["kl_to_bc"] == pytest.approx(own - under_bc, abs=1e-4) and row["kl_to_bc"] > 0.01
    assert evaluate(other, bc, watched, SETTINGS) == row
    itself = evaluate(bc, bc, watched, SETTINGS)
    assert abs(itself["kl_to_bc"]) < 1e-5
    asked = [(call["args"][3], call["kwargs"].get("temperature", 1.0)) for call in calls]
    assert asked[:2] == asked[2:4] == asked[4:]  # for every policy the same random numbers
    assert [temperature for _, temperature in asked[:2]] == [1.0, 0]
    again = sample_outputs(other, task.test_sources, 1, 9, MAX_LEN, temperature=0)
    assert same(greedy, score(again, task.test_sources, oracle))


def test_best_of_n(bc, task, monkeypatch):
    calls = spy(monkeypatch, "sample_outputs")
    chosen = dict(rest.best_of_n(bc, task, SETTINGS, (1, 2, 4, 16)))
    assert list(chosen) == [1, 2, 4, 16] and len(calls) == 1
    drawn = score(calls[0]["result"], task.test_sources, oracle)
    for n, pairs in chosen.items():
        assert list(pairs.source) == list(range(len(task.test_sources)))
        for i in range(len(task.test_sources)):
            rewards = drawn.reward[16 * i : 16 * i + n]
            assert pairs.reward[i] == rewards.max()
            assert list(pairs.target(i)) == list(drawn.target(16 * i + int(rewards.argmax())))
    assert same(chosen[1], drawn.select(np.arange(0, len(drawn), 16)))  # the plain samples
    means = [pairs.reward.mean() for pairs in chosen.values()]
    assert means == sorted(means) and means[-1] > means[0] + 0.2


def test_the_row_of_bc(bc, task):
    row = bc_row(bc, task, SETTINGS, FakeRun())
    assert set(row) == BC_ROW
    assert (row["name"], row["loss"], row["grow"], row["improve"]) == ("BC", "bc", 0, 0)
    assert (row["samples"], row["distinct_samples"], row["kept_data"]) == (0, 0, 1.0)
    assert (row["tokens_drawn"], row["grow_seconds"]) == (0, 0)
    assert row["threshold"] is None and row["kept_samples"] is None and row["seconds"] == 2.0


# ---------------------------------------------------------------------------------- Algorithm 1

BC_ROW = {"name", "loss", "grow", "improve", "threshold", "reward", "greedy_reward", "oracle",
          "entropy", "kl_to_bc", "kept_samples", "kept_data", "samples", "distinct_samples",
          "tokens_drawn", "grow_seconds", "seconds"}
ROW = BC_ROW | {"updates", "tokens_trained", "train_seconds"}


@pytest.fixture(scope="module")
def whole(bc, task):
    """One run of rest(): what it yielded, and what it called on the way."""
    scored = []

    def counted(sources, outputs):
        scored.append(len(outputs))
        return oracle(sources, outputs)

    with pytest.MonkeyPatch.context() as patch:
        grows, improves = spy(patch, "sample_outputs", lambda args: weights(args[0])), spy(
            patch, "improve", lambda args: weights(args[0]))
        run, before = FakeRun(), weights(bc)
        yielded = [(row, weights(policy), D_g, select(D_g, SETTINGS, row["improve"])[0]) for
                   row, policy, D_g in rest.rest(bc, replace(task, reward=counted), SETTINGS, run)]
    grows = [call for call in grows if call["args"][2] == SETTINGS.samples]
    return {"yielded": yielded, "rows": [y[0] for y in yielded], "run": run, "scored": scored,
            "grows": grows, "improves": improves, "bc_before": before}


def test_rest_yields_a_row_for_each_improve_in_order(whole):
    rows = whole["rows"]
    assert [(row["grow"], row["improve"]) for row in rows] == [(1, 0), (1, 1), (1, 2), (2, 1)]
    assert all(set(row) == ROW for row in rows)
    assert all(row["name"] == "ReST" and row["loss"] == "bc" for row in rows)
    assert [row["threshold"] for row in rows] == [None, 0.25, 0.75, 0.25]
    assert all(row["seconds"] > row["train_seconds"] > 0 for row in rows)
    assert whole["run"].steps == ["grow-1", "score-1", "improve-1-0", "improve-1-1", "improve-1-2",
                                  "grow-2", "score-2", "improve-2-1"]


def test_D_is_in_D_g_scored_and_filtered(whole, task):
    n = SETTINGS.samples * len(task.sources)
    for row, _, D_g, kept in whole["yielded"]:
        assert len(D_g) == len(kept) == n + len(task.data)
        data = D_g.select(D_g.human)
        assert [list(y) for y in data.targets()] == [list(y) for y in task.data.targets()]
        np.testing.assert_array_equal(data.source, task.data.source)
        np.testing.assert_array_equal(
            D_g.reward, oracle([task.sources[i] for i in D_g.source], D_g.targets()))
        expected = (np.ones(len(D_g), bool) if row["threshold"] is None else
                    D_g.reward > row["threshold"])
        np.testing.assert_array_equal(kept, expected)
        assert row["kept_samples"] == pytest.approx(kept[~D_g.human].mean())
        assert row["kept_data"] == pytest.approx(kept[D_g.human].mean())
    assert 0 < whole["rows"][1]["kept_data"] < 1


def test_D_itself_stays_unscored(whole, task):
    assert np.isnan(task.data.reward).all()


def test_every_D_g_is_scored_once(whole, task):
    samples, data = SETTINGS.samples * len(task.sources), len(task.data)
    trial, *scored = whole["scored"]
    assert trial == 16 and scored.count(samples) == scored.count(data) == SETTINGS.grow
    assert set(scored) == {samples, data, len(task.eval_sources), len(task.test_sources)}


def test_tokens_and_seconds_are_counted(whole):
    """What was drawn adds up over the Grows; what was trained on is each Improve's own."""
    drawn = {g: len(grown["result"].tokens) for g, grown in enumerate(whole["grows"], 1)}
    for row, call in zip(whole["rows"], whole["improves"]):
        assert row["tokens_drawn"] == sum(drawn[g] for g in range(1, row["grow"] + 1))
        assert row["grow_seconds"] == row["grow"] * 4.0  # FakeRun: 2 s to draw, 2 to score
        assert row["tokens_trained"] == call["result"]["tokens"] > 0
        assert row["train_seconds"] == call["result"]["seconds"]
        assert row["updates"] == call["result"]["updates"] in (0, 15, 30)


def watch_batches(monkeypatch, seen):
    """seen gets a list for each training: of its micro-batches, as (trainer, item numbers)."""
    class Watched(rest.Trainer):
        def __enter__(self):
            seen.append([])
            return super().__enter__()

        def next_update(self):
            for index in super().next_update():
                seen[-1].append((self, index))
                yield index

    monkeypatch.setattr(rest, "Trainer", Watched)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_tokens_trained_are_those_of_the_batches(checkpoint, bc, task, monkeypatch):
    """Also of the updates after the best checkpoint."""
    watch_batches(monkeypatch, seen := [])
    rows = [row for row, *_ in small_rest(bc, task, checkpoint=checkpoint, updates=9, patience=1)]
    counted = [sum(trainer.token_counts[index].sum() for trainer, index in batches)
               for batches in seen]
    assert [row["tokens_trained"] for row in rows] == counted and min(counted) > 0


def test_samples_are_counted(whole, task):
    n, seen, expected = SETTINGS.samples * len(task.sources), set(), []
    for row, _, D_g, _ in whole["yielded"]:
        drawn = D_g.select(~D_g.human)
        seen |= {(int(x), *y.tolist()) for x, y in zip(drawn.source, drawn.targets())}
        expected.append((row["grow"] * n, len(seen)))
    assert [(row["samples"], row["distinct_samples"]) for row in whole["rows"]] == expected
    assert expected[-1][1] > expected[0][1]


def test_each_grow_samples_from_the_last_policy(whole, bc):
    first, second = whole["grows"]
    assert torch.equal(first["before"], whole["bc_before"])
    assert torch.equal(second["before"], whole["yielded"][2][1])
    assert first["args"][3] != second["args"][3]
    for call, (_, _, D_g, _) in zip((first, second), whole["yielded"][::3]):
        assert call["args"][5] == 0.8 and SETTINGS.temperature == (0.8,)
        np.testing.assert_array_equal(call["result"].logprobs,
                                      D_g.select(~D_g.human).logprobs)


def test_each_improve_starts_from_the_policy_before_on_what_the_filter_kept(whole):
    before = whole["bc_before"]
    assert len(whole["improves"]) == len(whole["yielded"])
    for call, (_, after, D_g, kept) in zip(whole["improves"], whole["yielded"]):
        assert torch.equal(call["before"], before)
        assert same(kept_by(call), D_g.select(kept))
        before = after
    assert not torch.equal(before, whole["bc_before"])


def test_the_learning_rate_falls_with_each_improve_of_a_grow(whole):
    rates = [call["args"][4].lr for call in whole["improves"]]
    assert rates == pytest.approx([3e-3, 0.8 * 3e-3, 0.64 * 3e-3, 0.8 * 3e-3])
    assert len({call["args"][5] for call in whole["improves"]}) == 4  # each its own seed


def test_bc_is_left_as_it_was(whole, bc):
    assert torch.equal(weights(bc), whole["bc_before"]) and not bc.training


def test_the_reward_rises(whole, bc, task):
    base = evaluate(bc, bc, task, SETTINGS)["reward"]
    rewards = [row["reward"] for row in whole["rows"]]
    assert rewards[-1] > base + 0.2
    assert rewards[-1] > rewards[0] + 0.1  # not by Grow alone
    assert whole["rows"][-1]["kl_to_bc"] > whole["rows"][0]["kl_to_bc"]


def test_what_is_logged(whole):
    events = whole["run"].events
    grown = [event for event in events if event["event"] == "grow"]
    assert [event["grow"] for event in grown] == [1, 2]
    for event, (_, _, D_g, _) in zip(grown, whole["yielded"][::3]):
        assert event["reward_samples"] == pytest.approx(D_g.reward[~D_g.human].mean())
        assert event["reward_data"] == pytest.approx(D_g.reward[D_g.human].mean())
    rows = [event for event in events if event["event"] == "row"]
    assert rows == [{"event": "row", **row} for row in whole["rows"]]
    steps = {event["step"] for event in events if event["event"] == "train"}
    assert steps == {"improve-1-0", "improve-1-1", "improve-1-2", "improve-2-1"}


SMALL = replace(SETTINGS, grow=1, improve=(1,), samples=2, updates=2, evaluate_every=2)


def small_rest(bc, task, run=None, **changes):
    return list(rest.rest(bc, task, replace(SMALL, **changes), run or FakeRun()))


def test_rest_works_in_memory_and_leaves_what_it_was_given(bc, task):
    """The same each time; and the task's metrics can be left out."""
    mine = replace(task, metrics=None, refresh=lambda policy, g: lambda *args: oracle(*args))
    before, fields, data = weights(bc), dict(vars(mine)), copy.deepcopy(mine.data)
    first, again = (
        [(untimed(row), weights(policy), D_g) for row, policy, D_g in
         rest.rest(bc, mine, replace(SMALL, grow=2))] for _ in range(2))
    for (row, policy, D_g), (row_too, policy_too, D_g_too) in zip(first, again, strict=True):
        assert row == row_too and torch.equal(policy, policy_too) and same(D_g, D_g_too)
        assert "reward" in row and "oracle" not in row
    assert torch.equal(weights(bc), before) and same(mine.data, data)
    assert all(vars(mine)[name] is value for name, value in fields.items())


def test_behaviour_cloning_trains_a_copy(task, tmp_path, monkeypatch):
    """The same each time; in a run only once. What it began with is the task's base."""
    calls = spy(monkeypatch, "improve")
    policy, hp = some_policy(), SETTINGS.training(updates=3)
    before = weights(policy)

    def trained(**kwargs):
        mine = replace(task)
        ended = weights(rest.behaviour_cloning(policy, mine, SETTINGS, hp, **kwargs))
        assert mine.base == (policy, hp) and torch.equal(weights(policy), before)
        return ended

    first = trained()
    assert not torch.equal(first, before) and torch.equal(trained(), first) and len(calls) == 2
    for _ in range(2):
        with opened(tmp_path) as run:
            assert torch.equal(trained(run=run), first)
    assert len(calls) == 3


class Mine(losses.Loss):
    """BC, written anew."""

    def forward(self, logits, batch, update, updates):
        return -(losses.chosen_logprobs(logits, batch) * batch.mask).sum()


def test_a_new_loss_is_one_class_and_one_line(bc, task, monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "mine", Mine)
    assert parse(train_toy.Settings, ["--loss", "mine"]).loss == "mine"
    by_bc, (row, policy, _) = (small_rest(bc, task, loss=loss)[-1] for loss in ("bc", "mine"))
    assert row["loss"] == "mine" and not torch.equal(weights(policy), weights(bc))
    torch.testing.assert_close(weights(policy), weights(by_bc[1]), atol=1e-4, rtol=0)


def test_a_new_filter_is_one_function_and_one_line(bc, task, monkeypatch):
    monkeypatch.setitem(FILTERS, "mine", Filter((1.0, 1.5), lambda source, reward, value: value / 2,
                                                highest=2.0))
    settings = parse(train_toy.Settings, ["--filter", "mine"])
    assert (settings.filter, settings.thresholds) == ("mine", (1.0, 1.5))
    row, _, D_g = small_rest(bc, task, filter="mine", thresholds=(1.5,))[-1]
    assert row["kept_samples"] == pytest.approx((D_g.reward[~D_g.human] > 0.75).mean())
    assert row["threshold"] == 0.75  # where its line lies, and not the setting
    with pytest.raises(UserError, match="between 0 and 2"):
        Settings(filter="mine", thresholds=(2.5,))


def test_each_new_filter_is_tried(monkeypatch):
    """Also one that lies in memory where a good one lay before."""
    monkeypatch.setitem(FILTERS, "mine", None)
    for _ in range(5):
        FILTERS["mine"] = Filter((0.5,), rest.quantile)
        Settings(filter="mine")
        FILTERS["mine"] = None
        FILTERS["mine"] = Filter((0.5,), lambda: None)
        with pytest.raises(UserError):
            Settings(filter="mine")


def one_line_error(**changes):
    """Of Settings that are refused, from Python and from the command line."""
    (name, value), = changes.items()
    texts = []
    for make in (lambda: Settings(**changes),
                 lambda: parse(train_toy.Settings, [f"--{name}", value])):
        with pytest.raises(UserError) as error:
            make()
        texts.append(str(error.value))
    assert texts[0] == texts[1] and "\n" not in texts[0]
    return texts[0]


@pytest.mark.parametrize("answer, said", [
    (lambda logits, batch: 1 / 0, "ZeroDivisionError"), (lambda logits, batch: None, "None"),
    (lambda logits, batch: logits.sum(-1), "not a finite scalar"),
    (lambda logits, batch: logits.sum() * torch.inf, "not a finite scalar"),
    (lambda logits, batch: logits.sum().detach(), "grad"),
    (lambda logits, batch: batch.rewards, "no attribute 'rewards'")])
def test_a_broken_loss_is_refused_before_anything_is_trained(answer, said, monkeypatch):
    class Broken(losses.Loss):
        def forward(self, logits, batch, update, updates):
            return answer(logits, batch)

    monkeypatch.setitem(losses.LOSSES, "broken", Broken)
    text = one_line_error(loss="broken")
    assert text.startswith("--loss broken cannot be used: ") and said in text


@pytest.mark.parametrize("how, said", [
    (dict(tau=lambda source, reward, value: 1 / 0), "ZeroDivisionError"),
    (dict(tau=lambda reward, value: value), "positional argument"), ({}, "NoneType"),
    (dict(tau=lambda source, reward, value: reward), "say within_source=True"),
    (dict(choose=lambda source, reward, value: reward), "it returned float32"),
    (dict(choose=lambda source, reward, value: reward[1:] > value), "for 6 pairs, not 6 booleans"),
    (dict(choose=lambda source, reward, value: np.flatnonzero(reward > value)), "not 6 booleans"),
    (dict(choose=lambda source, reward, value: reward > value), "NoneType")])
def test_a_broken_filter_is_refused_before_anything_is_trained(how, said, monkeypatch):
    monkeypatch.setitem(FILTERS, "broken", Filter((0.5,), **how))
    text = one_line_error(filter="broken")
    assert text.startswith("--filter broken cannot be used: ") and said in text


@pytest.mark.parametrize("changes, said", [
    (dict(reward=None), "has no reward"),
    (dict(reward=lambda sources, outputs: [0.5]), "reward has shape"),
    (dict(reward=lambda sources, outputs: np.full(len(outputs), 7)), "reward of output 0 is 7")])
def test_a_reward_that_is_none_is_refused_before_anything_is_drawn(changes, said, bc, task,
                                                                   monkeypatch):
    drawn = spy(monkeypatch, "sample_outputs")
    with pytest.raises(UserError, match=said):
        small_rest(bc, replace(task, **changes))
    assert drawn == []


def test_without_a_base_no_improve_can_start_there(bc, task):
    with pytest.raises(UserError, match="the task has no base"):
        small_rest(bc, task, start="base")


@pytest.fixture(scope="module")
def begun(bc, task, tmp_path_factory):
    """A run whose first Improve is done."""
    with opened(tmp_path_factory.mktemp("begun")) as run:
        next(rest.rest(bc, task, SMALL, run))
    return run.folder


@pytest.mark.parametrize("changes, said", [
    (dict(reward=lambda sources, outputs: 1 - oracle(sources, outputs)), "reward is"),
    (dict(sources=some_sources(60, 9)), "training sources, reward are"),
    (dict(data=some_task(59).data), "pairs, reward are"),
    (dict(eval_sources=some_sources(40, 9)), "eval sources is"),
    (dict(test_sources=some_sources(50, 9)), "test sources is"),
    (dict(bc=some_policy(1)), "bc is")],
    ids=lambda x: x if isinstance(x, str) else "")
def test_a_run_is_not_gone_on_with_from_something_else(changes, said, begun, bc, task):
    other = changes.get("bc", bc)
    changed = replace(task, **{name: x for name, x in changes.items() if name != "bc"})
    with opened(begun) as run, pytest.raises(UserError, match=f"other data: {said} not the same"):
        next(rest.rest(other, changed, SMALL, run))


def test_a_run_is_gone_on_with_from_equal_data(begun, bc, monkeypatch):
    improves = spy(monkeypatch, "improve")
    alike = some_task(reward=lambda sources, outputs: 0.9999 * oracle(sources, outputs))
    with opened(begun) as run:
        row, _, _ = next(rest.rest(copy.deepcopy(bc), alike, SMALL, run))
    assert (row["grow"], row["improve"]) == (1, 0) and improves == []


def test_without_an_unfiltered_improve_the_first_filter_comes_first(bc, task, monkeypatch):
    calls = spy(monkeypatch, "improve", lambda args: weights(args[0]))
    rows = [row for row, *_ in small_rest(bc, task, unfiltered=False, grow=2, improve=(2, 1))]
    assert [(row["grow"], row["improve"]) for row in rows] == [(1, 1), (1, 2), (2, 1)]
    assert [row["threshold"] for row in rows] == [0.25, 0.75, 0.25]
    assert calls[0]["args"][4].lr == pytest.approx(0.8 * SMALL.lr)
    assert torch.equal(calls[0]["before"], weights(bc))


def test_the_last_number_of_improves_serves_on(bc, task):
    run = FakeRun()
    rows = [row for row, *_ in small_rest(bc, task, run, grow=3, improve=(0, 1))]
    assert [(row["grow"], row["improve"]) for row in rows] == [(1, 0), (2, 1), (3, 1)]
    assert [step for step in run.steps if "improve" in step] == [
        "improve-1-0", "improve-2-1", "improve-3-1"]


def test_without_a_grow_there_is_only_the_baseline(bc, task):
    run = FakeRun()
    assert small_rest(bc, task, run, grow=0) == [] and run.steps == [] and run.events == []
    row, _ = online_end(bc, task, replace(SMALL, grow=0), run)
    assert row["name"] == "PPO" and row["samples"] > 0 and run.steps == ["ppo-1"]


def test_an_empty_selection_is_skipped_and_reported(bc, task):
    run = FakeRun()
    (_, before, _), (row, after, _) = small_rest(bc, task, run, thresholds=(1.0,))
    assert (row["kept_samples"], row["kept_data"]) == (0, 0)
    assert torch.equal(weights(before), weights(after))
    assert set(row) == ROW and row["improve"] == 1
    warnings = [event["text"] for event in run.events if event["event"] == "warning"]
    assert len(warnings) == 1 and "improve-1-1" in warnings[0] and "nothing" in warnings[0]
    assert (row["updates"], row["tokens_trained"], row["train_seconds"]) == (0, 0, 0)


def with_base(task):
    return replace(task, base=(some_policy(9), BASE_HP))


@pytest.mark.parametrize("start", ["bc", "base"])
def test_where_each_improve_starts(start, bc, task, monkeypatch):
    """At BC or at its base, and not at the policy before; base is trained as BC was."""
    task = with_base(task)
    begin = weights({"bc": bc, "base": task.base[0]}[start])
    calls = spy(monkeypatch, "improve", lambda args: weights(args[0]))
    grows = spy(monkeypatch, "sample_outputs", lambda args: weights(args[0]))
    yielded = [(row, weights(policy)) for row, policy, _ in
               small_rest(bc, task, start=start, grow=2, improve=(2, 1), checkpoint="last")]
    assert len(calls) == len(yielded) == 4
    for call, (row, after) in zip(calls, yielded):
        assert torch.equal(call["before"], begin) and not torch.equal(after, begin)
        hp = SMALL.training(lr=SMALL.lr * 0.8 ** row["improve"])
        assert call["args"][4] == (BASE_HP if start == "base" else hp)
        assert call["args"][6].reference.bc is bc
        assert row["updates"] == call["args"][4].updates
    # what it starts from is copied, and stays
    assert torch.equal(weights({"bc": bc, "base": task.base[0]}[start]), begin)
    # Grow samples from what came out, not from where it started
    grows = [call for call in grows if call["args"][2] == SMALL.samples]
    assert torch.equal(grows[0]["before"], weights(bc))
    assert torch.equal(grows[1]["before"], yielded[2][1])


@pytest.mark.parametrize("start", ["previous", "bc", "base"])
def test_with_nothing_kept_the_previous_policy_stays(start, bc, task):
    (_, before, _), (row, after, _) = small_rest(bc, with_base(task), thresholds=(1.0,),
                                                 checkpoint="last", start=start)
    assert row["kept_samples"] == row["tokens_trained"] == 0
    assert torch.equal(weights(after), weights(before))
    assert not torch.equal(weights(after), weights(bc))


def test_an_improve_can_end_with_its_last_update(bc, task, monkeypatch):
    """Where each is worse, the best is the start; the last is the last, and D_eval unseen."""
    looks, grows = spy(monkeypatch, "mean_reward"), spy(monkeypatch, "sample_outputs")

    def run(checkpoint):
        del looks[:], grows[:]
        rewards = iter(np.linspace(0.9, 0.5, 9))
        falling = replace(task, reward=lambda sources, outputs: len(outputs) * [next(rewards)])
        (row, policy, D_g), = small_rest(bc, falling, unfiltered=False, checkpoint=checkpoint)
        on_eval = [call for call in grows if call["args"][1] is task.eval_sources]
        assert len(on_eval) == len(looks) and row["tokens_trained"] > 0
        return row, policy, D_g, len(looks)

    row, policy, _, n = run("best")
    assert torch.equal(weights(policy), weights(bc)) and n == 2 and row["updates"] == 0
    row, policy, D_g, n = run("last")
    assert n == 0 and row["updates"] == SMALL.updates
    alone = copy.deepcopy(bc)
    improve(alone, D_g, task.sources, SMALL, SMALL.training(lr=0.8 * SMALL.lr),
            seed_of("improve", SMALL.seed, 1, 1))
    assert torch.equal(weights(policy), weights(alone))
    assert not torch.equal(weights(policy), weights(bc))


def test_where_all_rewards_are_equal_an_improve_keeps_what_it_has_trained(bc, task):
    level = replace(task, reward=lambda sources, outputs: np.full(len(outputs), 0.5))
    ends = [small_rest(bc, level, unfiltered=False, checkpoint=how)[0] for how in ("best", "last")]
    assert torch.equal(*(weights(policy) for _, policy, _ in ends))
    assert [row["updates"] for row, *_ in ends] == 2 * [SMALL.updates]


def test_a_first_threshold_below_the_mean_is_warned_of(bc, task):
    for name, tau, warned in [("threshold", 0.01, True), ("threshold", 0.99, False),
                              ("quantile", 0.0, True), ("quantile", 0.99, False),
                              ("percentile", 0.0, False)]:
        run = FakeRun()
        rest.grow(bc, task, replace(SMALL, filter=name, thresholds=(tau,)), 1, run)
        assert any("not above the mean" in event.get("text", "") for event in run.events) == warned


def test_same_seed_same_run(bc, task, monkeypatch):
    """Whatever else the program has drawn; and another seed is another run."""
    ends = []
    values = spy(monkeypatch, "fit_behaviour_value")
    for seed in (1, 2):
        torch.manual_seed(seed)
        unfiltered, filtered = small_rest(bc, task, loss="oac")  # the first Improve is by BC
        networks = [unfiltered[1], filtered[1], values[-1]["result"]]
        ends.append(torch.cat([weights(network) for network in networks]))
    assert torch.equal(*ends) and len(values) == 2
    other = small_rest(bc, task, seed=6)[-1]
    assert not same(filtered[2], other[2])


def test_the_other_losses_get_the_networks_they_need(bc, task, monkeypatch):
    for loss in ("gold", "oac", "bvmpo"):
        run = FakeRun()
        with pytest.MonkeyPatch.context() as patch:
            calls = spy(patch, "improve")
            rows = [row for row, *_ in small_rest(bc, task, run, loss=loss, grow=2, improve=(1, 1))]
        assert [row["loss"] for row in rows] == ["bc", loss, loss]
        used = [call["args"][6] for call in calls]
        # the first Improve of Grow alone is always by BC
        assert [type(x) for x in used] == [losses.LOSSES[name] for name in ("bc", loss, loss)]
        references = [x.reference for x in used]
        assert all(x.bc is bc for x in references)
        assert torch.equal(weights(references[1].behaviour), weights(bc))
        assert torch.equal(weights(references[2].behaviour), weights(calls[1]["args"][0]))
        assert all((x.value is not None) == (loss != "gold") for x in references)
        assert ("value-2" in run.steps) == (loss != "gold")
        assert np.isfinite([row["reward"] for row in rows]).all()


def test_a_grow_of_some_sources(bc, task):
    """Its samples belong to the sources that they say they do; all of D is still in D_g."""
    _, (row, _, D_g) = small_rest(bc, task, grow_sources=20)
    drawn = D_g.select(~D_g.human)
    assert len(set(drawn.source)) == 20 and len(drawn) == 40 == row["samples"]
    assert D_g.human.sum() == len(task.data)
    np.testing.assert_allclose(logprobs_of(bc, task.sources, drawn), drawn.logprobs, atol=1e-5)
    chosen = [set(rest.choose_sources(task, replace(SMALL, grow_sources=20), g)) for g in (1, 2)]
    assert chosen[0] == set(drawn.source) and chosen[0] != chosen[1]
    assert list(rest.choose_sources(task, replace(SMALL, grow_sources=10**6), 1)) == list(range(60))


def test_a_small_Grow_is_drawn_at_once(bc, task):
    drawn = grown_samples(bc, task, SETTINGS, 2)
    assert same(drawn, sample_outputs(bc, task.sources, 6, ("grow", SETTINGS.seed, 2, 0, 0),
                                      MAX_LEN, 0.8, batch_size=256))


@pytest.mark.parametrize("temperatures, samples, shares", [
    ((0.5, 1.0), 6, [3, 3]), ((0.3, 1.0, 2.0), 5, [2, 2, 1]), ((0.3, 1.0, 2.0), 2, [1, 1]),
    ((1.0, 1.0), 4, [2, 2]), ((0.5, 1.0), 1, [1])], ids=str)
def test_temperatures_share_the_samples(temperatures, samples, shares, bc, task, monkeypatch):
    """The first draws with the seeds that it has alone, each other one with its own."""
    calls = spy(monkeypatch, "sample_outputs")
    settings = replace(SETTINGS, temperature=temperatures, samples=samples, grow_sources=20)
    drawn = grown_samples(bc, task, settings)
    assert [(call["args"][2], call["args"][5]) for call in calls] == list(
        zip(shares, temperatures))
    assert sum(shares) == samples and len({call["args"][3] for call in calls}) == len(shares)
    chosen = rest.choose_sources(task, settings, 1)
    assert list(np.unique(drawn.source)) == list(chosen) and len(drawn) == 20 * samples
    assert (np.bincount(drawn.source)[chosen] == samples).all()
    n = 20 * shares[0]
    alone = grown_samples(bc, task, replace(settings, temperature=temperatures[:1],
                                            samples=shares[0]))
    assert same(drawn.select(np.arange(n)), alone)
    if temperatures == (1.0, 1.0):  # then the halves are alike, and not the same
        halves = [[list(y) for y in drawn.targets(range(k, k + n))] for k in (0, n)]
        assert halves[0] != halves[1]


@pytest.mark.parametrize("size", [1, 7, 50, 10**6])
def test_a_Grow_in_parts_is_of_the_same_sources_in_the_same_order(size, bc, task, monkeypatch):
    settings = replace(SETTINGS, temperature=(0.5, 1.0), samples=5, grow_sources=20)
    whole = grown_samples(bc, task, settings)
    small_parts(monkeypatch, size)
    calls = spy(monkeypatch, "sample_outputs")
    drawn, chosen = grown_samples(bc, task, settings), rest.choose_sources(task, settings, 1)
    parts = [call["result"] for call in calls]
    assert len(parts) == sum(-(-20 // max(1, size // n)) for n in (3, 2))
    assert max(map(len, parts)) <= max(size, 3)  # the outputs of a source stay together
    np.testing.assert_array_equal(drawn.tokens, np.concatenate([part.tokens for part in parts]))
    assert list(drawn.source) == [*np.repeat(chosen, 3), *np.repeat(chosen, 2)]
    np.testing.assert_array_equal(drawn.source, whole.source)
    assert drawn.source.dtype == np.int32 and np.isnan(drawn.reward).all()
    np.testing.assert_allclose(logprobs_of(bc, task.sources, drawn), drawn.logprobs, atol=1e-5)


class Parts(FakeRun):
    """Of a step in parts, only some of the parts are made."""

    def __init__(self, chosen):
        super().__init__()
        self.chosen = chosen

    def parts(self, name, items, look=None):
        items = [items[k] for k in self.chosen] if name.startswith("grow") else items
        yield from super().parts(name, items, look)


def test_each_part_of_a_Grow_has_random_numbers_of_its_own(task, monkeypatch):
    """Whichever is drawn first: so a Grow that goes on is the one that was begun."""
    small_parts(monkeypatch, 4)
    alike = replace(task, sources=8 * task.sources[:1],
                    data=task.data.select(np.arange(8)))
    settings = replace(SETTINGS, temperature=(1.0, 1.0), samples=8)
    drawn = lambda chosen: rest.grow(some_policy(), alike, settings, 1, Parts(chosen))[1]
    whole = drawn(range(16))
    assert list(whole.source) == [i for i in [*range(8), *range(8)] for _ in range(4)]
    parts = list(whole.parts())
    assert len({tuple(map(tuple, part.targets())) for part in parts}) == 16
    assert same(drawn(range(15, -1, -1)), Pairs.join(parts[::-1]))


@pytest.mark.parametrize("human", ["filtered", "out"])
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_D_g_scored_in_parts_is_D_g_scored_at_once(size, distinct, human, bc, task, monkeypatch):
    settings, asked = replace(SMALL, human_data=human, distinct=distinct), []
    earlier = grown_samples(bc, task, settings)

    def counted(sources, outputs):
        asked.append(len(outputs))
        return oracle(sources, outputs)

    samples = Pairs.join([earlier, grown_samples(bc, task, settings, 2)])
    samples = samples.select(first_of_equal(samples)) if distinct else samples
    expected = score(Pairs.join([samples, *([task.data] if human != "out" else [])]), task.sources,
                     oracle)
    small_parts(monkeypatch, size)
    monkeypatch.setattr(rest, "PART", 10**6)  # drawn at once, as before
    D_g, _ = rest.grow(bc, replace(task, reward=counted), settings, 2, FakeRun(), [earlier])
    assert same(D_g, expected)
    assert max(asked) <= size and sum(asked) == len(expected)
    assert (len(samples) < 240) == distinct


@pytest.mark.parametrize("keep", [False, True])
def test_the_samples_of_earlier_grows_can_be_kept(keep, bc, task, monkeypatch):
    drawn, run = spy(monkeypatch, "sample_outputs"), FakeRun()
    yielded = small_rest(bc, task, run, keep_samples=keep, grow=3, improve=(1,), unfiltered=False)
    drawn = [call for call in drawn if call["args"][2] == SMALL.samples]
    for g, (row, _, D_g) in enumerate(yielded, 1):
        expected = Pairs.join([call["result"] for call in drawn[0 if keep else g - 1 : g]])
        samples = D_g.select(~D_g.human)
        assert same(replace(samples, reward=expected.reward), expected)
        np.testing.assert_array_equal(
            D_g.reward, oracle([task.sources[i] for i in D_g.source], D_g.targets()))
        assert D_g.human.sum() == len(task.data)  # D is in it once
        assert row["kept_samples"] == pytest.approx((samples.reward > 0.25).mean())
        assert row["samples"] == g * 2 * len(task.sources)  # what was drawn, kept or not
        assert row["tokens_drawn"] == sum(len(call["result"].tokens) for call in drawn[:g])
    assert len(D_g) == (3 if keep else 1) * 120 + 60


def test_the_speed_of_a_grow_is_of_its_own_samples(bc, task, monkeypatch):
    """Also where D_g holds those of earlier Grows, which were drawn in other seconds."""
    drawn, run = spy(monkeypatch, "sample_outputs"), FakeRun()
    small_rest(bc, task, run, keep_samples=True, grow=2)
    drawn = [call for call in drawn if call["args"][2] == SMALL.samples]
    speeds = [event["tokens_per_second"] for event in run.events if event["event"] == "grow"]
    assert speeds == [len(call["result"].tokens) / 2.0 for call in drawn]


@pytest.mark.parametrize("human", ["filtered", "whole", "out"])
def test_what_becomes_of_D(human, bc, task):
    """Filtered like the samples, kept whole, or left out of D_g."""
    run = FakeRun()
    for row, _, D_g in small_rest(bc, task, run, human_data=human, thresholds=(0.75,)):
        assert D_g.human.sum() == (0 if human == "out" else len(task.data))
        samples = D_g.reward[~D_g.human]
        unfiltered = row["improve"] == 0
        assert row["kept_samples"] == pytest.approx(1 if unfiltered else (samples > 0.75).mean())
        shares = {"filtered": (D_g.reward[D_g.human] > 0.75).mean() if D_g.human.any() else None,
                  "whole": 1, "out": None}
        assert row["kept_data"] == (1 if unfiltered and human != "out" else shares[human])
    assert 0 < row["kept_samples"] < 1 and (human != "filtered" or 0 < row["kept_data"] < 1)
    event, = [event for event in run.events if event["event"] == "grow"]
    assert (event["reward_data"] is None) == (human == "out")


def test_max_per_source_and_inclusive_reach_the_improve(bc, task, monkeypatch):
    calls = spy(monkeypatch, "improve")
    for most, n in [(1, 1), (2, 2), (0, 6)]:
        small_rest(bc, task, unfiltered=False, samples=6, human_data="out", inclusive=True,
                   thresholds=(0.5,), max_per_source=most)
        kept = kept_by(calls[-1])
        assert set(kept.reward) == {0.5, 1.0} and np.bincount(kept.source).max() == n


def test_a_new_reward_for_each_further_grow(bc, task):
    """Made before the Grow from the policy that it samples from; and from then on the reward."""
    run, asked = FakeRun(), []

    def scaled(factor):
        return lambda sources, outputs: factor * oracle(sources, outputs)

    def refresh(policy, g):
        asked.append((g, weights(policy)))
        run.steps.append(f"refresh-{g}")
        return scaled(1 / g)

    new = replace(task, refresh=refresh)
    yielded = [(row, weights(policy), policy, D_g) for row, policy, D_g in rest.rest(
        bc, new, replace(SMALL, grow=3, improve=(1,), thresholds=(0.1,), keep_samples=True), run)]
    assert [g for g, _ in asked] == [2, 3]
    assert torch.equal(asked[0][1], yielded[1][1]) and torch.equal(asked[1][1], yielded[2][1])
    assert [step for step in run.steps if "improve" not in step] == [
        "grow-1", "score-1", "refresh-2", "grow-2", "score-2", "refresh-3", "grow-3", "score-3"]
    for row, _, policy, D_g in yielded:
        reward = scaled(1 / row["grow"])
        # all of D_g, the samples of earlier Grows too
        np.testing.assert_array_equal(
            D_g.reward, reward([task.sources[i] for i in D_g.source], D_g.targets())
            .astype(np.float32))
        assert row["reward"] == evaluate(policy, bc, replace(task, reward=reward), SMALL)["reward"]
    assert len({row["reward"] for row, *_ in yielded[1:]}) == 3


def test_an_improve_looks_at_the_new_reward(bc, task, monkeypatch):
    looks = spy(monkeypatch, "mean_reward")
    new = replace(task, refresh=lambda policy, g: lambda sources, outputs: np.ones(len(outputs)))
    small_rest(bc, new, grow=2, human_data="out")
    values = [call["result"] for call in looks]
    assert len(values) == 6 and max(values[:4]) < 1 and values[4:] == [1, 1]


def test_equal_outputs_can_be_kept_only_once(bc, task):
    _, (row, _, D_g) = small_rest(bc, task, samples=8, distinct=True)
    drawn = D_g.select(~D_g.human)
    assert first_of_equal(drawn).all() and len(drawn) == row["distinct_samples"] < 480
    plain = small_rest(bc, task, samples=8)[1][0]
    assert plain["distinct_samples"] == row["distinct_samples"]
    assert plain["samples"] == row["samples"] == 480  # what was drawn, and so what it cost
    assert plain["tokens_drawn"] == row["tokens_drawn"]


def opened(folder, **settings):
    """A run in the folder, or that run gone on with."""
    return Run(RunSettings(out=str(folder), resume=True, **settings), "x")


class Killed(BaseException):
    """Passes through every handler, like the process's end."""


def logged(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def failing(function, at):
    """The function, killed instead of its call number `at`."""
    calls = itertools.count(1)

    def called(*args, **kwargs):
        if next(calls) == at:
            raise Killed
        return function(*args, **kwargs)

    return called


def test_a_run_in_parts_that_is_killed_goes_on_with_the_next_part(bc, task, tmp_path, monkeypatch):
    """A Grow of three parts, killed in the second; five to score, killed in the fourth."""
    small_parts(monkeypatch, 50)

    def went(run, reward=oracle):
        with run:
            return [(untimed(row), weights(policy), D_g) for row, policy, D_g in
                    small_rest(bc, replace(task, reward=reward), run)]

    def parts_made():
        return {path.name: size_of(path)["parts"] for path in (tmp_path / "steps").iterdir()}

    whole = [(untimed(row), weights(policy), D_g) for row, policy, D_g in small_rest(bc, task)]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rest, "sample_outputs", failing(sample_outputs, 2))
        went(opened(tmp_path))
    assert parts_made() == {"grow-1.unfinished": 1}
    calls = spy(monkeypatch, "sample_outputs")
    with pytest.raises(Killed):
        went(opened(tmp_path), failing(oracle, 5))  # the first call of all is a trial
    assert parts_made() == {"grow-1": 3, "score-1.unfinished": 3} and len(calls) == 2
    run = opened(tmp_path)
    resumed = went(run)
    assert len(calls) > 2 and SMALL.samples not in [call["args"][2] for call in calls[2:]]
    for (row, policy, D_g), (row_too, policy_too, D_g_too) in zip(whole, resumed, strict=True):
        assert row == row_too and torch.equal(policy, policy_too) and same(D_g, D_g_too)
    assert [event["grow"] for event in logged(run) if event["event"] == "grow"] == [1]


# --------------------------------------------------------------------------------- the baseline


def online_end(bc, task, settings, run=None):
    """The last (row, policy) of the baseline."""
    return list(rest.online(bc, task, settings, run or FakeRun()))[-1]


def test_online(bc, task, monkeypatch):
    before = weights(bc)
    grows = spy(monkeypatch, "sample_outputs")
    improves = spy(monkeypatch, "improve", lambda args: weights(args[0]))
    run = FakeRun()
    row, policy = online_end(bc, task, replace(SETTINGS, ppo_samples=200), run)
    assert set(row) == ROW and run.steps == ["ppo-1"]
    assert (row["name"], row["loss"], row["grow"]) == ("PPO", "ppo", 6)
    grows = [call for call in grows if call["args"][2] == SETTINGS.ppo_group]
    assert len(grows) == len(improves) == 6
    assert row["samples"] == sum(len(call["result"]) for call in grows) == 192 <= 200
    assert 0 < row["distinct_samples"] <= row["samples"]
    assert len({call["args"][3] for call in grows}) == 6
    places = {id(x): i for i, x in enumerate(task.sources)}
    chosen = [[places[id(x)] for x in call["args"][1]] for call in grows]
    assert len(set(map(tuple, chosen))) == 6 and all(len(set(part)) == 8 for part in chosen)
    for k, (grown, call) in enumerate(zip(grows, improves)):
        pairs, sources, hp = call["args"][1], call["args"][2], call["args"][4]
        groups = pairs.reward.reshape(-1, SETTINGS.ppo_group)
        assert groups.shape == (8, 4) and (pairs.source.reshape(8, 4).T == np.arange(8)).all()
        np.testing.assert_allclose(groups.mean(1), 0, atol=1e-6)
        raw = oracle([sources[i] for i in pairs.source], pairs.targets()).reshape(8, 4)
        centred = raw - raw.mean(1, keepdims=True)
        if raw.std() > 0:
            np.testing.assert_allclose(groups * centred.std(), centred * groups.std(), atol=1e-4)
        np.testing.assert_array_equal(pairs.logprobs, grown["result"].logprobs)
        loss = call["args"][6]
        assert type(loss) is losses.PPO and loss.reference.bc is bc
        assert not hp.dropout and hp.updates == SETTINGS.ppo_updates
        assert torch.equal(call["before"], before) == (k == 0)
        assert call["kwargs"]["optimizer"] is improves[0]["kwargs"]["optimizer"] is not None
    assert torch.equal(weights(bc), before)
    assert not torch.equal(weights(policy), before)
    assert row["kl_to_bc"] == evaluate(policy, bc, task, SETTINGS)["kl_to_bc"]


def test_online_raises_the_reward_and_its_anchor_holds_it(bc, task):
    settings = replace(SETTINGS, ppo_samples=1280, ppo_batch=128, ppo_updates=4, ppo_lr=2e-3)
    base = evaluate(bc, bc, task, settings)["reward"]
    free, _ = online_end(bc, task, replace(settings, ppo_kl=0.0))
    held, _ = online_end(bc, task, replace(settings, ppo_kl=10.0))
    assert free["reward"] > base + 0.1
    assert held["kl_to_bc"] < 0.2 * free["kl_to_bc"]


@pytest.mark.parametrize("budget, batch, group", [(0, 32, 4), (8, 32, 4), (100, 24, 8)])
def test_online_draws_no_more_than_its_budget(budget, batch, group, bc, task):
    settings = replace(SETTINGS, ppo_samples=budget, ppo_batch=batch, ppo_group=group, samples=2)
    row, _ = online_end(bc, task, settings)
    assert row["samples"] <= (budget or 2 * len(task.sources))
    assert row["samples"] >= (budget or 2 * len(task.sources)) - batch


def test_online_with_few_sources(bc):
    """A batch that holds more groups than there are sources."""
    few = some_task(5)
    row, _ = online_end(bc, few, replace(SETTINGS, ppo_samples=64, ppo_batch=32))
    assert 0 < row["samples"] <= 64


def test_every_sample_of_a_ppo_round_is_used(bc, task, monkeypatch):
    """Also where the sources are longer than the outputs."""
    watch_batches(monkeypatch, seen := [])
    long = replace(task, sources=[np.array([x[0], *4 * [FILLER], EOS]) for x in task.sources])
    online_end(bc, long, replace(SETTINGS, ppo_samples=32))
    batches, = seen
    assert {int(i) for _, index in batches for i in index} == set(range(32))
    assert len(batches[0][0].token_counts) == 32


LONG_WAY = replace(SETTINGS, ppo_samples=200)  # six rounds


@pytest.fixture(scope="module")
def long_way(bc, task):
    """long_way(n): online RL in n rows -> what it yielded, and its run."""
    @functools.cache
    def went(n):
        run, settings = FakeRun(), replace(LONG_WAY, ppo_rows=n)
        return [(row, copy.deepcopy(policy)) for row, policy in rest.online(
            bc, task, settings, run)], run

    return went


def untimed(row, *also):
    return {k: v for k, v in row.items() if not k.endswith("seconds") and k not in also}


def test_rows_along_the_way_change_nothing(long_way):
    """What each row has of its own adds up; the rest has been counted from the start."""
    (whole, end), = long_way(1)[0]
    for n, rounds in [(3, [2, 4, 6]), (4, [2, 4, 5, 6]), (99, [1, 2, 3, 4, 5, 6])]:
        yielded, run = long_way(n)
        rows, policies = zip(*((row, weights(policy)) for row, policy in yielded))
        assert run.steps == [f"ppo-{k + 1}" for k in range(len(rounds))]
        assert [row["grow"] for row in rows] == rounds and all(set(row) == ROW for row in rows)
        assert [row["samples"] for row in rows] == [32 * k for k in rounds]
        assert torch.equal(policies[-1], weights(end))
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(policies))
        own = ("updates", "tokens_trained")
        assert untimed(rows[-1], *own) == untimed(whole, *own)
        for key in own:
            assert sum(row[key] for row in rows) == whole[key]
        for key in ("samples", "distinct_samples", "tokens_drawn", "grow_seconds"):
            assert all(a[key] < b[key] for a, b in itertools.pairwise(rows)), key
        logged = [event["round"] for event in run.events if event["event"] == "ppo"]
        assert logged == [0, 1, 2, 3, 4, 5]


def test_a_row_of_the_baseline_describes_the_policy_beside_it(bc, task, long_way):
    for row, policy in long_way(3)[0]:
        seen = evaluate(policy, bc, task, LONG_WAY)
        assert {key: row[key] for key in seen} == seen and row["kl_to_bc"] != 0


@pytest.mark.parametrize("updates", [1, 2, 8])
def test_what_the_baseline_drew_and_trained_on_is_counted(updates, bc, task, monkeypatch):
    """With many updates the last of a round begin its samples again: trained on twice."""
    grows, improves = spy(monkeypatch, "sample_outputs"), spy(monkeypatch, "improve")
    begun = 0
    settings = replace(LONG_WAY, ppo_samples=128, ppo_rows=2, ppo_updates=updates)
    for row, _ in rest.online(bc, task, settings):
        drawn = [call["result"] for call in grows if call["args"][2] == LONG_WAY.ppo_group]
        assert row["tokens_drawn"] == sum(len(pairs.tokens) for pairs in drawn)
        assert row["samples"] == sum(map(len, drawn))
        new, begun = improves[begun:], len(improves)
        assert row["updates"] == sum(call["result"]["updates"] for call in new) == 2 * updates
        assert row["tokens_trained"] == sum(call["result"]["tokens"] for call in new)
        assert row["grow_seconds"] > 0 and row["train_seconds"] > 0
        assert row["seconds"] >= row["train_seconds"]


@pytest.mark.parametrize("how", ["stopped after a part", "killed inside of the next"])
def test_the_baseline_goes_on_after_its_last_finished_part(how, bc, task, long_way, tmp_path):
    """With the policy, the optimiser and the counts that it had: as if it had not been stopped."""
    settings = replace(LONG_WAY, ppo_rows=3)

    def went(reward, run):
        with run:
            return [(untimed(row), weights(policy)) for row, policy in rest.online(
                bc, replace(task, reward=reward), settings, run)]

    whole = [(untimed(row), weights(policy)) for row, policy in long_way(3)[0]]
    stop = "ppo-1" if how.startswith("stopped") else ""
    # two rounds and a row are four calls of the reward, then another round
    cut = oracle if stop else failing(oracle, 6)
    with pytest.raises(Stopped if stop else Killed):
        went(cut, opened(tmp_path, stop_after=stop))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["ppo-1.pt"]
    resumed = opened(tmp_path)
    torch.manual_seed(77)  # whatever the process has drawn
    parts = went(oracle, resumed)
    assert [row for row, _ in parts] == [row for row, _ in whole]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(parts, whole))
    rounds = [event["round"] for event in logged(resumed) if event["event"] == "ppo"]
    assert rounds == [0, 1, 2, 3, 4, 5]


def test_one_update_a_round_is_reinforce(bc, task):
    """The step of a round is the gradient of Σ A log π per token, A centred on each source."""
    policy, chosen = copy.deepcopy(bc), np.array([4, 9, 2, 30])
    settings = replace(SETTINGS, ppo_updates=1, ppo_kl=0.0, ppo_group=8)
    hp = settings.training(updates=1, lr=1.0, warmup=0, dropout=False, clip=1e9)
    drawn, seconds, done = rest.ppo_round(policy, bc, chosen, task, settings, hp,
                                          torch.optim.SGD(policy.parameters(), 1.0), 3)
    assert done["tokens"] == len(drawn.tokens)
    assert list(drawn.source) == list(np.repeat(chosen, 8)) and seconds > 0
    np.testing.assert_array_equal(
        drawn.reward, oracle([task.sources[i] for i in drawn.source], drawn.targets()))
    groups = drawn.reward.reshape(4, 8)
    advantages = ((groups - groups.mean(1, keepdims=True)) / groups.std()).ravel()
    assert (advantages > 0).any() and (advantages < 0).any()
    plain = copy.deepcopy(bc).eval()
    gain = sum(float(a) * token_logprobs(plain, pad([task.sources[i]]), pad([y])).sum()
               for a, i, y in zip(advantages, drawn.source, drawn.targets()))
    (gain / len(drawn.tokens)).backward()
    for moved, was in zip(policy.parameters(), plain.parameters()):
        step = torch.zeros_like(was) if was.grad is None else was.grad
        torch.testing.assert_close(moved.detach() - was.detach(), step, atol=2e-6, rtol=1e-3)
    assert (weights(policy) - weights(bc)).abs().max() > 1e-3


def test_a_reward_is_never_asked_about_nothing(bc, task, monkeypatch):
    """Of parts that hold nothing new, for instance."""
    small_parts(monkeypatch, 7)
    settings, asked = replace(SMALL, distinct=True, temperature=(0.0, 0.0), samples=2), []

    def counted(sources, outputs):
        asked.append(len(outputs))
        return oracle(sources, outputs)

    D_g, samples = rest.grow(bc, replace(task, reward=counted), settings, 1, FakeRun())
    assert min(asked) > 0 and len(samples) == 120 and (~D_g.human).sum() == 60


def test_grow_copies_a_part_only_when_it_is_scored(bc, task, monkeypatch):
    small_parts(monkeypatch, 50)
    settings, order = replace(SMALL, distinct=True), []
    choose = Pairs.select

    def rewarded(sources, outputs):
        order.append("score")
        return oracle(sources, outputs)

    def counted(pairs, index):
        if np.asarray(index).dtype == bool:
            order.append("copy")
        return choose(pairs, index)

    monkeypatch.setattr(Pairs, "select", counted)
    rest.grow(bc, replace(task, reward=rewarded), settings, 1, FakeRun())
    assert order == 3 * ["copy", "score"] + 2 * ["score"]  # of samples; of D
