"""Multi30k De-En as text and as ids, for the benchmarks that want real lengths."""

from pathlib import Path

import numpy as np

from infra.text import Tokenizer, download_multi30k, read_parallel
from model import EOS


def folder(data):
    """The folder given, or the downloaded one."""
    return data or download_multi30k(Path("data"))


def multi30k(data, split="train"):
    return read_parallel(folder(data), split, "de", "en")


def ids(data, vocab_size=4000):
    """The training set: sources and targets as arrays of ids that end in eos, and the tokenizer."""
    corpus = multi30k(data)
    tokenizer = Tokenizer.train(corpus.sources + corpus.targets, vocab_size)
    sides = [[np.array([*tokenizer.encode(line), EOS]) for line in lines]
             for lines in (corpus.sources, corpus.targets)]
    return *sides, tokenizer
