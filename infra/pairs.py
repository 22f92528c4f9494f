"""Pairs, the record that the whole project passes around: D, D_g, and what raters have rated.

n pairs (source, target) are six flat arrays, be they forty or forty million. On disk each array is
a file of its own, mapped into memory: a D_g larger than the memory is opened in no time, and of it
only that is read which a batch asks for.

    pairs = Pairs.of(source_indices, targets)
    pairs.append_to(folder)            # one part more; a part is there as a whole, or not at all
    pairs = Pairs.load(folder)         # all parts as one, read-only
    for view in pairs.parts(): ...     # for what should not be done with all of it at once

Left out: compression (the arrays could not be mapped then), and changing what lies on disk.
"""

import functools
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from infra.errors import UserError
from infra.processes import is_main
from infra.storage import atomic_write, flush, read_json

PART = 2**18  # pairs of a part: tens of megabytes, and minutes of Grow


@dataclass
class Pairs:
    """n pairs. Sources are indices into a list that lies elsewhere.

    The targets lie end to end in `tokens`: that of pair i is tokens[starts[i] : starts[i + 1]],
    without bos, with eos unless it was cut off at the maximum length.
    """

    source: np.ndarray  # (n,) int32, index into the list of sources
    tokens: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (n + 1,) int64
    logprobs: np.ndarray  # (sum of lengths,) float32, of the policy that drew it
    reward: np.ndarray  # (n,) float32 in [0, 1]; NaN until scored
    human: np.ndarray  # (n,) bool, true for D's own pairs, false for samples

    def __len__(self):
        return len(self.source)

    @property
    def lengths(self):
        return np.diff(self.starts)

    def padded_lengths(self, sources):
        """(n,): the longer side of each pair, which is what a batch has to make room for."""
        return np.maximum(self.lengths, np.array([len(x) for x in sources])[self.source])

    def target(self, i):
        return self.tokens[self.starts[i] : self.starts[i + 1]]

    def targets(self, index=None):
        return [self.target(i) for i in (range(len(self)) if index is None else index)]

    def select(self, index):
        """The pairs at `index` (integers or booleans), in that order, copied."""
        begin, end = self.starts[:-1][index], self.starts[1:][index]
        starts = np.concatenate([[0], np.cumsum(end - begin)])
        # where each kept token comes from: its pair's start, plus its place within the pair
        place = np.arange(starts[-1]) - np.repeat(starts[:-1], end - begin)
        at = np.repeat(begin, end - begin) + place
        return Pairs(self.source[index], self.tokens[at], starts, self.logprobs[at],
                     self.reward[index], self.human[index])

    def parts(self, size=PART):
        """At most `size` pairs at a time, as Pairs that share this one's memory."""
        for a in range(0, len(self), size):
            starts = self.starts[a : a + size + 1]
            tokens = slice(starts[0], starts[-1])
            yield Pairs(self.source[a : a + size], self.tokens[tokens], starts - starts[0],
                        self.logprobs[tokens], self.reward[a : a + size], self.human[a : a + size])

    @staticmethod
    def of(source, targets, logprobs=None, reward=None, human=False):
        """From n source indices and n targets; without rewards they are NaN: not scored yet."""
        n, lengths = len(targets), [len(target) for target in targets]
        flat = np.concatenate([np.zeros(0, np.int32), *targets]).astype(np.int32)
        logprobs = np.zeros(len(flat)) if logprobs is None else np.concatenate([[], *logprobs])
        reward = np.full(n, np.nan) if reward is None else np.asarray(reward)
        return Pairs(np.asarray(source, np.int32), flat, np.concatenate([[0], np.cumsum(lengths)])
                     .astype(np.int64), logprobs.astype(np.float32), reward.astype(np.float32),
                     np.full(n, human))

    @staticmethod
    def join(parts):
        """One after the other."""
        joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts])
                  for f in fields(Pairs) if f.name != "starts"}
        lengths = np.concatenate([p.lengths for p in parts])
        return Pairs(starts=np.concatenate([[0], np.cumsum(lengths)]), **joined)

    def append_to(self, folder):
        """Add these pairs as one more part to those in `folder`, which is made if need be.

        size.json says how much of each file counts; it is renewed last, so that what a killed
        process wrote beyond is written over by the next one. Only the main process writes.
        """
        if not is_main():
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        old = size_of(folder)
        starts = self.starts + old["tokens"]
        for name, dtype in DTYPES.items():
            array = starts[min(1, old["parts"]) :] if name == "starts" else getattr(self, name)
            with open(flat_file(folder, name), "ab") as file:
                file.truncate(numbers_in(name, old) * dtype.itemsize)
                file.write(np.ascontiguousarray(array, dtype))
                flush(file)
        new = {"parts": old["parts"] + 1, "pairs": old["pairs"] + len(self),
               "tokens": old["tokens"] + len(self.tokens)}
        atomic_write(folder / "size.json", lambda file: file.write(json.dumps(new).encode()))

    @staticmethod
    def load(folder):
        """All parts in `folder` as one, mapped from disk: read-only, and read when looked at."""
        size = read_size(Path(folder) / "size.json")
        return Pairs(**{name: mapped(flat_file(folder, name), dtype, numbers_in(name, size))
                        for name, dtype in DTYPES.items()})


DTYPES = {name: np.dtype(kind) for name, kind in dict(
    source="int32", tokens="int32", starts="int64", logprobs="float32", reward="float32",
    human="bool").items()}


def size_of(folder):
    """How many parts, pairs and tokens lie in a folder; none, if there is no such folder."""
    file = Path(folder) / "size.json"
    return read_size(file) if file.exists() else {"parts": 0, "pairs": 0, "tokens": 0}


def read_size(file):
    size = read_json(file, parts=int, pairs=int, tokens=int)
    if min(size.values()) < 0:
        raise UserError(f"{file}: damaged (a size below 0)")
    return size


def flat_file(folder, name):
    return Path(folder) / f"{name}.{DTYPES[name].name}"


def numbers_in(name, size):
    """How many numbers an array has, in Pairs of that size."""
    if name == "starts":
        return size["pairs"] + (size["parts"] > 0)
    return size["tokens" if name in ("tokens", "logprobs") else "pairs"]


def mapped(file, dtype, n):
    """n numbers of a flat file as a read-only array; nothing is read before it is looked at."""
    try:
        return np.asarray(np.memmap(file, dtype, "r", shape=n)) if n else np.zeros(0, dtype)
    except (OSError, ValueError, OverflowError):
        raise UserError(f"{file}: damaged, it should hold {n} numbers") from None


# --------------------------------------------------------------------------------- equal outputs


def hash_outputs(pairs):
    """A random linear hash (n,) of each pair's source and target, 64 bits wide."""
    weights = np.random.default_rng(0).integers(1, 2**63, int(pairs.lengths.max()) + 1, np.uint64)
    return np.concatenate([hash_part(part, weights) for part in pairs.parts()])


def hash_part(pairs, weights):
    place = np.arange(len(pairs.tokens)) - np.repeat(pairs.starts[:-1], pairs.lengths)
    terms = (pairs.tokens.astype(np.uint64) + np.uint64(1)) * weights[place]
    sums = np.concatenate([[np.uint64(0)], np.cumsum(terms)])  # wraps around, as it should
    own = sums[pairs.starts[1:]] - sums[pairs.starts[:-1]]
    return own * np.uint64(2**32 + 15) + pairs.source.astype(np.uint64) * np.uint64(2**61 - 1)


def first_of_equal(*pools):
    """Booleans (n,): the first of each set of equal outputs of one source, of all Pairs given."""
    hashes = np.concatenate([hash_outputs(pairs) for pairs in pools])
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    return first


class Parts:
    """The parts of several Pairs, one after the other, each made when it is asked for.

    distinct: without samples that equal an earlier one of their source.
    """

    def __init__(self, pools, distinct=False):
        self.pools, self.distinct = pools, distinct
        self.views = [part for pairs in pools for part in pairs.parts()]

    @functools.cached_property
    def new(self):
        """Booleans for each part."""
        human = np.concatenate([pairs.human for pairs in self.pools])
        ends = np.cumsum([len(part) for part in self.views])
        return np.split(first_of_equal(*self.pools) | human, ends[:-1])

    def __len__(self):
        return len(self.views)

    def __getitem__(self, k):
        if not self.distinct or self.new[k].all():
            return self.views[k]
        return self.views[k].select(self.new[k])


# --------------------------------------------------------------------------------------- rewards


def score(pairs, sources, reward):
    """The same pairs with R(x, y): reward(sources, outputs) -> (n,), computed once and stored."""
    if len(pairs) == 0:
        return pairs
    rewards = reward([sources[i] for i in pairs.source], pairs.targets())
    return replace(pairs, reward=check_rewards(rewards, len(pairs)))


def check_rewards(rewards, n, what="reward"):
    """What a reward function returned for n outputs, as float32 (n,); UserError if unfit."""
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
            rewards = np.asarray(rewards, np.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"the {what} is not an array of numbers ({error})") from None
    if rewards.shape != (n,):
        raise UserError(f"the {what} has shape {rewards.shape} for {n} outputs")
    bad = ~np.isfinite(rewards) | (rewards < 0) | (rewards > 1)
    if bad.any():
        raise UserError(f"the {what} of output {int(bad.argmax())} is {rewards[bad.argmax()]}; "
                        "it must be a finite number in [0, 1]")
    return rewards
