"""The page of a run: index.html in its folder, one file that needs no network and no server.

It has Table 1, the figures, the examples, and D_g to be explored: which pairs each filter keeps at
which threshold. What it looks like, and all that moves on it, stands in page.html; here that
template is filled with what the run left behind, and at most PAIRS pairs of each Grow.

    write(folder, report, source_text, target_text)

source_text(i) is the text of D_g's source i, target_text(ids) that of an output, as for
report.look. Left out: making the page of an older run, as texts need its task.
"""

import base64
import json
import re
from html import escape
from pathlib import Path

import numpy as np

from infra.pairs import Pairs
from infra.seeds import stream
from infra.storage import atomic_write, read_json

PAIRS = 1000  # of a Grow; about 100 KB of the page
KNOWN = ("threshold", "quantile", "percentile", "gamma", "top")  # the filters that page.html has
MAIN = ("grow", "improve", "samples", "temperature", "filter", "thresholds", "loss", "lr")
PICTURES = {"improve": "Reward, and the metric that ReST never sees, after each Improve",
            "best_of_n": "The same two for the best of N samples, by reward",
            "rewards": "The rewards of D_g, and the thresholds of its Improves",
            "tradeoff": "Validation BLEU against validation reward"}


def try_to_write(*args, **kwargs):
    """write(...) -> None, or a line that says why there is no page: a finished run does not fail
    over it."""
    try:
        write(*args, **kwargs)
    except Exception as error:  # texts come from the task, which may be the user's own
        return f"no page: {type(error).__name__}: {' '.join(str(error).split())}"


def write(folder, report, source_text, target_text, pictures=True):
    """index.html of a finished run. report: a Report; pictures: embed the PNGs of the folder."""
    folder = Path(folder)
    results = read_json(folder / "results.json", task=str, seconds=(int, float), rows=list)
    settings = read_json(folder / "config.json", settings=dict)["settings"]
    name = settings.get("task") or f"{settings.get('src')}-{settings.get('tgt')}"
    data = explorer(folder, results["rows"], settings, source_text, target_text)
    parts = {"title": escape(f"ReST, {name}, seed {settings.get('seed')} ({folder.name})"),
             "seconds": f"{results['seconds']:.0f}",
             "main": listed({key: settings[key] for key in MAIN if key in settings}),
             "settings": listed(settings), "table": table(report.table()),
             "notes": "".join(f"<p>{escape(note)}</p>" for note in report.notes()),
             "examples": "".join(map(example, report.examples)),
             "pictures": embedded(folder) if pictures else "",
             # in a <script> only "<" could end it; all that is not ASCII is \uXXXX in JSON anyway
             "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c")}
    # in one pass, so that braces in what is filled in stay what they are
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]],
                  Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    atomic_write(folder / "index.html", lambda file: file.write(text.encode()))


# ------------------------------------------------------------------------------------------ HTML


def listed(settings):
    """Names and values, as items of a <dl>."""
    def shown(value):
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(shown(value))}</dd></div>"
                   for name, value in settings.items())


def table(lines):
    """Cells of text as rows of a <table>: the titles first, names in the first column."""
    head, *body = [[escape(cell) for cell in line] for line in lines]
    rows = ["".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in head)]
    rows += [f'<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
             for name, *cells in body]
    return "\n".join(f"<tr>{row}</tr>" for row in rows)


def example(lines):
    """A test source and what each policy made of it; long lines wrap, so each is its own box."""
    return '<div class="example">' + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</div>"


def embedded(folder):
    """The run's figures as data URIs."""
    found = {name: folder / f"{name}.png" for name in PICTURES}
    return "".join(
        f'<figure><img alt="{PICTURES[name]}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{PICTURES[name]}</figcaption>'
        "</figure>" for name, path in found.items() if path.exists())


# ------------------------------------------------------------------------------- D_g for the script


def explorer(folder, rows, settings, source_text, target_text):
    """What the script of page.html needs, as plain values: the run's filter, and each Grow."""
    name, grows, g = settings.get("filter"), [], 1
    while (scored := folder / "steps" / f"score-{g}").exists():
        rng = stream("page", settings["seed"], g)
        grows.append({"improves": improves(rows, g, settings),
                      **some_pairs(Pairs.load(scored), rng, source_text, target_text)})
        g += 1
    first = [row["threshold"] for grow in grows for row in grow["improves"]]
    first += settings.get("thresholds") or [0.5]
    return {"filter": name if name in KNOWN else "threshold", "threshold": first[0],
            "inclusive": settings.get("inclusive", False), "notes": remarks(settings),
            "grows": grows}


def improves(rows, g, settings):
    """Of each Improve of Grow g: what its filter was asked for, and what that was on all of D_g."""
    found = []
    for row in rows:
        if row["name"] == "ReST" and row["grow"] == g and row["improve"]:
            i, tau = row["improve"], row["threshold"]  # a row has the line, if there is one
            asked = settings["thresholds"][:i][-1] if settings["filter"] in KNOWN else tau
            found.append({"improve": i, "threshold": asked, "tau": tau,
                          "kept_samples": row["kept_samples"], "kept_data": row["kept_data"]})
    return [row for row in found if row["threshold"] is not None]


def some_pairs(D_g, rng, source_text, target_text):
    """At most PAIRS pairs of D_g, but a source's at least, with their texts.

    Whole sources are drawn, so that a filter within each source does to them what it did in the
    run. Rewards are float32, and come back exactly from the doubles that JSON holds.
    """
    counts = np.bincount(D_g.source)
    order = rng.permutation(np.flatnonzero(counts))
    n = np.searchsorted(counts[order].cumsum(), PAIRS, side="right")
    some = D_g.select(np.flatnonzero(np.isin(D_g.source, order[:max(1, n)])))  # in D_g's order
    return {"total": len(D_g), "texts": {int(i): source_text(i) for i in np.unique(some.source)},
            "source": some.source.tolist(), "reward": some.reward.tolist(),
            "human": some.human.tolist(), "target": list(map(target_text, some.targets()))}


def remarks(settings):
    """Sentences: what the run's selection has beside its filter and threshold."""
    name, most, said = settings.get("filter"), settings.get("max_per_source"), []
    if name not in KNOWN:
        said.append(f"The run's own filter, {name}, is not on this page: in its place stand the "
                    "lines τ that it drew.")
    if settings.get("inclusive"):
        said.append("What equals τ is kept too (--inclusive).")
    if settings.get("human_data") == "whole":
        said.append("The run kept all of D (--human-data whole); here it is filtered too.")
    if most:
        said.append(f"The run kept at most {most} samples of a source (--max-per-source); here "
                    "there is no such limit.")
    return said
