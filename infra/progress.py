"""How far a long step is: a bar on a terminal, elsewhere a line now and then."""

import sys

from tqdm import tqdm

EVERY = 5  # seconds between two lines


class Lines:
    """A stream to which tqdm writes a bar again and again, as a line each time."""

    def write(self, text):
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self):
        sys.stderr.flush()


def bar(items=None, **kwargs):
    """tqdm(items, ...), cleared at its end."""
    if sys.stderr.isatty():
        return tqdm(items, leave=False, dynamic_ncols=True, **kwargs)
    return tqdm(items, leave=False, file=Lines(), mininterval=EVERY, maxinterval=2 * EVERY,
                delay=EVERY, bar_format="{desc}: {n_fmt} of {total_fmt}, {elapsed}", **kwargs)
