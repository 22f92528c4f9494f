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
so that what was stopped goes on, and what was finished is only drawn again. An experiment of which
a seed fails has no results; all others are finished, and the end says what failed.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from experiments.scoreboard import EXPERIMENTS, conclude, module, save
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
    seeds = {name: getattr(module(name), "SEEDS", range(FIRST_SEED, FIRST_SEED + n))
             for name in (EXPERIMENTS if "all" in args.names else args.names)}
    measured, failed, log = {name: {} for name in seeds}, [], results / "log.txt"
    begin = time.monotonic()
    for name, seed, points, error in run(seeds, args.quick, cache, log, args.workers):
        if error:
            failed.append(f"{name}, seed {seed}: {error}")
            print("failed:", failed[-1], flush=True)
            continue
        measured[name][seed] = points
        if len(measured[name]) == len(seeds[name]):
            save(sum((measured[name][seed] for seed in seeds[name]), []), results / f"{name}.json")
            try:
                conclude(name, results)
            except Exception as error:  # of its claims or its picture: what it measured is saved
                failed.append(f"{name}, drawing it: {type(error).__name__}: {error}")
            print(f"{name} is done after {time.monotonic() - begin:.0f} s", flush=True)
    if (results / "scoreboard.md").exists():
        print((results / "scoreboard.md").read_text())
    if failed:
        again = shlex.join(["python", "-m", "experiments", *(argv or sys.argv[1:])])
        sys.exit("\n".join(["failed:", *failed, f"{log} has the tracebacks; what is done is kept; "
                            f"to go on: {again}"]))


if __name__ == "__main__":
    main()
