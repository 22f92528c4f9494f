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
    found = [(claim, name) for name in EXPERIMENTS if (results / f"{name}.json").exists()
             for claim in module(name).claims(Points(load(results, name)))]
    numbered = sorted((entry for entry in found if entry[0].number),
                      key=lambda entry: int(entry[0].number.split(",")[0]))
    lines = ["| | The paper's claim | Measured here (95 % interval) | Verdict | Experiment |",
             "|---|---|---|---|---|"]
    lines += [f"| {c.number} | {c.text} | {'; '.join(map(str, c.comparisons))} | **{c.verdict()}** "
              f"| {name} |" for c, name in numbered]
    beside = [f"| {c.text} | {'; '.join(map(str, c.comparisons))} | {name} |"
              for c, name in found if not c.number]
    if beside:
        lines += ["", "| What the paper does not claim | Measured here (95 % interval) | "
                  "Experiment |", "|---|---|---|", *beside]
    return "\n".join(lines) + "\n"
