"""All pictures of the lectures, as PNG and SVG, in a style that is read from the last row.

    python -m course figures        # course/figures/; two minutes the first time, for a run to draw

What is of one run (Table 1, D_g, pairs, the Improves, best of N) is drawn from a run of the demo,
seed 0, which is made if it is not there; the rest from what the experiments measured
(experiments/results/).
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import train_toy
from experiments import language
from experiments.scoreboard import load, module
from experiments.verdicts import Points
from infra import figures
from infra.figures import BLUE, GREEN, GREY, STYLE, VERMILLION, panels
from infra.pairs import Pairs, first_of_equal
from infra.report import label
from infra.seeds import stream
from rest import Settings, select

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
LARGE = STYLE | {"font.size": 15, "axes.titlesize": 15, "lines.linewidth": 2.5, "svg.hashsalt": "",
                 "lines.markersize": 7, "svg.fonttype": "path"}
MEASURED = ("losses", "over_optimisation", "relatives", "filters", "online_rl", "raters")


def draw(folder, work):
    """Write every picture to `folder`; the demo's run lies in work/lecture."""
    import matplotlib
    folder.mkdir(parents=True, exist_ok=True)
    run = demo(work / "lecture")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    with matplotlib.rc_context(LARGE):
        made = {"loop": loop(), "language": language.figure(), "table_1": table_1(results),
                "pairs": pairs(run), "D_g": figures.rewards(run, results),
                "improve": figures.improve(results), "best_of_n": figures.best_of_n(results)}
        made |= {name: module(name).figure(Points(load(RESULTS, name))) for name in MEASURED}
        for name, figure in made.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=150)
            print(folder / f"{name}.png")


def demo(folder):
    """The folder of a finished run of the demo, made if need be."""
    if not (folder / "results.json").exists():
        subprocess.run([sys.executable, "train_toy.py", "--seed", "0", "--resume", "--out",
                        folder.resolve()], cwd=ROOT, check=True)
    return folder


def loop():
    """Algorithm 1 as boxes and arrows."""
    picture, (ax,) = panels("loop", 1, 12, 5)
    boxes = {"D": (0.2, 2.4, "D\nhuman pairs", GREY), "BC": (2.2, 2.4, "BC", GREY),
             "π": (4.0, 2.4, "policy π", "black"),
             "grow": (6.6, 2.4, "GROW\nsample y ~ π(·|x),\nadd D, score with R", BLUE),
             "D_g": (9.4, 2.4, "D_g", BLUE),
             "improve": (9.4, 0.4, "IMPROVE\nkeep R(x, y) > τ,\nfine-tune π", GREEN)}
    for x, y, text, colour in boxes.values():
        ax.text(x, y, text, ha="center", va="center", color=colour,
                bbox=dict(boxstyle="round,pad=0.5", fc="white", ec=colour, lw=2))

    def arrow(a, b, text="", colour="black", bend=0.0, at=(0, 0)):
        ax.annotate("", b, a, arrowprops=dict(arrowstyle="-|>", color=colour, lw=2,
                                              connectionstyle=f"arc3,rad={bend}"))
        ax.text(*at, text, color=colour, ha="center", va="center")

    arrow((1.0, 2.4), (1.8, 2.4))
    arrow((2.6, 2.4), (3.2, 2.4))
    arrow((4.8, 2.4), (5.2, 2.4))
    arrow((8.05, 2.4), (8.9, 2.4))
    arrow((9.4, 1.95), (9.4, 1.1))
    arrow((8.2, 0.4), (4.0, 2.0), "better π, and on to the next Grow", BLUE, -0.3, (4.4, 0.25))
    arrow((10.6, 0.2), (10.6, 0.9), colour=GREEN, bend=1.4)
    ax.text(11.6, 0.5, "raise τ,\nlower the\nlearning rate", color=GREEN, va="center", ha="left")
    ax.set(xlim=(-0.8, 13), ylim=(-0.4, 3.2))
    ax.axis("off")
    return picture


def table_1(results):
    """The rows of a run, reward and oracle, as the paper's Table 1."""
    rows = results["rows"]
    picture, (ax,) = panels("table_1", 1, 9, 0.42 * len(rows) + 1.2)
    cells = [[label(row), f"{100 * row['reward']:.1f}", f"{100 * row['oracle']:.1f}",
              "" if row["kept_samples"] is None or row["name"] == "PPO"
              else f"{row['kept_samples']:.0%}"] for row in rows]
    table = ax.table(cells, colLabels=["", "reward", "oracle", "samples kept"], loc="center",
                     cellLoc="right", colWidths=[0.34, 0.2, 0.2, 0.26], edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(16)
    table.scale(1, 1.7)
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor("#CCCCCC")
        if column == 0:
            cell.set_text_props(ha="left")
        if line and rows[line - 1]["name"] == "PPO":
            cell.set_text_props(color=VERMILLION)
    ax.axis("off")
    return picture


def pairs(run, count=4):
    """Of one source of the first D_g: what τ_1 keeps, and what it drops."""
    D_g, settings = Pairs.load(run / "steps" / "score-1"), Settings()
    kept, tau = select(D_g, settings, 1)
    problem = train_toy.Language(train_toy.Settings())
    sources = problem.sources(train_toy.Settings().demonstrations, stream("toy sources", 0, 0))
    once = first_of_equal(D_g)
    fits = [i for i in range(len(sources)) if len(sources[i]) == 9
            and (kept & once)[D_g.source == i].sum() == count
            and (~kept & once)[D_g.source == i].sum() >= count]
    at = np.flatnonzero(once & (D_g.source == fits[0]))
    picture, (ax,) = panels("pairs", 1, 13, 5)
    order = at[np.argsort(-D_g.reward[at])]
    shown = [*order[kept[order]][:count], *order[~kept[order]][-count:]]
    source = sources[fits[0]]
    write(ax, 0, ["source", "", *problem.text(source).split()], GREY)
    write(ax, 1, ["right", "", *problem.text(problem.answer(source)).split()], "black")
    for line, k in enumerate(shown, 2):
        line += line - 2 >= count  # what is dropped stands a line lower
        write(ax, line, ["human" if D_g.human[k] else "sample", f"{100 * D_g.reward[k]:.0f}"], GREY)
        words, right = problem.text(D_g.target(k)).split(), problem.right(source, D_g.target(k))
        for column, (word, good) in enumerate(zip(words, right), 2):
            ax.text(column, -line, word, color=BLUE if good else VERMILLION, family="monospace")
    ax.axhline(-count - 1.7, color=GREEN, lw=2)
    ax.text(0, -count - 2.2, f"kept above, dropped below: τ = {100 * tau:.0f}", color=GREEN)
    ax.set(xlim=(-0.2, 11), ylim=(-2 * count - 2.6, 0.8))
    ax.axis("off")
    return picture


def write(ax, line, words, colour):
    for column, word in enumerate(words):
        ax.text(column, -line, word, color=colour, family="monospace" if column > 1 else None)
