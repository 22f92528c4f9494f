"""What it costs that a run can be killed: the share of its time in which it writes to disk.

    python -m benchmarks.saving             # the demo
    python -m benchmarks.saving --mt DIR    # the translation run of --preset smoke, on DIR/train.*

A program's own run in a folder that is thrown away, with a clock around all that it keeps: steps,
checkpoints, parts of D_g, the log. Checkpoints come once a minute at most, and less often where one
would take more than a fiftieth of that.
"""

import argparse
import tempfile
import time

import train_toy
from benchmarks.measure import Table
from infra import storage
from infra.pairs import Pairs


def clocked(cls, name, seconds):
    """Add to `seconds` what each call of cls.name takes; a call inside of another counts once."""
    function = getattr(cls, name)

    def call(*args, **kwargs):
        begin, inside = time.perf_counter(), sum(seconds)
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begin - (sum(seconds) - inside))

    setattr(cls, name, call)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--mt", metavar="DIR", help="translation, with the data in DIR")
    args = parser.parse_args(argv)
    seconds = []
    for owner, name in ((storage.Checkpoint, "save"), (storage.EventLog, "add"),
                        (Pairs, "append_to"), (storage, "atomic_write")):
        clocked(owner, name, seconds)
    table = Table("run", "saves", "s saving", "s", "share")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        if args.mt:
            import train_mt
            train_mt.main(["--preset", "smoke", "--data", args.mt, "--out", folder + "/run"])
        else:
            train_toy.main(["--out", folder + "/run"])
        whole = time.perf_counter() - begin
    table.add("smoke" if args.mt else "toy", len(seconds), sum(seconds), whole,
              sum(seconds) / whole)
    table.end()


if __name__ == "__main__":
    main()
