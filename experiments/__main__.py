"""Run experiments, draw their pictures, judge the paper's claims.

    python -m experiments improve_steps              # one experiment (or several), five seeds
    python -m experiments all                        # all of them
    python -m experiments search                     # what comes first: the settings of the losses
    python -m experiments filters --quick            # everything small: does it run?
    python -m experiments draw                       # pictures and scoreboard again, nothing is run

An experiment is a file of this folder: `points(lab)` gives its measurements on one seed (a seed is
a new language, new demonstrations, new ratings, new weights), `claims(points)` what they say of the
paper, `figure(points)` the picture. Results go to experiments/results/, one PNG and one JSON each,
and scoreboard.md; with --quick to experiments/quick/. Runs are kept in experiments/cache/ (lab.py),
so that what was stopped goes on, and what was finished is only drawn again.
"""

import argparse
import os
import time
from pathlib import Path

from experiments.scoreboard import EXPERIMENTS, conclude
from experiments.workers import run

HERE = Path(__file__).parent
NAMES = ("search", *EXPERIMENTS)
FIRST_SEED = 10  # the README's runs have 0 to 2, by which the demo was made


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m experiments",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", metavar="name", choices=[*NAMES, "all", "draw"],
                        help="one of: all, draw, " + ", ".join(NAMES))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help="small models, few updates, two seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count(),
                        help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="folder for the results, and in it the cache")
    args = parser.parse_args(argv)
    results = args.out or HERE / ("quick" if args.quick else "results")
    results.mkdir(parents=True, exist_ok=True)
    cache = args.out / "cache" if args.out else HERE / "cache"
    if "draw" in args.names:
        for name in NAMES:
            if (results / f"{name}.json").exists():
                conclude(name, results)
        return
    n = min(args.seeds, 2) if args.quick else args.seeds
    seeds = range(FIRST_SEED, FIRST_SEED + n)
    begin = time.monotonic()
    names = EXPERIMENTS if "all" in args.names else args.names
    for name in run(names, seeds, args.quick, results, cache, args.workers):
        print(f"{name} is done after {time.monotonic() - begin:.0f} s", flush=True)
    print((results / "scoreboard.md").read_text())


if __name__ == "__main__":
    main()
