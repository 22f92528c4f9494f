"""What comes out of the experiments: a JSON and a PNG each, and the scoreboard of all."""

import importlib
import json

from experiments.verdicts import Points

EXPERIMENTS = ("improve_steps", "grow_steps", "losses", "online_rl", "best_of_n",
               "over_optimisation", "filters", "sampling", "ablations", "relatives", "beyond",
               "translation")


def module(name):
    return importlib.import_module(f"experiments.{name}")


def save(points, file):
    """One point a line, numbers to five digits."""
    lines = [json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                         for k, v in point.items()}, ensure_ascii=False) for point in points]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load(results, name):
    return json.loads((results / f"{name}.json").read_text())


def conclude(name, results):
    """The picture of what was saved, and the scoreboard."""
    from experiments.plot import save_figure
    save_figure(lambda: module(name).figure(Points(load(results, name))), results / f"{name}.png")
    (results / "scoreboard.md").write_text(scoreboard(results))


def scoreboard(results):
    """All claims with a verdict, by number, as a table; then what the paper does not claim."""
    found = []
    for name in EXPERIMENTS:
        if (results / f"{name}.json").exists():
            p = Points(load(results, name))
            found += [(claim, name, len(p.seeds)) for claim in module(name).claims(p)]
    numbered = sorted((entry for entry in found if entry[0].number),
                      key=lambda entry: int(entry[0].number.split(",")[0]))
    lines = []
    for title, entries in (("Claim", numbered), ("Beside the claims",
                                                 [e for e in found if not e[0].number])):
        if entries:
            lines += ["", f"| | {title} | Measured, points of 100 (95 % interval) | Verdict | "
                      "`python -m experiments ...` |", "|---|---|---|---|---|"]
            lines += [f"| {claim.number} | {claim.text} | "
                      f"{'; '.join(map(str, claim.comparisons))} | {claim.verdict()} | {name} |"
                      for claim, name, _ in entries]
    return "\n".join(lines[1:]) + "\n"
