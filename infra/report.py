"""What a person sees of a run: a line per step, the table at the end, examples, D_g looked into.

    report = Report(run, columns, examples, show); report.add(row, policy)
    look(run, settings, select, source_text, target_text)        # --show
    python -m infra.report runs/toy-1 runs/toy-2 runs/toy-3            # mean and range over seeds
"""

import sys
from pathlib import Path

import numpy as np

from infra import checks, figures, page
from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs, first_of_equal
from infra.processes import on_main
from infra.storage import fits, read_json

# key of a row -> title, and how its value is written; rewards are shown times 100
COLUMNS = {
    "reward": ("reward sampled", "{:.1f}", 100), "greedy_reward": ("reward greedy", "{:.1f}", 100),
    "pass_at_8": ("reward pass@8", "{:.1f}", 100),
    "oracle": ("oracle sampled", "{:.1f}", 100), "greedy_oracle": ("oracle greedy", "{:.1f}", 100),
    "bleu": ("BLEU greedy", "{:.1f}", 1), "beam_bleu": ("BLEU beam", "{:.1f}", 1),
    "chrf": ("chrF greedy", "{:.1f}", 1), "ter": ("TER greedy", "{:.1f}", 1),
    "length": ("length greedy", "{:.2f}", 1), "repetition": ("repeated greedy", "{:.1f}%", 1),
    "sampled_bleu": ("BLEU sampled", "{:.1f}", 1), "sampled_chrf": ("chrF sampled", "{:.1f}", 1),
    "beam_chrf": ("chrF beam", "{:.1f}", 1),
    "val_bleu": ("val. BLEU", "{:.1f}", 1), "val_reward": ("val. reward", "{:.1f}", 100),
    "entropy": ("entropy", "{:.2f}", 1), "kl_to_bc": ("KL to BC", "{:.2f}", 1),
    "kept_samples": ("samples kept", "{:.0f}%", 100), "kept_data": ("D kept", "{:.0f}%", 100),
    "samples": ("samples drawn", "{:d}", 1), "distinct_samples": ("samples distinct", "{:d}", 1),
    "seconds": ("seconds", "{:.0f}", 1),
}


class Table:
    """Rows of results as text."""

    def __init__(self, columns, rows=(), note=""):
        """columns: keys of COLUMNS; note: to be printed under the table."""
        self.columns, self.rows, self.note = columns, list(rows), note

    def head(self):
        """Two lines: a title's last word stands below the others."""
        titles = [COLUMNS[key][0].rpartition(" ") for key in self.columns]
        return "\n".join(f"{'':12}" + "".join(f"{title[k]:>9}" for title in titles)
                         for k in (0, 2))

    def line(self, row):
        return (f"{label(row):12}" + "".join(f"{cell:>9}" for cell in self.cells(row))
                + self.same(row))

    def cells(self, row):
        """The row's values as text; a dash for what is not known."""
        cells = []
        for key in self.columns:
            _, form, scale = COLUMNS[key]
            value = row.get(key)
            cells.append("-" if value is None else form.format(value * scale))
        return cells

    def table(self):
        """The same as cells: the titles, then each row's name, values, and whose policy it is."""
        return [["", *(COLUMNS[key][0] for key in self.columns), ""],
                *([label(row), *self.cells(row), self.same(row).strip()] for row in self.rows)]

    def same(self, row):
        """Names the row whose policy this one still is, where no checkpoint was better."""
        before = self.rows[: self.rows.index(row)]
        equal = [label(other) for other in before
                 if all(other[key] == row[key] for key in ("reward", "entropy", "kl_to_bc"))]
        return f"  = {equal[0]}" if equal else ""

    def notes(self):
        """What is to be said under the table."""
        equal = ("(=: still that row's policy, no checkpoint was better)"
                 if any(map(self.same, self.rows)) else "")
        return list(filter(None, [equal, self.note]))

    def __str__(self):
        return "\n".join(["", self.head(), *map(self.line, self.rows), *self.notes()])


class Report(Table):
    """Collects the rows of a run, and prints each as it comes; what becomes of a few test sources
    goes to samples.txt, and is printed at the end."""

    def __init__(self, run, columns, examples, show, note=""):
        """examples: for each of these sources, lines that say what it is; show(policy) -> a line
        for each."""
        super().__init__(columns, note=note)
        self.run, self.examples, self.show = run, examples, show

    def add(self, row, policy):
        self.rows.append(row)
        checks.check_reward_hacking(self.rows, self.run)
        if len(self.rows) == 1:
            print("\n" + self.head())
        print(self.line(row), flush=True)
        for lines, line in zip(self.examples, self.show(policy)):
            lines.append(f"{label(row):12}{line}")
        self.run.save_text("samples.txt", self.examples_text())

    def examples_text(self):
        """Each example, and what each policy made of it."""
        return "\n\n".join("\n".join(lines) for lines in self.examples) + "\n"


def label(row):
    """BC, ReST (1,2), GOLD (1,2), PPO: the paper's names."""
    if row["name"] != "ReST":
        return row["name"]
    name = "ReST" if row["loss"] == "bc" else row["loss"].upper()
    return f"{name} ({row['grow']},{row['improve']})"


def best_of_n_table(entries):
    """One line per policy and measure, one column per N."""
    counts = sorted({e["n"] for e in entries})
    lines = ["", f"{'best of N':18}" + "".join(f"{n:>7}" for n in counts)]
    for policy in dict.fromkeys(e["policy"] for e in entries):
        for key in [key for key in COLUMNS if any(key in e for e in entries)]:
            scale = COLUMNS[key][2]
            values = {e["n"]: f"{e[key] * scale:.1f}" for e in entries
                      if e["policy"] == policy and key in e}
            lines.append(f"{policy + ', ' + COLUMNS[key][0].split()[0]:18}"
                         + "".join(f"{values.get(n, '-'):>7}" for n in counts))
    return "\n".join(lines)


def finish(run, task, report, best, policy, reward_model, source_text, target_text, more=""):
    """Save everything that a finished run leaves behind, and only then print it.

    best: the entries of best-of-N; source_text, target_text: as for `look`, for the run's page;
    more: text to print after the tables.
    """
    seconds = run.elapsed()
    run.save_json("results.json", {"task": task, "seconds": seconds, "rows": report.rows,
                                   "best_of_n": best})
    run.save_weights("policy.pt", policy)
    if reward_model is not None:
        run.save_weights("reward.pt", reward_model)
    missing = on_main(lambda: figures.try_to_draw(run.folder))
    no_page = on_main(lambda: page.try_to_write(run.folder, report, source_text, target_text,
                                                pictures=not missing))
    print(report)
    print(best_of_n_table(best))
    print("\n" + report.examples_text(), end="")
    if more:
        print(more)
    for line in filter(None, [missing, no_page]):
        print(line)
    print(f"\n{seconds:.0f} s; results, figures, weights and samples are in {run.folder}/"
          + ("" if no_page else "; look at its index.html"))


def look(run, settings, select, source_text, target_text):
    """Print what each threshold of each Grow keeps and drops: best, worst, nearest to the line.

    select: rest.select.
    """
    found = False
    for g in range(1, settings.grow + 1):
        scored = run.folder / "steps" / f"score-{g}"
        if not scored.exists():
            break
        found, D_g = True, Pairs.load(scored)
        once = np.flatnonzero(first_of_equal(D_g))  # of equal outputs one is enough to look at
        for i in filter(None, settings.improves(g)):
            kept, tau = select(D_g, settings, i)
            of_data = kept[D_g.human].mean() if D_g.human.any() else 0
            line = "" if tau is None else f" τ = {tau:.3f},"
            print(f"\nGrow {g}, Improve {i}: {settings.filter},{line} keeps "
                  f"{kept.sum()} of {len(kept)} pairs, {of_data:.0%} of D")
            group = D_g.source if tau is None else 0 * D_g.source
            for title, index in chosen(D_g.reward[once], kept[once], group[once], settings.show):
                print(f"  {title}")
                for k in once[index]:
                    origin = "human " if D_g.human[k] else "sample"
                    fate = "kept   " if kept[k] else "dropped"
                    print(f"    {100 * D_g.reward[k]:5.1f} {origin} {fate} "
                          f"{source_text(D_g.source[k])}  ->  {target_text(D_g.target(k))}")
    if not found:
        raise UserError(f"{run.folder} has no scored Grow yet: nothing to show")


def chosen(reward, kept, group, count):
    """Titles and indices of the pairs worth looking at on both sides of a filter.

    group (n,): one line runs through each group, half-way between its lowest kept and its highest
    dropped pair; where all share a fate there is none.
    """
    for name, side in (("kept", kept), ("dropped", ~kept)):
        order = np.flatnonzero(side)[np.argsort(-reward[side], kind="stable")]
        yield f"{name}, best", order[:count]
        yield f"{name}, worst", order[-count:]
    lowest, highest = np.full((2, group.max() + 1), [[np.inf], [-np.inf]])
    np.minimum.at(lowest, group[kept], reward[kept])
    np.maximum.at(highest, group[~kept], reward[~kept])
    line = np.where(np.isfinite(lowest - highest), lowest / 2 + highest / 2, np.inf)
    nearest = np.argsort(np.abs(reward - line[group]), kind="stable")[:count]
    yield "nearest to the line", nearest[np.argsort(-reward[nearest], kind="stable")]


# ------------------------------------------------------------------------------- over several runs


MEASURES = {"toy": ["reward", "greedy_reward", "oracle", "greedy_oracle", "entropy"],
            "mt": ["reward", "sampled_bleu", "sampled_chrf", "bleu", "ter", "beam_bleu", "chrf",
                   "val_reward", "val_bleu"]}


def over_runs(folders):
    """Runs that differ in their seed -> tables of the mean, smallest and largest over them.

    First of every row, then of what it is above BC of the same run; best-of-N as means. What only
    some of the runs have is taken over these, and marked.
    """
    if not folders:
        raise UserError("give the folders of finished runs")
    runs = [read_results(Path(folder) / "results.json") for folder in folders]
    tasks = sorted({run["task"] for run in runs})
    if len(tasks) > 1:
        raise UserError(f"runs of {' and '.join(tasks)} have no common table")
    rows = [{label(row): row for row in run["rows"]} for run in runs]
    columns = [key for key in MEASURES.get(tasks[0], ["reward", "greedy_reward"])
               if any(key in row for run in runs for row in run["rows"])]
    names = list(dict.fromkeys(name for run in rows for name in run))
    above = [name for name in names if name != "BC"]
    lines = [f"{len(runs)} runs: mean (smallest..largest)", *over_table(names, columns, rows)]
    lines += ["", "above BC of the same run", *over_table(above, columns, rows, minus="BC")]
    lines += [best_of_n_table(over_best_of_n(runs))] if any(r["best_of_n"] for r in runs) else []
    lines.append("seconds: " + ", ".join(f"{run['seconds']:.0f}" for run in runs))
    return "\n".join(lines)


def read_results(path):
    """results.json of a finished run; UserError if it is not one."""
    results = read_json(path, task=str, seconds=(int, float), rows=list, best_of_n=list)
    named = {"name": str, "loss": str, "grow": int, "improve": int}
    parts = [(row, named) for row in results["rows"]]
    parts += [(entry, {"policy": str, "n": int}) for entry in results["best_of_n"]]
    numbers = dict.fromkeys(COLUMNS, (int, float, type(None)))
    whole = all(fits(part, kinds) and fits(dict.fromkeys(COLUMNS) | part, numbers)
                for part, kinds in parts)
    if not whole or not results["rows"]:
        raise UserError(f"{path}: damaged, or not the results of a finished run")
    return results


def over_table(names, columns, rows, minus=None):
    """A head, and a line for each row's name; columns are as wide as they need to be."""
    cells = [[COLUMNS[key][0] for key in columns],
             *([over_cell(name, key, rows, minus) for key in columns] for name in names)]
    width = max(18, *(len(cell) + 2 for line in cells for cell in line))
    return [f"{name:12}" + "".join(f"{cell:>{width}}" for cell in line)
            for name, line in zip(["", *names], cells)]


def over_cell(name, key, rows, minus):
    """Row `name` of each run (less its row `minus`), as mean, smallest and largest."""
    found = [(run[name].get(key), run[minus].get(key) if minus else 0) for run in rows
             if name in run and (minus is None or minus in run)]
    values = [(a - b) * COLUMNS[key][2] for a, b in found if None not in (a, b)]
    few = f" of {len(values)}" if len(values) < len(rows) else ""
    mean, low, high = map(COLUMNS[key][1].format,
                          (np.mean(values), min(values), max(values)) if values else (0, 0, 0))
    return f"{mean} ({low}..{high}){few}" if values else "-"


def over_best_of_n(runs):
    """The entries of best-of-N, each measure the mean over the runs that have it."""
    found = {}
    for run in runs:
        for entry in run["best_of_n"]:
            found.setdefault((entry["policy"], entry["n"]), []).append(entry)
    return [{"policy": policy, "n": n} | {
        key: float(np.mean(values)) for key in COLUMNS
        if (values := [e[key] for e in entries if e.get(key) is not None])}
        for (policy, n), entries in found.items()]


if __name__ == "__main__":
    run_cli(lambda: print(over_runs(sys.argv[1:])))
