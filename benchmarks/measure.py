"""Timing side by side: all sides in turn, several rounds, medians and ratios of the same round.

A shared machine is slow for minutes at a time. Two sides that are timed one after the other see the
same machine, so it is the ratio within a round that is compared, and its median that is quoted.
"""

import json
import statistics
import time

import torch


median = statistics.median


def side_by_side(sides, rounds=5, warm_up=1, own=()):
    """sides: {name: function}. Returns {name: [seconds of each round]}.

    own: names of sides that return their seconds, because they measure for themselves.
    """
    seconds = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, function in sides.items():
            begin = time.perf_counter()
            returned = function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                took = time.perf_counter() - begin
                seconds[name].append(returned if name in own else took)
    return seconds


def times_faster(seconds, name, than):
    """The median over the rounds of how many times faster `name` was."""
    return median(b / a for a, b in zip(seconds[name], seconds[than]))


class Table:
    """Lines of a benchmark as they come, and all of them as JSON on the last line."""

    def __init__(self, *columns):
        self.columns, self.lines = columns, []
        print("  ".join(f"{column:>12}" for column in columns))

    def add(self, *values):
        self.lines.append(dict(zip(self.columns, values)))
        print("  ".join(f"{shown(value):>12}" for value in values), flush=True)

    def end(self):
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__,
                          "lines": self.lines}))


def shown(value):
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
