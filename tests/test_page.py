"""page.py and page.html: what is embedded, how text is escaped, and that in a real browser a page
keeps the very pairs that rest.FILTERS keep."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rest
from helpers import some_policy
from infra import figures, page
from infra.pairs import Pairs
from infra.report import COLUMNS, Report, finish
from infra.run import Run
from infra.settings import RunSettings

SETTINGS = {"task": "language", "seed": 3, "filter": "quantile", "thresholds": [0.5, 0.7],
            "inclusive": False}
NASTY = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- ", "\"'&amp;",
         "a\u2028b\u2029c", "{{data}} {{settings}}", "\\u003c", "مرحبا 😀", "]]></pre></table>")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)


def some_D_g(sources=60, most=12, seed=0):
    """Sources of 1 to `most` pairs in no order; rewards with many ties, and some that a double
    would order otherwise than a float32 (0.1 is one)."""
    rng = np.random.default_rng(seed)
    source = rng.permutation(np.repeat(7 * np.arange(sources), rng.integers(1, most + 1, sources)))
    reward = np.where(rng.random(len(source)) < 0.5, rng.integers(0, 21, len(source)) / 20,
                      rng.beta(5, 4, len(source)))
    pairs = Pairs.of(source, [np.array([k, 2]) for k in range(len(source))], reward=reward)
    pairs.human[rng.permutation(len(source))[:len(source) // 5]] = True
    return pairs


def row(g, i, **more):
    return {"name": "ReST" if g else "BC", "loss": "bc", "grow": g, "improve": i, "reward": 0.5,
            "entropy": 1.0, "kl_to_bc": 0.1 * i + g, "threshold": 0.6 + 0.1 * i if i else None,
            "kept_samples": 0.5, "kept_data": None} | more


def write(folder, D_gs=(), settings=SETTINGS, source_text="x{}".format, pictures=True,
          examples=(["source      ja", "BC          yes"],), rows=(), columns=COLUMNS):
    """The page of a made-up run -> its text. An output's text is its pair's number."""
    rows = list(rows) or [row(0, 0)] + [row(g, i) for g in range(1, len(D_gs) + 1)
                                        for i in range(4)]
    (folder / "steps").mkdir(parents=True)
    for g, D_g in enumerate(D_gs, 1):
        D_g.append_to(folder / "steps" / f"score-{g}")
    (folder / "results.json").write_text(json.dumps({"task": "toy", "seconds": 61.7, "rows": rows}))
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    report = Report(SimpleNamespace(folder=folder), list(columns), list(examples), None)
    report.rows = rows
    page.write(folder, report, source_text, lambda ids: f"y{ids[0]}", pictures)
    return (folder / "index.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags in order, attributes, and the text inside of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, text):
        if self.open:
            self.texts[self.open][-1] += text


def data_of(text):
    """What the script of a page is given, read as a browser finds it."""
    return json.loads(Elements(text).texts["script"][0])


# ---------------------------------------------------------------------------------- what is in it


def test_what_is_embedded_comes_back_exactly(tmp_path):
    D_g = some_D_g()
    D_g.reward[:4] = 0.1, np.nextafter(np.float32(0.1), np.float32(1)), 1e-38, 1
    grow, = data_of(write(tmp_path / "run", [D_g]))["grows"]
    assert np.array_equal(np.array(grow["reward"]), D_g.reward.astype(float))
    assert grow["source"] == D_g.source.tolist() and grow["human"] == D_g.human.tolist()
    assert grow["target"] == [f"y{k}" for k in range(len(D_g))] and grow["total"] == len(D_g)
    assert grow["texts"] == {str(x): f"x{x}" for x in set(D_g.source.tolist())}


def test_of_a_large_D_g_whole_sources_are_drawn(tmp_path):
    D_g = some_D_g(1000)
    assert len(D_g) > 5 * page.PAIRS
    text = write(tmp_path / "a", [D_g])
    grow, = data_of(text)["grows"]
    index = np.array([int(y[1:]) for y in grow["target"]])
    assert page.PAIRS - 12 < len(index) <= page.PAIRS and grow["total"] == len(D_g)
    assert len(text) < 200_000
    chosen = np.isin(D_g.source, D_g.source[index])
    assert np.array_equal(np.flatnonzero(chosen), index)  # all of theirs, in D_g's order
    assert abs(np.median(np.unique(D_g.source[index])) - 7 * 500) < 7 * 120  # from everywhere
    assert data_of(write(tmp_path / "b", [D_g])) == data_of(text)
    other = data_of(write(tmp_path / "c", [D_g], SETTINGS | {"seed": 4}))["grows"][0]
    assert other["source"] != grow["source"]


def test_a_source_with_more_pairs_than_the_page_is_there_as_a_whole(tmp_path):
    reward = np.linspace(0, 1, page.PAIRS + 5)
    D_g = Pairs.of([4] * len(reward), [np.array([3, 2])] * len(reward), reward=reward)
    assert len(data_of(write(tmp_path / "run", [D_g]))["grows"][0]["reward"]) == len(reward)


def test_each_grow_has_the_thresholds_of_its_improves(tmp_path):
    data = data_of(write(tmp_path / "run", [some_D_g(), some_D_g(seed=1)]))
    assert (data["filter"], data["threshold"], data["inclusive"]) == ("quantile", 0.5, False)
    for grow in data["grows"]:  # the last threshold repeats; I = 0 has none
        assert [(x["improve"], x["threshold"]) for x in grow["improves"]] == [
            (1, 0.5), (2, 0.7), (3, 0.7)]
        assert grow["improves"][1] == {"improve": 2, "threshold": 0.7, "tau": 0.8,
                                       "kept_samples": 0.5, "kept_data": None}
    assert data["notes"] == []


def test_what_the_page_leaves_out_is_said(tmp_path):
    own = SETTINGS | {"filter": "zscore", "thresholds": [0.0, 1.0], "human_data": "whole",
                      "max_per_source": 3, "inclusive": True}
    data = data_of(write(tmp_path / "run", [some_D_g()], own))
    assert (data["filter"], data["inclusive"]) == ("threshold", True)  # the τ that it drew
    assert data["threshold"] == data["grows"][0]["improves"][0]["threshold"] == 0.7
    assert ["zscore" in data["notes"][0], "inclusive" in data["notes"][1],
            "human-data" in data["notes"][2], "at most 3" in data["notes"][3]] == 4 * [True]


def test_the_page_has_the_filters_of_rest():
    experiments = {"random"}  # theirs, where another test has imported it
    assert set(page.KNOWN) == set(rest.FILTERS) - experiments


@pytest.mark.parametrize("settings", [SETTINGS, {}])
def test_a_run_without_a_grow(tmp_path, settings):
    text = write(tmp_path / "run", settings=settings)
    assert data_of(text)["grows"] == []
    assert "BC" in Elements(text).texts["th"] and "50.0" in Elements(text).texts["td"]
    assert '<section id="explore" hidden>' in text


def test_head_table_and_examples(tmp_path):
    text = write(tmp_path / "run", rows=[row(0, 0), row(1, 1), row(1, 2, kl_to_bc=1.1)],
                 columns=["reward", "kept_data"])
    found = Elements(text).texts
    assert found["h1"] == found["title"] == ["ReST, language, seed 3 (run)"]
    assert list(zip(found["dt"], found["dd"]))[:2] == [("seconds", "62"), ("filter", "quantile")]
    assert found["th"][:5] == ["reward sampled", "D kept", "BC", "ReST (1,1)", "ReST (1,2)"]
    assert found["td"][:11] == ["", "", "50.0", "-", "", "50.0", "-", "", "50.0", "-",
                                "= ReST (1,1)"]
    assert "(=: still that row's policy, no checkpoint was better)" in found["p"]
    assert found["p"][-2:] == ["source      ja", "BC          yes"]


def test_figures_are_embedded(tmp_path):
    (tmp_path / "run").mkdir()
    png = b"\x89PNG" + bytes(range(256))
    (tmp_path / "run/rewards.png").write_bytes(png)
    (tmp_path / "run/stranger.png").write_bytes(png)
    found = Elements(write(tmp_path / "run"))
    source, = [value for tag, name, value in found.attributes if (tag, name) == ("img", "src")]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    assert found.texts["figcaption"] == [page.PICTURES["rewards"]]
    shutil.rmtree(tmp_path / "run/steps")
    assert "<img" not in write(tmp_path / "run", pictures=False)


def test_every_figure_has_its_title():
    named = re.findall(r"^    (\w+)\.png", figures.__doc__, flags=re.M)
    assert named == list(page.PICTURES)


# --------------------------------------------------------------------------- nothing gets in or out


def test_no_text_becomes_html(tmp_path):
    """The page has the same elements as with harmless text, and the text is there to be read."""
    def page_of(name, words):
        return write(tmp_path / name, [some_D_g(9, 1)], SETTINGS | {"task": words[0]},
                     lambda i: words[i // 7], examples=[list(words)])

    plain, nasty = (Elements(page_of(*x)) for x in (("a", ["word"] * 9), ("b", NASTY)))
    assert nasty.tags == plain.tags and nasty.texts["p"][-9:] == list(NASTY)
    assert [x[:2] for x in nasty.attributes] == [x[:2] for x in plain.attributes]
    assert nasty.texts["h1"] == [f"ReST, {NASTY[0]}, seed 3 (b)"]
    data = nasty.texts["script"][0]
    assert not set(data) & set("<\u2028\u2029") and data.isascii()
    assert set(json.loads(data)["grows"][0]["texts"].values()) == set(NASTY)


def test_a_page_loads_nothing_and_parses_no_text():
    found = Elements(template := Path(page.__file__).with_name("page.html").read_text("utf-8"))
    links = [value for _, name, value in found.attributes if name in ("src", "href", "srcset")]
    assert links == ["data:,"]
    assert not re.search(r"https?:(?!//www.w3.org/2000/svg)|@import|url\(|fetch\(", template)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", template)
    assert "default-src 'none'" in template
    assert max(map(len, template.split("\n"))) <= 100


def test_the_template_is_installed():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'\[tool\.setuptools\.package-data\]\ninfra = \["page\.html"\]', text)


# ------------------------------------------------------------------------------------ a run's end


def finished(tmp_path, capsys, source_text=str):
    """A made-up run's end -> its folder, and the lines that it prints last."""
    with Run(RunSettings(out=str(tmp_path / "run")), "made-up") as run:
        report = Report(run, ["reward"], [["source      ja"]], lambda policy: ["yes"])
        report.add(row(0, 0), None)
        some_D_g(5).append_to(run.folder / "steps/score-1")
        run.config["settings"] |= SETTINGS
        run.save_json("config.json", run.config)
        finish(run, "toy", report, [{"policy": "BC", "n": 1, "reward": 0.5}], some_policy(), None,
               source_text, str)
        return run.folder, capsys.readouterr().out.splitlines()


def test_a_run_ends_with_its_page_also_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it now fails
    (tmp_path / "run").mkdir()
    folder, printed = finished(tmp_path, capsys)
    assert printed[-1].endswith(f"{folder}/; look at its index.html")
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<img" not in text and len(data_of(text)["grows"]) == 1
    assert "BC          yes" in Elements(text).texts["p"]


def test_a_finished_run_does_not_fail_over_its_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: [])
    folder, printed = finished(tmp_path, capsys, source_text=lambda i: [][i])
    assert not (folder / "index.html").exists() and (folder / "policy.pt").exists()
    assert printed[-3] == "no page: IndexError: list index out of range"
    assert printed[-1].endswith(f"are in {folder}/")


# ------------------------------------------------------------------------------- in a real browser

STATES = {"threshold": [0, 0.1, 0.35, 0.5, 0.7, 0.95, 1], "top": [1, 2, 3.5, 12],
          "quantile": [0, 0.1, 0.333, 0.5, 0.7, 0.85, 1], "gamma": [0, 0.2, 0.37, 0.9, 1],
          "percentile": [0, 30, 50, 66.6, 70, 95, 100]}
ASK = """<script>
document.documentElement.style.width = "390px";  // a phone's; no window gets as narrow here
draw();
const answers = { address: { ...state }, alarm: window.alarm ?? null,
  slider: find("slider").value, wide: document.body.scrollWidth,
  unnamed: [...document.querySelectorAll("select, input, button")].filter(x =>
    !(x.labels?.length || x.ariaLabel || x.textContent)).length, states: [] };
for (const [grow, filter, threshold] of ASKED) {
  choose({ grow, filter, threshold }, true);
  answers.states.push({ counts: [...document.querySelectorAll("#counts tr")].slice(1).map(tr =>
      [...tr.cells].slice(1).map(cell => cell.textContent.replace(/\\s/g, ""))),
    ...keep(grows[grow - 1], filter, threshold),
    label: document.querySelector("#histogram .tau + text")?.textContent,
    bars: document.querySelectorAll("#histogram rect.kept").length,
    nearest: [...document.querySelectorAll("#pairs ol")].map(list =>
      [...list.querySelectorAll("bdi:last-child")].map(text => text.textContent)) });
}
document.body.replaceChildren(JSON.stringify(answers));
</script>"""


def ask(folder, address, asked):
    """Open a run's page, go through the states [(Grow, filter, threshold)] -> what it shows."""
    if BROWSER is None:
        pytest.skip("no chromium")
    text = (folder / "index.html").read_text(encoding="utf-8")
    asking = ASK.replace("ASKED", json.dumps(asked))
    text = text.replace("<body>", "<body><script>window.alert = () => { alarm = 1; }</script>")
    (folder / "asked.html").write_text(text.replace("</body>", asking + "</body>"), "utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,844",
         f"--user-data-dir={folder / 'browser'}", "--dump-dom",
         (folder / "asked.html").as_uri() + address],
        capture_output=True, text=True, encoding="utf-8", timeout=100)
    body = Elements(done.stdout).texts.get("body", ["nothing"])[0]
    return json.loads(body)


def drawn_lines(source, reward, name, value, kept):
    """(n,): each pair's line; for `top`, half-way between kept and dropped."""
    if rest.FILTERS[name].tau:
        tau = rest.FILTERS[name].tau(source, reward, value)
        return np.broadcast_to(np.float32(tau) if np.ndim(tau) == 0 else tau, len(reward))
    reward = reward.astype(float)
    return np.array([(min(reward[(source == x) & kept], default=np.inf)
                      + max(reward[(source == x) & ~kept], default=-np.inf)) / 2 for x in source])


@pytest.mark.parametrize("inclusive", [False, True])
def test_a_browser_keeps_what_rest_keeps(tmp_path, inclusive):
    D_gs = [some_D_g(), some_D_g(300, seed=1)]
    text = write(tmp_path, D_gs, SETTINGS | {"inclusive": inclusive}, lambda i: NASTY[i % 9],
                 examples=[NASTY, ["source      " + 30 * "word ", "BC          " + 90 * "x"]])
    asked = [(g, name, value) for g in (1, 2) for name, values in STATES.items()
             for value in values[g - 1::g]]
    found = ask(tmp_path, "#grow=2&filter=percentile&threshold=70", asked)
    assert found["address"] == {"grow": 2, "filter": "percentile", "threshold": 70}
    assert found["slider"] == "70" and found["unnamed"] == 0
    assert found["alarm"] is None  # no text has become a script
    assert 300 < found["wide"] <= 390  # nothing but a table scrolls sideways on a phone
    for (g, name, value), shown in zip(asked, found["states"], strict=True):
        D_g = D_gs[g - 1]
        index = np.array([int(y[1:]) for y in data_of(text)["grows"][g - 1]["target"]])
        source, reward, human = D_g.source[index], D_g.reward[index], D_g.human[index]
        kept = rest.FILTERS[name].keep(source, reward, value, inclusive)
        assert shown["kept"] == kept.tolist(), (g, name, value)
        for mine, cells in zip((~human, human, human | True), shown["counts"], strict=True):
            assert cells[:2] == [str(mine.sum()), str((mine & kept).sum())]
            for part, cell in zip((mine, mine & kept), cells[3:]):
                assert (cell == "–") == (not part.any())
                assert cell == "–" or abs(float(cell) - 100 * reward[part].mean()) < 0.051
        lines = drawn_lines(source, reward, name, value, kept)
        # the last bit of a quantile: an older numpy takes its place in float32 too
        old = name == "quantile" and np.lib.NumpyVersion(np.__version__) < "2.4.0"
        np.testing.assert_allclose([np.inf if x is None else x for x in shown["lines"]],
                                   np.abs(lines), rtol=1e-6 if old else 0)
        away = np.where(np.isfinite(lines), np.abs(reward - lines), np.inf)
        lists = iter(shown["nearest"])
        for side in (kept, ~kept):
            nearest = np.sort(away[side & np.isfinite(away)])[:6]
            if len(nearest):
                at = [index.tolist().index(int(y[1:])) for y in next(lists)]
                assert side[at].all() and len(set(at)) == len(at)
                np.testing.assert_array_equal(away[at], nearest)
        if rest.FILTERS[name].within_source:
            assert "label" not in shown
        else:
            assert abs(float(shown["label"].removeprefix("τ = ")) - 100 * lines[0]) < 0.051
        assert (shown["bars"] > 0) == kept.any()
