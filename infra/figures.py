"""Pictures of a finished run, from what lies in its folder; nothing is run again.

    python -m infra.figures runs/toy-1        # redraws the PNGs of that run, in a few seconds

    improve.png      reward, and the metric that ReST never sees, after each Improve step
    best_of_n.png    the same two for the best of N samples, by reward, of each policy
    rewards.png      the rewards of D_g: what each Grow drew, beside the human pairs
    tradeoff.png     translation only: validation BLEU against validation reward

Each function of that name returns a matplotlib Figure, or None where the run has nothing to show.
Rewards and the toy's oracle lie in [0, 1] on disk; all pictures have points of 100, as BLEU has.
"""

import argparse
import io
from pathlib import Path

import numpy as np

from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.storage import read_json

# Okabe and Ito's colours, for every kind of colour vision. ReST is always blue, PPO vermillion.
GREY, BLUE, VERMILLION, GREEN = "#666666", "#0072B2", "#D55E00", "#009E73"
POLICIES = {"BC": GREY, "ReST": BLUE, "PPO": VERMILLION}
GROWS = (GREEN, BLUE, "#CC79A7", "#E69F00", "#56B4E9")
STYLE = {"font.size": 12, "axes.titlesize": 12, "axes.titlelocation": "left", "lines.linewidth": 2,
         "lines.markersize": 5, "axes.spines.top": False, "axes.spines.right": False,
         "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
         "figure.constrained_layout.w_pad": 0.08}
# A panel: its title, the factor that makes it points of 100, and its lines, by fields of a row.
REWARD = ("reward, points of 100", 100, {"reward": ("sampled", "-"),
                                         "greedy_reward": ("greedy", "--")})
METRIC = {"toy": ("oracle, % of words right", 100, {"oracle": ("sampled", "-"),
                                                    "greedy_oracle": ("greedy", "--")}),
          "mt": ("BLEU on the test set", 1, {"bleu": ("greedy", "--"),
                                             "beam_bleu": ("beam", "-.")})}


def draw(folder):
    """Write the pictures of the run in `folder` -> their paths; none if matplotlib is missing."""
    folder = Path(folder)
    if not (folder / "results.json").exists():
        raise UserError(f"{folder} holds no results.json: is it the folder of a finished run?")
    try:
        import matplotlib.figure
        import PIL.Image  # noqa: F401 (save_png needs it)
    except ImportError:
        return []
    except Exception as error:  # one that is there and broken: a backend of Jupyter's, say
        raise UserError(f"matplotlib does not work: {' '.join(str(error).split())}") from None
    results, written = read_json(folder / "results.json", task=str, rows=list), []
    with matplotlib.rc_context(STYLE):
        for figure in (improve(results), best_of_n(results), rewards(folder, results),
                       tradeoff(results)):
            if figure is not None:
                written.append(folder / f"{figure.get_label()}.png")
                save_png(figure, written[-1])
    return written


def try_to_draw(folder):
    """draw(folder) -> None, or a line that says why there are no pictures: a finished run does not
    fail over them."""
    try:
        return None if draw(folder) else "no figures: matplotlib is not installed"
    except Exception as error:  # a matplotlib that is there and broken may raise anything
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return f"no figures: {kind}{' '.join(str(error).split())}"


def save_png(figure, path):
    """With 64 colours, which are plenty and make the file three to four times smaller."""
    from PIL import Image  # matplotlib needs it too
    figure.savefig(buffer := io.BytesIO(), dpi=120)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def improve(results):
    """Reward and metric over the steps of all Grows; PPO, which has no such steps, as levels."""
    rows = [row for row in results["rows"] if row["name"] != "PPO"]
    ppo = [row for row in results["rows"] if row["name"] == "PPO"][-1:]
    figure, axes = panels("improve", 2, 10.5, 4, sharey=results["task"] == "toy")
    ends = [], []
    for ax, labels, (title, scale, lines) in zip(axes, ends, (REWARD, METRIC[results["task"]])):
        for field, (name, dashes) in lines.items():
            x, y = known(((k, row.get(field)) for k, row in enumerate(rows)), scale)
            if len(x):
                ax.plot(x, y, dashes, color=BLUE, marker="o", clip_on=False, label=field)
                labels.append((y[-1], f"{name} {y[-1]:.1f}", BLUE))
            for level in known(((0, row.get(field)) for row in ppo), scale)[1]:
                ax.axhline(level, ls=":", color=VERMILLION, lw=1.6, label=f"PPO {field}")
                labels.append((level, f"PPO {name} {level:.1f}", VERMILLION))
        for k in range(1, len(rows)):
            if rows[k]["grow"] != rows[k - 1]["grow"]:
                ax.axvline(k - 0.5, color="#CCCCCC", lw=1, zorder=0)
        ax.set_xticks(range(len(rows)), [step(row, "G{}\nI{}") for row in rows])
        ax.set(title=title, xlabel="step: Grow G, Improve I")
        ax.tick_params("x", labelsize=min(12, 110 / len(rows)))
        ax.tick_params("y", labelleft=True)  # also where the panels share their scale
    for ax, labels in zip(axes, ends):  # only now, as both panels settle a shared scale
        label_ends(ax, labels)
    return figure


def best_of_n(results):
    """Reward and metric of the best of N samples."""
    entries = results.get("best_of_n")
    if not entries:
        return None
    figure, axes = panels("best_of_n", 2, 10.5, 4)
    counts = sorted({entry["n"] for entry in entries})
    for ax, (title, scale, lines) in zip(axes, (REWARD, METRIC[results["task"]])):
        field, ends = next(iter(lines)), []  # reward; oracle or bleu
        for policy in dict.fromkeys(entry["policy"] for entry in entries):
            x, y = known(((e["n"], e.get(field)) for e in entries if e["policy"] == policy), scale)
            if len(x):
                colour = POLICIES.get(policy, GREEN)
                ax.plot(x, y, color=colour, marker="o", clip_on=False, label=policy)
                ends.append((y[-1], f"{policy} {y[-1]:.1f}", colour))
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, counts)
        ax.set(title=title, xlabel="N, samples to choose from")
        label_ends(ax, ends)
    return figure


def rewards(folder, results):
    """Densities of the rewards in D_g: each Grow's samples filled, D's own pairs as an outline; and
    the thresholds of its Improves, where they are the same for all sources."""
    parts, g = [], 1
    while (scored := Path(folder) / "steps" / f"score-{g}").exists():
        pairs = Pairs.load(scored)
        parts.append((f"Grow {g}", 100 * pairs.reward[~pairs.human], GROWS[(g - 1) % len(GROWS)]))
        g += 1
    if not parts:
        return None
    parts.append(("D, human", 100 * pairs.reward[pairs.human], "black"))
    parts = [part for part in parts if len(part[1])]
    figure, (ax,) = panels("rewards", 1, 7.5, 4)
    edges = np.histogram_bin_edges(np.concatenate([part[1] for part in parts]), 50)
    for name, values, colour in parts:
        percent = np.full(len(values), 100 / len(values) / (edges[1] - edges[0]))
        ax.hist(values, edges, weights=percent, histtype="step", color=colour, lw=1.6, label=name,
                **({} if name == "D, human" else {"fill": True, "alpha": 0.3}))
    # The means stand above the densities, their texts towards the roomier side. Texts that run to
    # the left want the leftmost mean lowest, so that no line crosses a text; and the reverse.
    means = sorted((float(values.mean()), name, colour) for name, values, colour in parts)
    side = -1 if means[0][0] + means[-1][0] > edges[0] + edges[-1] else 1
    tallest = ax.get_ylim()[1]
    for k, (mean, name, colour) in enumerate(means[::-side]):
        top = tallest * (1.07 + 0.1 * k)
        ax.plot([mean, mean], [0, top], color=colour, lw=1.2, label=f"mean of {name}")
        ax.annotate(f"{name}: mean {mean:.1f}", (mean, top), (6 * side, 0), va="top", color=colour,
                    ha="right" if side < 0 else "left", textcoords="offset points")
    for row in results["rows"]:
        if row["name"] == "ReST" and row.get("threshold") is not None:
            tau, colour = 100 * row["threshold"], GROWS[(row["grow"] - 1) % len(GROWS)]
            height = tallest * (0.12 + 0.14 * row["grow"])  # a line of labels for each Grow
            ax.plot([tau, tau], [0, height], ":", color=colour, lw=1.6, label="threshold")
            ax.annotate(f"τ{row['improve']}", (tau, height), (0, 2), textcoords="offset points",
                        ha="center", color=colour)
    ax.set(title="% of pairs, per point of reward; τ of each Improve", xlabel=REWARD[0],
           ylim=(0, None))
    return figure


def tradeoff(results):
    """What each step pays in BLEU for its reward, on validation: where one should have stopped."""
    rows = [row for row in results["rows"]
            if row.get("val_bleu") is not None and row.get("val_reward") is not None]
    if results["task"] != "mt" or all(row["name"] == "PPO" for row in rows):
        return None
    path, ppo = {}, []  # path: point -> names, as a step that changed nothing stays where it was
    for row in rows:
        point = 100 * row["val_reward"], row["val_bleu"]
        if row["name"] == "PPO":
            ppo.append(point)
        else:
            path.setdefault(point, []).append(step(row, "{},{}"))
    figure, (ax,) = panels("tradeoff", 1, 7.5, 4.6)
    at = np.array(list(path))  # (n, 2)
    ax.plot(*at.T, color=BLUE, marker="o", label="ReST")
    for point in ppo:
        ax.plot(*point, "D", color=VERMILLION, markersize=8, label="PPO")
    ax.margins(0.12)
    ax.set(title="validation BLEU", xlabel="validation " + REWARD[0], ylim=ax.get_ylim())
    if "BC" in path[tuple(at[0])]:
        floor = at[0, 1] - 0.5
        ax.axhspan(floor, 100, color=GREEN, alpha=0.12, lw=0, zorder=0, label="BC - 0.5")
        ax.set_ylim(min(ax.get_ylim()[0], floor - 0.1))
        label_ends(ax, [(floor, "BC − 0.5", GREEN)])
    for k, (point, names) in enumerate(path.items()):
        neighbours = [*at[max(0, k - 1) : k], *at[k + 1 : k + 2]]
        label_beside(ax, "; ".join(names), point, neighbours, BLUE)
    for point in ppo:
        nearest = at[np.linalg.norm(at - point, axis=1).argmin()]
        label_beside(ax, "PPO", point, [nearest], VERMILLION)
    return figure


# ----------------------------------------------------------------------------------------- parts


def panels(name, n, width, height, rows=1, **kwargs):
    """A figure of n panels in so many rows. Without pyplot it is Agg that draws, screen or not."""
    from matplotlib.figure import Figure
    figure = Figure((width, height), layout="constrained")
    figure.set_label(name)
    return figure, figure.subplots(rows, n // rows, squeeze=False, **kwargs).ravel()


def step(row, form):
    return "BC" if row["name"] == "BC" else form.format(row["grow"], row["improve"])


def known(points, scale):
    """Points (x, y) -> arrays x and scale * y, without those whose y is None."""
    return np.array([(x, scale * y) for x, y in points if y is not None]).reshape(-1, 2).T


def label_ends(ax, ends, gap=0.07):
    """Texts [(y, text, colour)] right of the axes, at least `gap` of their height apart."""
    ends = sorted(ends)
    ax.set_ylim(ax.get_ylim())
    gap *= np.ptp(ax.get_ylim())
    places = [y for y, *_ in ends]
    for _ in range(200):  # push neighbours apart until all have their room
        for k in range(len(places) - 1):
            push = max(0.0, gap - (places[k + 1] - places[k])) / 2
            places[k], places[k + 1] = places[k] - push, places[k + 1] + push
    across = ax.get_yaxis_transform()  # x in axes, y in data
    for (y, text, colour), place in zip(ends, places):
        ax.plot([1.02, 1.05], [y, place], color=colour, lw=0.8, transform=across, clip_on=False)
        ax.text(1.06, place, text, color=colour, va="center", transform=across)


def label_beside(ax, text, point, neighbours, colour):
    """A text beside a point of a line, on the side where its one or two neighbours are not."""
    size = np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1) / (1.3, 1)  # a panel is wider than high
    steps = [(other - np.array(point)) / size for other in neighbours] or [np.array([0.0, -1.0])]
    steps = [s / max(np.linalg.norm(s), 1e-9) for s in steps]
    # away from both; and a little across, which decides where the three are in line
    side = -sum(steps) + 0.3 * np.array([steps[0][1], -steps[0][0]])
    side *= (10, 13) / max(np.linalg.norm(side), 1e-9)
    ax.annotate(text, point, side, textcoords="offset points", va="center", color=colour,
                ha="left" if side[0] > 5 else "right" if side[0] < -5 else "center")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="folder of a finished run")
    written = draw(parser.parse_args(argv).folder)
    print("\n".join(map(str, written)) or "no figures: matplotlib is not installed")


if __name__ == "__main__":
    run_cli(main)
