"""report.py: rows as lines, best-of-N as a table, examples, and a look into made-up pairs."""

import json
import re
import runpy
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

import rest
from helpers import some_policy
from infra.errors import UserError
from infra.pairs import Pairs
from infra.report import (COLUMNS, Report, best_of_n_table, chosen, finish, label, look,
                          over_runs)
from infra.run import Run
from infra.settings import RunSettings

ROW = {"name": "ReST", "loss": "bc", "grow": 1, "improve": 2, "reward": 0.7349, "oracle": 0.5,
       "entropy": 1.239, "kl_to_bc": 0.25, "kept_samples": 0.296, "kept_data": 1.0,
       "samples": 12345678, "seconds": 8.6, "bleu": 31.55}


@pytest.fixture
def run(tmp_path):
    with Run(RunSettings(out=str(tmp_path / "run")), "made-up") as run:
        yield run


@pytest.mark.parametrize("row, name", [
    ({"name": "BC", "loss": "bc", "grow": 0, "improve": 0}, "BC"),
    ({"name": "ReST", "loss": "bc", "grow": 1, "improve": 0}, "ReST (1,0)"),
    ({"name": "ReST", "loss": "gold", "grow": 2, "improve": 3}, "GOLD (2,3)"),
    ({"name": "ReST", "loss": "bvmpo", "grow": 1, "improve": 1}, "BVMPO (1,1)"),
    ({"name": "PPO", "loss": "ppo", "grow": 62, "improve": 4}, "PPO")])
def test_labels_are_the_papers(row, name):
    assert label(row) == name


def report_of(run, columns, rows=(), note=""):
    """A report of these rows, without examples."""
    report = Report(run, columns, [], lambda policy: [], note)
    report.rows = list(rows)
    return report


def test_a_line_stands_under_its_head(run):
    report = report_of(run, ["reward", "entropy", "kept_samples", "samples", "seconds", "bleu"],
                       [ROW])
    assert report.head().splitlines() == [
        "               reward           samples  samples              BLEU",
        "              sampled  entropy     kept    drawn  seconds   greedy"]
    assert report.line(ROW) == "ReST (1,2)       73.5     1.24      30% 12345678        9     31.6"
    assert {len(line) for line in report.head().splitlines()} == {len(report.line(ROW))}


def test_no_two_heads_are_the_same(run):
    """Both lines of a head joined; and none runs into the next."""
    report = report_of(run, list(COLUMNS))
    above, below = report.head().splitlines()
    assert len(above) == len(below) == 12 + 9 * len(COLUMNS)
    heads = [(above[at : at + 9], below[at : at + 9]) for at in range(12, len(above), 9)]
    joined = [" ".join(" ".join(head).split()) for head in heads]
    assert joined == [title for title, *_ in COLUMNS.values()]
    assert len(set(joined)) == len(COLUMNS) and all(head[1].strip() for head in heads)
    assert all(line.startswith(" ") for head in heads for line in head)


@pytest.mark.parametrize("key", COLUMNS)
def test_what_is_not_known_is_a_dash(run, key):
    bc = {"name": "BC", "loss": "bc"}
    report = report_of(run, [key], [bc])
    empty = bc | {key: None}
    report.rows.append(empty)
    report.same = lambda row: ""
    assert report.line(empty) == report.line(bc)
    assert report.line(empty).split() == ["BC", "-"]
    assert len(report.line(empty)) == len(report.head().splitlines()[0]) == 12 + 9
    _, form, scale = COLUMNS[key]
    shown = report.line(ROW | {key: 1 if form == "{:d}" else 1.0})[12:].strip().rstrip("%")
    assert float(shown) == scale  # 1.0 is 100 of 100, or BLEU 1


def test_zero_is_not_unknown(run):
    bc = {"name": "BC", "loss": "bc", "reward": 0.0, "samples": 0}
    assert report_of(run, ["reward", "samples"], [bc]).line(bc).split() == ["BC", "0.0", "0"]


BC = {"name": "BC", "loss": "bc", "grow": 0, "improve": 0, "reward": 0.5, "entropy": 1.0,
      "kl_to_bc": 0.0}


def test_a_row_whose_policy_is_an_earlier_one_says_so(run, capsys):
    """Its Improve found no better checkpoint: what its policy is measured by is the same."""
    rows = [BC, BC | {"name": "ReST", "grow": 1, "threshold": None}, ROW | {"improve": 1}, ROW,
            ROW | {"improve": 3, "kept_samples": 0.1}, ROW | {"improve": 4, "entropy": 1.2},
            ROW | {"name": "PPO", "reward": 0.8}]
    report = Report(run, ["reward"], [], lambda policy: [], "(a note)")
    for row in rows:
        report.add(row, None)
    marks = ["", "  = BC", "", "  = ReST (1,1)", "  = ReST (1,1)", "", ""]
    printed = capsys.readouterr().out.splitlines()
    assert [line[21:] for line in printed[3:]] == marks
    last = ["(=: still that row's policy, no checkpoint was better)", "(a note)"]
    assert str(report).splitlines() == [*printed, *last]


def test_where_all_rows_differ_nothing_is_said_of_equal_ones(run):
    report = report_of(run, ["reward"], [BC, ROW, ROW | {"improve": 3, "kl_to_bc": 0.3}])
    assert "=" not in str(report)
    assert str(report).splitlines()[3:] == [report.line(row) for row in report.rows]


def test_add_prints_and_keeps_what_became_of_the_examples(run, capsys):
    (run.folder / "samples.txt").write_text("of the process that was interrupted")
    report = Report(run, ["reward"], [["source      ja"], ["source      nein", "right       no"]],
                    lambda policy: [f"{policy} · yes", f"{policy} no"])
    assert report.add(BC, "first") is None
    samples = run.folder / "samples.txt"
    assert samples.read_text(encoding="utf-8") == (
        "source      ja\nBC          first · yes\n\n"
        "source      nein\nright       no\nBC          first no\n")
    report.add(ROW, "second")
    assert report.rows == [BC, ROW]
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["", *report.head().splitlines(), report.line(BC), report.line(ROW)]  # 1 head
    assert str(report).splitlines() == printed
    assert samples.read_text(encoding="utf-8") == report.examples_text() == (
        "source      ja\nBC          first · yes\nReST (1,2)  second · yes\n\n"
        "source      nein\nright       no\nBC          first no\nReST (1,2)  second no\n")


def test_a_finished_run_prints_table_best_of_n_and_examples(run, capsys, monkeypatch):
    monkeypatch.setattr("infra.figures.draw", lambda folder: [])
    report = Report(run, ["reward"], [["source      ja"]], lambda policy: ["yes"])
    report.add(BC, None)
    capsys.readouterr()
    best = [{"policy": "BC", "n": 1, "reward": 0.5}]
    policy = some_policy()
    finish(run, "toy", report, best, policy, None, str, str, "more of it")
    out = capsys.readouterr().out
    parts = [str(report), best_of_n_table(best), report.examples_text(), "more of it",
             str(run.folder)]
    assert [out.count(part) for part in parts[:4]] == 4 * [1]
    assert sorted(parts, key=out.index) == parts
    assert json.loads((run.folder / "results.json").read_text())["rows"] == [BC]
    assert (run.folder / "policy.pt").exists() and not (run.folder / "reward.pt").exists()


def test_best_of_n_table():
    entries = [{"policy": p, "n": n, "reward": r + n / 100, "oracle": r / 2 + n / 100}
               for p, r in (("BC", 0.5), ("ReST", 0.7)) for n in (1, 2, 4)]
    assert best_of_n_table(entries).splitlines() == [
        "", "best of N               1      2      4",
        "BC, reward           51.0   52.0   54.0", "BC, oracle           26.0   27.0   29.0",
        "ReST, reward         71.0   72.0   74.0", "ReST, oracle         36.0   37.0   39.0"]


def test_best_of_n_table_leaves_bleu_as_it_is():
    entries = [{"policy": "BC", "n": 1, "reward": 0.5, "bleu": 31.25, "chrf": 50.0}]
    assert best_of_n_table(entries).splitlines()[2:] == [
        "BC, reward           50.0", "BC, BLEU             31.2", "BC, chrF             50.0"]


# ------------------------------------------------------------------------------- a look into D_g

REWARD = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.8, 0.5], np.float32)
ALL = np.zeros(7, int)  # one group


def test_chosen_are_the_ends_and_the_middle():
    kept = REWARD > 0.5
    found = {title: list(index) for title, index in chosen(REWARD, kept, ALL, 2)}
    assert found == {"kept, best": [1, 5], "kept, worst": [5, 3], "dropped, best": [2, 6],
                     "dropped, worst": [4, 0], "nearest to the line": [3, 2]}
    assert list(found) == ["kept, best", "kept, worst", "dropped, best", "dropped, worst",
                           "nearest to the line"]


@pytest.mark.parametrize("value, kept_n", [(2.0, 0), (-1.0, 7)])
def test_chosen_when_one_side_is_empty(value, kept_n):
    kept = REWARD > value
    found = {title: list(index) for title, index in chosen(REWARD, kept, ALL, 3)}
    full, empty = ("kept", "dropped") if kept_n else ("dropped", "kept")
    assert found[f"{full}, best"] == [1, 5, 3] and found[f"{full}, worst"] == [6, 4, 0]
    assert found[f"{empty}, best"] == found[f"{empty}, worst"] == []
    assert len(found["nearest to the line"]) == 3


def test_chosen_nearest_to_the_line_of_their_own_source():
    source = np.array([0, 0, 0, 1, 1, 1, 2])
    kept = np.array([False, True, False, True, False, True, False])
    found = {title: list(index) for title, index in chosen(REWARD, kept, source, 2)}
    # the gaps are 0.9 - 0.5 and 0.7 - 0.3: the lines at 0.7 and 0.5, and source 2 has none
    assert set(found["nearest to the line"]) <= {1, 2, 3, 4}
    found = {title: list(index) for title, index in chosen(REWARD, kept, source, 7)}
    assert found["nearest to the line"] == [1, 5, 3, 2, 6, 4, 0]


def test_chosen_of_fewer_than_asked_for():
    two = REWARD[:2]
    found = {title: list(index) for title, index in chosen(two, two > 0.5, ALL[:2], 9)}
    assert found["kept, best"] == found["kept, worst"] == [1]
    assert found["dropped, best"] == found["dropped, worst"] == [0]


@dataclass
class Settings(RunSettings, rest.Settings):
    """As the programs have them."""


SETTINGS = Settings(grow=2, improve=(2, 1), thresholds=(0.25, 0.6), filter="threshold", show=1)


def save_grow(run, g, reward):
    n = len(reward)
    pairs = Pairs.of(np.arange(n), [np.array([10 + i, 2]) for i in range(n)], reward=reward)
    pairs.human[-2:] = True
    pairs.append_to(run.folder / "steps" / f"score-{g}")


def test_look(run, capsys):
    save_grow(run, 1, REWARD)
    look(run, SETTINGS, rest.select, lambda i: f"source{i}", lambda ids: f"target{ids[0]}")
    assert capsys.readouterr().out.splitlines() == [
        "", "Grow 1, Improve 1: threshold, τ = 0.250, keeps 6 of 7 pairs, 100% of D",
        "  kept, best", "     90.0 sample kept    source1  ->  target11",
        "  kept, worst", "     30.0 sample kept    source4  ->  target14",
        "  dropped, best", "     10.0 sample dropped source0  ->  target10",
        "  dropped, worst", "     10.0 sample dropped source0  ->  target10",
        "  nearest to the line", "     10.0 sample dropped source0  ->  target10",
        "", "Grow 1, Improve 2: threshold, τ = 0.600, keeps 3 of 7 pairs, 50% of D",
        "  kept, best", "     90.0 sample kept    source1  ->  target11",
        "  kept, worst", "     70.0 sample kept    source3  ->  target13",
        "  dropped, best", "     50.0 sample dropped source2  ->  target12",
        "  dropped, worst", "     10.0 sample dropped source0  ->  target10",
        "  nearest to the line", "     50.0 sample dropped source2  ->  target12"]


def test_look_tells_humans_from_samples_and_sees_each_grow(run, capsys):
    save_grow(run, 1, REWARD)
    save_grow(run, 2, 1 - REWARD)
    look(run, replace(SETTINGS, show=9), rest.select, str, str)
    out = capsys.readouterr().out
    assert out.count("Grow 1, ") == 2 and out.count("Grow 2, ") == 1
    first = out.split("\n\n")[0]
    assert all((" human " in line) == (line.split()[3][-1] in "56")
               for line in first.splitlines() if "  ->  " in line)


def heads(out):
    return [line for line in out.splitlines() if line.startswith("Grow")]


def test_look_at_the_improves_that_there_were(run, capsys):
    """The last number of `improve` serves on; I = 0 has no filter to look at."""
    for g in (1, 2, 3):
        save_grow(run, g, REWARD)
    for unfiltered in (True, False):
        look(run, replace(SETTINGS, grow=3, unfiltered=unfiltered), rest.select, str, str)
        assert [line.split(":")[0] for line in heads(capsys.readouterr().out)] == [
            "Grow 1, Improve 1", "Grow 1, Improve 2", "Grow 2, Improve 1", "Grow 3, Improve 1"]


def test_look_with_every_switch_of_the_filter(run, capsys):
    save_grow(run, 1, REWARD)  # two of the seven are human: 0.8 and 0.5
    for changes, kept, of_D in [(dict(human_data="whole"), 4, 100), (dict(), 3, 50),
                                (dict(max_per_source=1), 3, 50),
                                (dict(thresholds=(0.5,), inclusive=True), 5, 100)]:
        look(run, replace(SETTINGS, **dict(grow=1, improve=(1,), thresholds=(0.6,)) | changes),
             rest.select, str, str)
        line, = heads(capsys.readouterr().out)
        assert f"keeps {kept} of 7 pairs, {of_D}% of D" in line


def test_look_through_a_filter_within_each_source(run, capsys):
    """It has no τ to be named, and what is nearest to the line is so within its source."""
    pairs = Pairs.of([0, 0, 0, 1, 1, 1, 2], [[10 + i, 2] for i in range(7)], reward=REWARD)
    pairs.append_to(run.folder / "steps" / "score-1")
    for name, value, kept in (("top", 1, 3), ("percentile", 50, 2), ("gamma", 0.2, 3)):
        settings = replace(SETTINGS, improve=(1,), filter=name, thresholds=(value,), show=2)
        look(run, settings, rest.select, lambda i: f"source{i}", lambda ids: f"target{ids[0]}")
        out = capsys.readouterr().out
        line, = heads(out)
        assert line == f"Grow 1, Improve 1: {name}, keeps {kept} of 7 pairs, 0% of D"
        nearest = out.split("nearest to the line\n")[1].splitlines()
        assert all("source2" not in line for line in nearest) and len(nearest) == 2


def test_look_at_a_D_g_without_D(run, capsys):
    n = len(REWARD)
    Pairs.of(np.arange(n), n * [np.array([10, 2])], reward=REWARD).append_to(
        run.folder / "steps" / "score-1")
    look(run, replace(SETTINGS, human_data="out"), rest.select, str, str)
    out = capsys.readouterr().out
    assert "keeps 6 of 7 pairs, 0% of D" in out and " human " not in out


def test_look_at_nothing(run):
    with pytest.raises(UserError, match="nothing to show"):
        look(run, SETTINGS, rest.select, str, str)


def test_look_shows_equal_outputs_of_a_source_once(run, capsys):
    """But of two sources twice; and all of them are counted."""
    targets = [[10, 2], [11, 2], [10, 2], [10, 2]]
    pairs = Pairs.of([0, 0, 0, 1], targets, reward=[0.9, 0.1, 0.9, 0.8])
    pairs.append_to(run.folder / "steps" / "score-1")
    look(run, replace(SETTINGS, improve=(1,), show=9), rest.select, lambda i: f"source{i}", str)
    _, head, _, *shown = capsys.readouterr().out.splitlines()
    assert "keeps 3 of 4 pairs" in head
    assert shown[:3] == ["     90.0 sample kept    source0  ->  [10  2]",
                         "     80.0 sample kept    source1  ->  [10  2]", "  kept, worst"]
    assert sum("source0  ->  [10  2]" in line for line in shown) == 3  # best, worst, nearest


# ------------------------------------------------------------------------------- over several runs


def made_up(task="toy", by=0.0, **metrics):
    """Results of a BC and a GOLD."""
    rows = [{"name": "BC", "loss": "bc", "grow": 0, "improve": 0},
            {"name": "ReST", "loss": "gold", "grow": 1, "improve": 1}]
    for k, row in enumerate(rows):
        row |= {key: value + by * (k + 1) for key, value in metrics.items()}
    best = [{"policy": "BC", "n": n, "reward": 0.5 + n * by} for n in (1, 2)]
    return {"task": task, "seconds": 61.4, "rows": rows, "best_of_n": best}


def save_results(folder, results):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def cells(line):
    return line[:12].strip(), *re.split(" {2,}", line[12:].strip())


def test_means_over_runs(tmp_path):
    folders = [save_results(tmp_path / str(by), made_up(
        by=by, reward=0.5, greedy_reward=0.6, oracle=0.25, greedy_oracle=0.75, entropy=0.5))
        for by in (0.02, 0.0, 0.07)]
    lines = over_runs(folders).splitlines()
    assert lines[0].startswith("3 runs") and lines[-1] == "seconds: 61, 61, 61"
    assert cells(lines[2]) == ("BC", "53.0 (50.0..57.0)", "63.0 (60.0..67.0)",
                               "28.0 (25.0..32.0)", "78.0 (75.0..82.0)", "0.53 (0.50..0.57)")
    assert cells(lines[3])[:2] == ("GOLD (1,1)", "56.0 (50.0..64.0)")
    assert lines[4:6] == ["", "above BC of the same run"] and cells(lines[6]) == cells(lines[1])
    assert cells(lines[7]) == ("GOLD (1,1)", *4 * ["3.0 (0.0..7.0)"], "0.03 (0.00..0.07)")  # pairs
    assert lines[-3:-1] == ["best of N               1      2", "BC, reward           53.0   56.0"]


def test_means_over_runs_of_translation(tmp_path):
    folder = save_results(tmp_path / "a", made_up(
        "mt", reward=0.5, greedy_reward=0.6, bleu=31.0, beam_bleu=32.0, chrf=50.0,
        sampled_chrf=44.0, val_reward=0.4, val_bleu=33.0))
    table = over_runs([folder])
    assert "31.0 (31.0..31.0)" in table
    assert cells(table.splitlines()[1]) == (
        "", "reward sampled", "chrF sampled", "BLEU greedy", "BLEU beam", "chrF greedy",
        "val. reward", "val. BLEU")


def test_means_over_no_run(tmp_path):
    with pytest.raises(UserError, match="results.json is missing"):
        over_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="give the folders"):
        over_runs([])


def test_runs_of_other_settings_have_what_is_missing_as_a_dash(tmp_path):
    """Another loss, another number of Grows, no BC, no best-of-N, measures that are not there."""
    whole, other, odd = (made_up(reward=0.5, oracle=x) for x in (0.25, 0.35, 0.45))
    other["rows"][1]["loss"] = "bc"
    other["rows"].append(other["rows"][1] | {"grow": 2, "reward": None})
    odd["rows"], odd["best_of_n"] = odd["rows"][1:], []
    other["best_of_n"][0]["oracle"] = 0.5
    lines = over_runs([save_results(tmp_path / str(k), results)
                       for k, results in enumerate((whole, other, odd))]).splitlines()
    shown = list(map(cells, lines))
    reward = "50.0 (50.0..50.0) of 2"
    assert shown[1] == ("", "reward sampled", "oracle sampled")  # what none has is no column
    assert shown[2:6] == [
        ("BC", reward, "30.0 (25.0..35.0) of 2"),
        ("GOLD (1,1)", reward, "35.0 (25.0..45.0) of 2"),
        ("ReST (1,1)", "50.0 (50.0..50.0) of 1", "35.0 (35.0..35.0) of 1"),
        ("ReST (2,1)", "-", "35.0 (35.0..35.0) of 1")]
    assert shown[9] == ("GOLD (1,1)", "0.0 (0.0..0.0) of 1", "0.0 (0.0..0.0) of 1")
    assert len({len(line) for line in lines[1:6]}) == 1  # one below the other
    assert "BC, oracle           50.0      -" in lines


def test_runs_of_two_tasks_have_no_table(tmp_path):
    folders = [save_results(tmp_path / task, made_up(task, reward=0.5)) for task in ("toy", "mt")]
    with pytest.raises(UserError, match="runs of mt and toy have no common table"):
        over_runs(folders)


@pytest.mark.parametrize("spoil", [
    "", "{", "[]", "null", "{}", '{"task": "toy", "seconds": 1, "rows": []}',
    lambda r: r["rows"].clear(), lambda r: r["rows"].append(3), lambda r: r["rows"][1].pop("grow"),
    lambda r: r["rows"][1].update(reward="high"), lambda r: r["best_of_n"].append({"n": 1}),
    lambda r: r["best_of_n"][0].update(n=None), lambda r: r.update(rows=None)])
def test_results_that_are_damaged_are_one_line_that_names_the_file(tmp_path, monkeypatch, capsys,
                                                                   spoil):
    whole, cut = (save_results(tmp_path / name, made_up(reward=0.5)) for name in "ab")
    if callable(spoil):
        spoil(results := made_up(reward=0.5))
        spoil = json.dumps(results)
    (cut / "results.json").write_text(spoil)
    monkeypatch.setattr(sys, "argv", ["report", str(whole), str(cut)])
    with pytest.raises(SystemExit) as stop, pytest.warns(RuntimeWarning):  # it is imported already
        runpy.run_module("infra.report", run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"error: {cut / 'results.json'}: damaged")
    assert error.count("\n") == 1
