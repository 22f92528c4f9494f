"""Random numbers by name: each purpose has a stream of its own, made from the run's seed.

    rng = stream("demonstrators", seed)            # numpy
    generator.manual_seed(seed_of("grow", seed, g))    # torch

So what is added to a program, or drawn more of, shifts nothing that others draw; and a step of a
run that is done again draws the same.
"""

import zlib

import numpy as np


def seed_of(*parts):
    """One 63-bit seed from names and whole numbers, all of which matter, and their order."""
    numbers = [zlib.crc32(x.encode()) if isinstance(x, str) else int(x) for x in parts]
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def stream(*parts):
    """A generator of numpy's with that seed."""
    return np.random.default_rng(seed_of(*parts))
