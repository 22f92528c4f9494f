"""Run experiments, draw their pictures, judge the paper's claims.

    python -m experiments improve_steps              # one experiment (or several), five seeds
    python -m experiments all                        # all of them
    python -m experiments search                     # what comes first: the settings of the losses
    python -m experiments filters --quick            # everything small: does it run?
    python -m experiments draw                       # pictures and scoreboard again, nothing is run

An experiment is a file of this folder: `points(lab)` gives its measurements on one seed (a seed is
a new language, new demonstrations, new ratings, new weights), `claims(points)` what they say of the
paper, `figure(points)` the picture. Results go to experiments/results/, one PNG and one JSON each,
and scoreboard.md; with --quick to experiments/quick/. They are written as each seed is done, and
what is there of the same code is not measured again. Runs are kept in experiments/cache/ (lab.py),
so that what was stopped goes on. If a seed fails, the others go on; the end says what failed.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from experiments.lab import code_of
from experiments.scoreboard import EXPERIMENTS, conclude, lab_of, made, module, save
from experiments.workers import run

HERE = Path(__file__).parent
NAMES = ("search", *EXPERIMENTS)
FIRST_SEED = 30  # nothing was tuned on 30 to 34; the demo was made by 0 to 2


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
    code = {name: code_of(name, lab_of(name)) for name in seeds}
    measured = {name: made(results, name, code[name]) for name in seeds}
    left = {name: [seed for seed in seeds[name] if seed not in measured[name]] for name in seeds}
    failed, log, begin = {}, results / "log.txt", time.monotonic()
    for name, seed, points, error in run(left, args.quick, cache, log, args.workers):
        if error:
            failed[name, seed] = f"{name}, seed {seed}: {error}"
            print("failed:", failed[name, seed], flush=True)
            continue
        measured[name][seed] = points
        there = [seed for seed in seeds[name] if seed in measured[name]]
        save(sum((measured[name][seed] for seed in there), []), code[name],
             results / f"{name}.json")
        try:
            conclude(name, results)
            failed.pop((name, "drawing"), None)
        except Exception as error:  # of its claims or its picture: what it measured is saved
            failed[name, "drawing"] = f"{name}, drawing it: {type(error).__name__}: {error}"
        print(f"{name}: {len(there)} of {len(seeds[name])} seeds after "
              f"{time.monotonic() - begin:.0f} s", flush=True)
    if (results / "scoreboard.md").exists():
        print((results / "scoreboard.md").read_text())
    if failed:
        again = shlex.join(["python", "-m", "experiments", *(argv or sys.argv[1:])])
        sys.exit("\n".join(["failed:", *failed.values(),
                            f"{log} has the tracebacks; what is done is kept; "
                            f"to go on: {again}"]))


if __name__ == "__main__":
    main()
