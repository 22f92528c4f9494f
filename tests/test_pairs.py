"""pairs.py: the record of pairs, in memory and as a folder of flat files that are mapped."""

import json
import mmap
import os
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest

from infra.errors import UserError
from infra.pairs import DTYPES, PART, Pairs, Parts, flat_file, size_of
from infra.storage import atomic_write
from model import EOS


def some_pairs():
    """Five pairs, an empty target among them."""
    targets = [[5, 6, EOS], [7, EOS], [], [8, 9, 10, EOS], [EOS]]
    logprobs = [[-0.1 * (i + t) for t in range(len(y))] for i, y in enumerate(targets)]
    return targets, Pairs.of([3, 0, 0, 2, 1], targets, logprobs, [0.1, 0.2, 0.3, 0.4, 0.5],
                             human=np.array([True, False, True, False, False]))


def random_pairs(n, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 7, n)
    return Pairs.of(rng.integers(0, 9, n), [rng.integers(1, 99, length) for length in lengths],
                    [rng.normal(size=length) for length in lengths], rng.random(n),
                    rng.random(n) < 0.3)


def assert_same(a, b):
    for f in fields(Pairs):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert x.dtype == y.dtype, f.name
        np.testing.assert_array_equal(x, y, err_msg=f.name)


def rows(pairs):
    """Each pair as plain values."""
    cut = np.split(pairs.logprobs, pairs.starts[1:-1])
    return [(int(pairs.source[i]), y.tolist(), cut[i].tolist(), float(pairs.reward[i]),
             bool(pairs.human[i])) for i, y in enumerate(pairs.targets())]


def saved(folder, *parts):
    """The parts, appended one after the other -> the Pairs loaded from there."""
    for part in parts:
        part.append_to(folder)
    return Pairs.load(folder)


# ------------------------------------------------------------------------------------- in memory


def test_pairs_are_what_went_in():
    targets, pairs = some_pairs()
    assert len(pairs) == 5
    assert [list(y) for y in pairs.targets()] == targets
    assert [list(y) for y in pairs.targets([3, 1])] == [targets[3], targets[1]]
    assert list(pairs.lengths) == [3, 2, 0, 4, 1]
    assert list(pairs.target(2)) == []
    assert [pairs.source.dtype, pairs.tokens.dtype, pairs.starts.dtype] == [
        np.int32, np.int32, np.int64]
    assert [pairs.logprobs.dtype, pairs.reward.dtype, pairs.human.dtype] == [
        np.float32, np.float32, bool]
    at = pairs.starts[3]
    np.testing.assert_allclose(pairs.logprobs[at : at + 4], [-0.3, -0.4, -0.5, -0.6])


def test_pairs_are_not_scored_until_they_are():
    pairs = Pairs.of([0, 1], [[3, EOS], [EOS]])
    assert np.isnan(pairs.reward).all() and len(pairs.reward) == 2
    assert not pairs.human.any()
    assert (pairs.logprobs == 0).all() and len(pairs.logprobs) == 3
    assert Pairs.of(range(2), [[3, EOS], [EOS]], human=True).human.all()


def test_no_pairs_at_all():
    empty = Pairs.of([], [])
    assert len(empty) == 0 and empty.targets() == [] and list(empty.starts) == [0]
    _, pairs = some_pairs()
    assert_same(pairs.select(np.zeros(5, bool)), empty)
    assert_same(Pairs.join([empty, pairs, empty]), pairs)
    assert list(empty.parts()) == []


@pytest.mark.parametrize("index", [
    [3, 0, 0, 2], [-1, 2], [], np.array([4, 3, 2, 1, 0]), slice(1, 4),
    np.array([True, False, True, False, True])])
def test_select_takes_these_pairs_in_this_order(index):
    targets, pairs = some_pairs()
    chosen = pairs.select(index)
    expected = list(np.arange(5)[index])
    assert [list(y) for y in chosen.targets()] == [targets[i] for i in expected]
    for row, i in enumerate(expected):
        assert chosen.source[row] == pairs.source[i]
        assert chosen.reward[row] == pairs.reward[i]
        assert chosen.human[row] == pairs.human[i]
        np.testing.assert_array_equal(chosen.logprobs[chosen.starts[row] : chosen.starts[row + 1]],
                                      pairs.logprobs[pairs.starts[i] : pairs.starts[i + 1]])
    assert chosen.starts.dtype == np.int64


def test_select_copies():
    _, pairs = some_pairs()
    chosen = pairs.select(np.ones(5, bool))
    chosen.tokens[:], chosen.reward[:], chosen.source[:] = 99, 0.0, 99
    assert_same(pairs, some_pairs()[1])


def test_join_is_one_after_the_other():
    _, pairs = some_pairs()
    parts = [pairs.select([0, 1]), pairs.select([2]), pairs.select([3, 4])]
    assert_same(Pairs.join(parts), pairs)


def test_padded_lengths_are_those_of_the_longer_side():
    sources = [[3, EOS], [3, 4, 5, 6, EOS], [EOS], []]
    _, pairs = some_pairs()  # targets of 3, 2, 0, 4 and 1 tokens, of the sources 3, 0, 0, 2 and 1
    assert list(pairs.padded_lengths(sources)) == [3, 2, 2, 4, 5]
    assert list(pairs.select([4, 0]).padded_lengths(sources)) == [5, 3]
    assert len(pairs.select([]).padded_lengths(sources)) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 99])
def test_parts_are_all_pairs_in_order_and_share_their_memory(size):
    _, pairs = some_pairs()
    parts = list(pairs.parts(size))
    assert [len(part) for part in parts] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    assert_same(Pairs.join(parts), pairs)
    for part in parts:
        assert part.starts[0] == 0 and part.starts[-1] == len(part.tokens) == len(part.logprobs)
        for name in DTYPES.keys() - {"starts"}:
            own = getattr(part, name)
            assert np.shares_memory(own, getattr(pairs, name)) or not len(own), name
    parts[0].reward[0] = 0.75
    assert pairs.reward[0] == 0.75


def test_a_part_is_of_the_size_of_PART_unless_told():
    n = PART + 1
    pairs = Pairs(np.arange(n, dtype=np.int32), np.zeros(0, np.int32), np.zeros(n + 1, np.int64),
                  np.zeros(0, np.float32), np.zeros(n, np.float32), np.zeros(n, bool))
    assert [len(part) for part in pairs.parts()] == [PART, 1]


def test_parts_of_several_pairs_leave_out_equal_samples_where_told(monkeypatch):
    """Of all pools the first of equal ones; a person's pair stays, and a sample equal to it too."""
    monkeypatch.setattr(Pairs, "parts", lambda pairs, size=2, parts=Pairs.parts: parts(pairs, size))
    early = Pairs.of([0, 0, 1], [[5, EOS], [6, EOS], [5, EOS]])
    late = Pairs.of([0, 1, 1, 1], [[6, EOS], [6, EOS], [6, EOS], [7, EOS]])
    human = Pairs.of([1, 0, 0], [[7, EOS], [8, EOS], [8, EOS]], human=True)
    pools = [early, late, human]
    every = [part for pairs in pools for part in pairs.parts(2)]
    plain, distinct = Parts(pools), Parts(pools, distinct=True)
    assert len(plain) == len(distinct) == len(every) == 6
    for k, part in enumerate(every):
        assert_same(plain[k], part)
    left = [[0, 1], [0], [1], [1], [0, 1], [0]]
    for k in reversed(range(6)):  # in any order
        assert_same(distinct[k], every[k].select(left[k]))
    assert "new" not in vars(plain)  # no one has looked for equal ones


# --------------------------------------------------------------------------------------- on disk


def test_pairs_come_back_from_disk_as_they_were(tmp_path):
    _, pairs = some_pairs()
    pairs.reward[1] = np.nan
    assert_same(saved(tmp_path / "deep" / "pairs", pairs), pairs)
    assert {path.name for path in (tmp_path / "deep" / "pairs").iterdir()} == {
        "source.int32", "tokens.int32", "starts.int64", "logprobs.float32", "reward.float32",
        "human.bool", "size.json"}


def test_a_file_is_its_array_and_nothing_else(tmp_path):
    _, pairs = some_pairs()
    saved(tmp_path, pairs.select([0, 1, 2]), pairs.select([3, 4]))
    for name, dtype in DTYPES.items():
        np.testing.assert_array_equal(np.fromfile(flat_file(tmp_path, name), dtype),
                                      getattr(pairs, name))
    assert json.loads((tmp_path / "size.json").read_text()) == {
        "parts": 2, "pairs": 5, "tokens": 10}


@pytest.mark.parametrize("cut", [[5], [2, 3], [1, 1, 1, 1, 1], [0, 5], [0, 0, 5], [5, 0],
                                 [2, 0, 0, 3], [0, 2, 0, 3, 0]])
def test_appended_parts_load_as_one(tmp_path, cut):
    _, pairs = some_pairs()
    ends = np.cumsum(cut)
    parts = [pairs.select(slice(end - n, end)) for n, end in zip(cut, ends)]
    for k, (part, end) in enumerate(zip(parts, ends), 1):
        loaded = saved(tmp_path, part)
        assert_same(loaded, Pairs.join(parts[:k]))
        assert_same(loaded, pairs.select(slice(end)))
        assert size_of(tmp_path)["parts"] == k


def test_only_empty_parts_are_no_pairs(tmp_path):
    assert size_of(tmp_path / "nowhere") == {"parts": 0, "pairs": 0, "tokens": 0}
    empty = Pairs.of([], [])
    for k in (1, 2):
        assert_same(saved(tmp_path, empty), empty)
        assert size_of(tmp_path) == {"parts": k, "pairs": 0, "tokens": 0}


def test_pairs_of_empty_targets_alone(tmp_path):
    pairs = Pairs.of([4, 2], [[], []], reward=[0.5, 1.0])
    assert_same(saved(tmp_path, pairs, pairs), Pairs.join([pairs, pairs]))


def test_what_is_loaded_stays_when_a_part_is_added(tmp_path):
    _, pairs = some_pairs()
    before = saved(tmp_path, pairs)
    assert_same(saved(tmp_path, pairs.select([1])), Pairs.join([pairs, pairs.select([1])]))
    assert_same(before, pairs)


class Killed(BaseException):
    """Passes through every handler, like the process's end."""


def kill_at_fsync(monkeypatch, k):
    """Killed when file k of an append has been written: six arrays, then size.json's new self."""
    calls, fsync = [], os.fsync

    def spied(number):
        calls.append(number)
        if len(calls) > k:
            raise Killed
        fsync(number)

    monkeypatch.setattr(os, "fsync", spied)


@pytest.mark.parametrize("k", range(7))
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_killed_append_is_neither_seen_nor_left(tmp_path, monkeypatch, k, before):
    parts = [random_pairs(7, 0), random_pairs(5, 1)][:before]
    lost, last = random_pairs(20, 2), random_pairs(3, 3)
    for part in parts:
        part.append_to(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_fsync(patch, k)
        lost.append_to(tmp_path)
    assert size_of(tmp_path)["parts"] == before
    if parts:
        assert_same(Pairs.load(tmp_path), Pairs.join(parts))
    loaded = saved(tmp_path, last)
    assert_same(loaded, Pairs.join([*parts, last]))
    for name in DTYPES:
        assert flat_file(tmp_path, name).stat().st_size == getattr(loaded, name).nbytes


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("left", [1, 3, 8, 1000])
def test_torn_bytes_at_the_end_of_a_file_are_written_over(tmp_path, name, left):
    _, pairs = some_pairs()
    pairs.append_to(tmp_path)
    with open(flat_file(tmp_path, name), "ab") as file:
        file.write(b"\x01" * left)
    assert_same(Pairs.load(tmp_path), pairs)
    assert_same(saved(tmp_path, pairs), Pairs.join([pairs, pairs]))


def test_a_disk_that_fills_up_keeps_the_parts_before(tmp_path, monkeypatch):
    _, pairs = some_pairs()
    pairs.append_to(tmp_path)

    def full(number):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", full)
        pairs.append_to(tmp_path)
    assert_same(Pairs.load(tmp_path), pairs)
    assert_same(saved(tmp_path, pairs), Pairs.join([pairs, pairs]))


def test_what_is_loaded_is_mapped_and_read_only(tmp_path):
    _, pairs = some_pairs()
    loaded = saved(tmp_path, pairs)
    for name, dtype in DTYPES.items():
        array = getattr(loaded, name)
        assert type(array) is np.ndarray and array.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, mmap.mmap), name
    assert_same(Pairs.load(tmp_path), pairs)


def holes(folder, pairs, tokens):
    """A folder of so many pairs and tokens, all zeros, of which no disk holds a byte."""
    sizes = {"tokens": tokens, "logprobs": tokens, "starts": pairs + 1}
    for name, dtype in DTYPES.items():
        with open(flat_file(folder, name), "wb") as file:
            file.truncate(sizes.get(name, pairs) * dtype.itemsize)
    size = {"parts": 1, "pairs": pairs, "tokens": tokens}
    (folder / "size.json").write_text(json.dumps(size))


def test_what_is_opened_is_not_read(tmp_path):
    """Of two hundred megabytes next to nothing is in memory before it is asked for."""
    holes(tmp_path, pairs=3 * 10**6, tokens=2 * 10**7)
    tracemalloc.start()
    try:
        pairs = Pairs.load(tmp_path)
        pairs.target(2 * 10**6)
        assert tracemalloc.get_traced_memory()[1] < 10**6
        assert len(pairs) == 3 * 10**6 and pairs.tokens.nbytes == 8 * 10**7
        for part, _ in zip(pairs.parts(), range(3)):
            assert len(part) == PART
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_select_from_what_is_mapped_copies(tmp_path):
    _, pairs = some_pairs()
    loaded = saved(tmp_path, pairs)
    for index in ([3, 0], [], pairs.human):
        chosen = loaded.select(index)
        assert_same(chosen, pairs.select(index))
        for name in DTYPES:
            own = getattr(chosen, name)
            assert own.flags.writeable and not np.shares_memory(own, getattr(loaded, name)), name
            own[:] = 1
    assert_same(Pairs.load(tmp_path), pairs)


def test_parts_of_what_is_mapped_are_views_of_it(tmp_path):
    _, pairs = some_pairs()
    loaded = saved(tmp_path, pairs)
    parts = list(loaded.parts(2))
    assert_same(Pairs.join(parts), pairs)
    for part in parts:
        assert np.shares_memory(part.tokens, loaded.tokens) and not part.tokens.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            part.reward[0] = 1.0


def test_parts_can_be_appended_elsewhere(tmp_path):
    _, pairs = some_pairs()
    loaded = saved(tmp_path / "one", pairs)
    assert_same(saved(tmp_path / "other", *loaded.parts(2)), pairs)


def test_other_dtypes_and_strides_are_written_as_they_should_be(tmp_path):
    _, pairs = some_pairs()
    odd = replace(pairs, source=pairs.source.astype(np.int64),
                  reward=np.repeat(pairs.reward.astype(np.float64), 2)[::2],
                  logprobs=pairs.logprobs[::-1].copy()[::-1], starts=pairs.starts.astype(np.int32))
    assert_same(saved(tmp_path, odd, odd), Pairs.join([pairs, pairs]))


@pytest.mark.parametrize("seed", range(25))
def test_random_pairs_however_they_are_cut(tmp_path, seed):
    """Parts, appends, joins and selections against plain lists."""
    rng = np.random.default_rng(seed)
    pairs = random_pairs(int(rng.integers(1, 60)), seed)
    plain, cuts = rows(pairs), np.sort(rng.integers(0, len(pairs) + 1, rng.integers(0, 5)))
    cut = [pairs.select(index) for index in np.split(np.arange(len(pairs)), cuts)]
    assert [rows(part) for part in cut] == [
        plain[a:b] for a, b in zip([0, *cuts], [*cuts, len(plain)])]
    loaded = saved(tmp_path, *cut)
    for whole in (Pairs.join(cut), loaded):
        assert_same(whole, pairs)
        assert rows(whole) == plain
    size = int(rng.integers(1, 20))
    parts = list(loaded.parts(size))
    assert [rows(part) for part in parts] == [
        plain[at : at + size] for at in range(0, len(plain), size)]
    index = rng.integers(-len(pairs), len(pairs), rng.integers(0, 30))
    assert rows(loaded.select(index)) == [plain[i] for i in index]
    mask = rng.random(len(pairs)) < 0.5
    assert rows(loaded.select(mask)) == [plain[i] for i in np.flatnonzero(mask)]


# ----------------------------------------------------------------------------------------- write


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def breaks_off(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, breaks_off)
    assert path.read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "other", breaks_off)
    assert not (tmp_path / "other").exists()
    atomic_write(path, lambda file: file.write(b"new"))  # what was left behind is no obstacle
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_batch_is_selected_without_looking_at_all_pairs(tmp_path):
    holes(tmp_path, pairs=3 * 10**6, tokens=2 * 10**7)
    pairs = Pairs.load(tmp_path)
    tracemalloc.start()
    pairs.select(np.array([5, 2 * 10**6]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="size.json is missing"):
        Pairs.load(tmp_path / "nowhere")
