"""What comes out of the experiments: a JSON and a PNG each, and the scoreboard of all."""

import importlib
import json

from experiments.lab import Lab
from experiments.verdicts import REPRODUCED, Points, holm

EXPERIMENTS = ("improve_steps", "grow_steps", "losses", "online_rl", "best_of_n",
               "over_optimisation", "filters", "sampling", "ablations", "conditioned", "relatives",
               "beyond", "guided", "translation", "captions", "raters")


def module(name):
    return importlib.import_module(f"experiments.{name}")


def lab_of(name):
    """The kind of laboratory that an experiment's points are measured in."""
    return getattr(module(name), "LAB", Lab)


def save(points, code, file):
    """One point a line, numbers to five digits; code: the hash of what made them."""
    lines = [json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                         for k, v in point.items()}, ensure_ascii=False) for point in points]
    file.write_text(f'{{"code": "{code}", "points": [\n' + ",\n".join(lines) + "\n]}\n")


def load(results, name):
    return json.loads((results / f"{name}.json").read_text())["points"]


def made(results, name, code):
    """The points of this code that are there already, by seed."""
    file, found = results / f"{name}.json", {}
    if file.exists():
        saved = json.loads(file.read_text())
        for point in saved["points"] if saved["code"] == code else []:
            found.setdefault(point["seed"], []).append(point)
    return found


def conclude(name, results):
    """The picture of what was saved, and the scoreboard."""
    from experiments.plot import save_figure
    save_figure(lambda: module(name).figure(Points(load(results, name))), results / f"{name}.png")
    (results / "scoreboard.md").write_text(scoreboard(results))


def scoreboard(results):
    """All claims with a verdict, by number, as a table; then what the paper does not claim."""
    found = [(claim, name) for name in EXPERIMENTS if (results / f"{name}.json").exists()
             for claim in module(name).claims(Points(load(results, name)))]
    numbered = sorted((entry for entry in found if entry[0].number),
                      key=lambda entry: int(entry[0].number.split(",")[0]))
    line = holm([c for claim, _ in numbered for c in claim.comparisons])
    lines = ["| | The paper's claim | Measured here (95 % interval) | Verdict | Experiment |",
             "|---|---|---|---|---|"]
    lines += [f"| {c.number} | {c.text} | {'; '.join(map(str, c.comparisons))} | **{c.verdict()}**"
              f"{' †' if c.verdict() == REPRODUCED and not c.stands(line) else ''} | {name} |"
              for c, name in numbered]
    lines += ["", "†: reproduced by its own intervals, but not after Holm's correction over the "
              "whole table."]
    beside = [f"| {c.text} | {'; '.join(map(str, c.comparisons))} | {name} |"
              for c, name in found if not c.number]
    if beside:
        lines += ["", "| What the paper does not claim | Measured here (95 % interval) | "
                  "Experiment |", "|---|---|---|", *beside]
    return "\n".join(lines) + "\n"
