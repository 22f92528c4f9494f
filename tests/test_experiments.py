"""experiments/: the rule of the verdicts on made-up numbers, what runs share, a quick one."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from experiments import search
from experiments.lab import (HERE, LOOKED_AT_FROM, PROGRAM, STAGES, Lab, SharedRun, as_seen,
                             folder_name, hash_of)
from experiments.scoreboard import EXPERIMENTS, load, module, scoreboard
from experiments.verdicts import (CONTRADICTED, REPRODUCED, T975, UNDECIDED, Claim, Comparison,
                                  Points, interval)
from filters import THRESHOLDS
from train_toy import Settings

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


# ------------------------------------------------------------------------------------ the verdicts


def test_interval_by_hand():
    """1 .. 5: mean 3, standard deviation √2.5, t(4) = 2.776."""
    mean, half = interval([1, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(2.776 * np.sqrt(2.5 / 5))
    assert interval([7.0]) == (7.0, float("inf"))
    assert interval([2.0, 2.0]) == (2.0, 0.0)


def test_the_interval_holds_the_truth_in_95_of_100():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        hits = [abs(mean) <= half for mean, half in map(interval, rng.standard_normal((4000, n)))]
        assert 0.935 < np.mean(hits) < 0.965


def test_student_falls_towards_the_normal_value():
    assert (np.diff(T975) < 0).all() and T975[0] == 12.706 and 1.96 < T975[-1] < 2.1


@pytest.mark.parametrize("expected, differences, verdict", [
    ("+", [1.0, 1.1, 0.9], REPRODUCED), ("+", [-1.0, -1.1, -0.9], CONTRADICTED),
    ("+", [1.0, -1.0, 0.5], UNDECIDED), ("+", [0.0, 0.0, 0.0], UNDECIDED),
    ("-", [-1.0, -1.1, -0.9], REPRODUCED), ("-", [1.0, 1.1, 0.9], CONTRADICTED),
    ("-", [1.0, -1.0, 0.5], UNDECIDED), ("+", [5.0], UNDECIDED), ("=", [0.0], UNDECIDED),
    ("=", [0.1, -0.1, 0.0], REPRODUCED), ("=", [1.9, 1.9, 1.9], REPRODUCED),
    ("=", [3.0, 3.1, 2.9], CONTRADICTED), ("=", [-3.0, -3.1, -2.9], CONTRADICTED),
    ("=", [2.5, 1.5, 2.0], UNDECIDED), ("=", [9.0, -9.0, 0.0], UNDECIDED),
    (">=", [-1.0, -1.1, -0.9], REPRODUCED), (">=", [9.0, 9.1, 8.9], REPRODUCED),
    (">=", [-3.0, -3.1, -2.9], CONTRADICTED), (">=", [-2.5, -1.5, -2.0], UNDECIDED)])
def test_a_comparison(expected, differences, verdict):
    assert Comparison("it", expected, differences).verdict() == verdict


@pytest.mark.parametrize("parts, verdict", [
    ("rr", REPRODUCED), ("ru", UNDECIDED), ("rc", CONTRADICTED), ("uc", CONTRADICTED),
    ("u", UNDECIDED), ("c", CONTRADICTED), ("", UNDECIDED)])
def test_a_claim_is_as_good_as_its_weakest_comparison(parts, verdict):
    made = {"r": [1.0, 1.1, 0.9], "c": [-1.0, -1.1, -0.9], "u": [1.0, -1.0, 0.5]}
    assert Claim("1", "it", [Comparison(x, "+", made[x]) for x in parts]).verdict() == verdict


def test_points_pair_the_seeds():
    points = Points([{"seed": s, "kind": kind, "reward": value, "oracle": value / 2}
                     for s in (3, 5) for kind, value in (("a", 0.1 * s), ("b", 0.2))])
    a, b = dict(kind="a"), dict(kind="b")
    assert points.seeds == [3, 5]
    np.testing.assert_allclose(points.values("reward", **a), [30, 50])
    np.testing.assert_allclose(points.difference("reward", a, b), [10, 30])
    np.testing.assert_allclose(points.difference("reward", a, b, scale=1), [0.1, 0.3])
    np.testing.assert_allclose(points.difference("reward", a, a, minus="oracle"), [15, 25])
    comparison = points.compare("it", "+", "reward", a, b)
    assert comparison.differences == points.difference("reward", a, b)
    assert points.where(kind="a").seeds == [3, 5]


@pytest.mark.parametrize("points", [
    [{"seed": 0, "k": 1}, {"seed": 0, "k": 1}, {"seed": 1, "k": 1}],
    [{"seed": 0, "k": 1}, {"seed": 1, "k": 2}]])
def test_a_seed_without_a_point_or_with_two_is_an_error(points):
    """No seed is left out without a word."""
    with pytest.raises(ValueError, match="one for each"):
        Points(points).values("k", k=1)


# ----------------------------------------------------------------------------------- what is shared


def test_each_later_setting_is_named_once_and_exists():
    named = [name for part in LOOKED_AT_FROM.values() for name in part.split()]
    assert len(named) == len(set(named)) and set(named) <= {f.name for f in fields(Settings)}
    assert list(STAGES) == ["bc", *LOOKED_AT_FROM][:3]


@pytest.mark.parametrize("changes, apart", [
    (dict(loss="gold", lr=1e-4, ppo_kl=0.5), "improve"), (dict(thresholds=(0.3,)), "improve"),
    (dict(grow=1, improve=(6,)), "improve"), (dict(start="base"), "improve"),
    (dict(temperature=(0.5,)), "grow"), (dict(samples=2), "grow"), (dict(human_data="out"), "grow"),
    (dict(rated_sources=100), "reward"), (dict(refresh=True), "reward"),
    (dict(demonstrations=100), "bc"), (dict(d_model=32), "bc"), (dict(seed=1), "bc")], ids=str)
def test_runs_share_all_that_comes_before_the_first_setting_they_differ_in(changes, apart):
    stages = ["bc", "reward", "grow", "improve"]
    for stage in stages:
        same = folder_name(stage, Settings()) == folder_name(stage, Settings(**changes))
        assert same == (stages.index(stage) < stages.index(apart)), stage
        if same:
            assert as_seen(stage, Settings()) == as_seen(stage, Settings(**changes))


def test_a_shared_step_does_not_look_at_what_it_is_shared_over(tmp_path):
    """The first steps of two runs that differ later, made apart, are the same to the last bit."""
    changes = dict(updates=5, evaluate_every=3, patience=1, grow=1, loss="oac", ppo_lr=1.0,
                   thresholds=(0.1,), lr=0.5, value_updates=3, best_of=2, checkpoint="last", inclusive=True)
    labs = [Lab(0, True, tmp_path / name) for name in "ab"]
    made = [lab.first_D_g(**changes) for lab, changes in zip(labs, ({}, changes))]
    for name, value in vars(made[0][0]).items():
        np.testing.assert_array_equal(value, getattr(made[1][0], name))
    folders = [sorted(path.name for path in lab.folder.iterdir()) for lab in labs]
    assert [x for x in folders[0] if "improve" not in x] == [
        x for x in folders[1] if "improve" not in x]


def test_what_is_kept_is_made_once(tmp_path):
    lab, made = Lab(0, True, tmp_path), []

    def make():
        made.append(1)
        return {"x": 1.5}

    assert [lab.cached("it", dict(grow=1), make) for _ in range(2)] == 2 * [{"x": 1.5}]
    assert len(made) == 1
    lab.cached("it", dict(grow=3), make)
    Lab(1, True, tmp_path).cached("it", dict(grow=1), make)
    assert len(made) == 3


def test_another_filter_has_thresholds_of_its_own():
    lab = Lab(0)
    assert lab.settings(filter="percentile").thresholds == THRESHOLDS["percentile"]
    assert lab.settings(filter="top", thresholds=(3,)).thresholds == (3,)
    assert lab.settings(grow=1).thresholds == THRESHOLDS["quantile"]


def test_a_shared_step_suspends_to_the_shared_folder(tmp_path):
    """Or another run would find there a checkpoint that is not of its step."""
    run = SharedRun(Settings(), tmp_path)
    own, seen = run.checkpoint, []

    def make():
        seen.append(run.checkpoint)
        return {}

    run.step("bc", make)
    run.step("improve-1-0", make)
    assert seen == [run.shared["bc"].checkpoint, own] and seen[0] != own == run.checkpoint


def test_the_code_hash_is_of_the_code_alone(monkeypatch):
    read = Path.read_text
    files = [HERE.parent / f"{name}.py" for name in PROGRAM]
    before = hash_of(*files)

    def changed(old, new):
        monkeypatch.setattr(Path, "read_text", lambda self: read(self).replace(old, new)
                            if self.name == "filters.py" else read(self))
        return hash_of(*files)

    assert changed('"""The k best', '"""The k very best') == before
    assert changed("import numpy as np", "import numpy as np  # numbers") == before
    assert changed("reward > tau", "reward >= tau") != before


# -------------------------------------------------------------------------------------- a whole one


def test_a_quick_experiment_end_to_end(tmp_path):
    command = [sys.executable, "-m", "experiments", "grow_steps", "--quick", "--seeds", "2",
               "--out", str(tmp_path)]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                     for _ in range(2))
    points = load(tmp_path, "grow_steps")
    assert [p["seed"] for p in points] == 17 * [10] + 17 * [11]
    assert [(p["variant"], p["grow"], p["improve"]) for p in points[:7]] == [
        ("usual", g, i) for g, i in ((0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 1))]
    points = [p for p in points if p["variant"] == "usual"]
    board = (tmp_path / "scoreboard.md").read_text()
    assert board in first.stdout and board == scoreboard(tmp_path) and "| 3 |" in board
    assert (tmp_path / "grow_steps.png").stat().st_size > 5000
    # the second time nothing is run: the seconds of all steps are those of the first
    events = sorted((tmp_path / "cache").rglob("metrics.jsonl"))
    steps = [json.loads(line) for file in events for line in file.read_text().splitlines()
             if '"step"' in line]
    trained = [e["step"] for e in steps if e["event"] == "step" and e["step"] == "improve-2-1"]
    assert len(trained) == 2
    difference = np.array([100 * (at(points, s, 2, 3) - at(points, s, 1, 4)) for s in (10, 11)])
    half = 12.706 * difference.std(ddof=1) / np.sqrt(2)
    assert f"(2,3) − (1,4) {difference.mean():+.1f} ± {half:.1f}" in board


def at(points, seed, g, i):
    return next(p["reward"] for p in points if (p["seed"], p["grow"], p["improve"]) == (seed, g, i))


# ------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_results_are_of_five_seeds_and_none_is_left_out(name):
    seeds = range(5) if name == "translation" else range(10, 15)
    assert Points(load(RESULTS, name)).seeds == [*seeds]
    assert (RESULTS / f"{name}.png").stat().st_size > 5000


def test_every_claim_that_can_be_tested_has_a_verdict():
    """18 is about Q-learning and decision transformers, which are not built here."""
    found = {claim.number.split(",")[0] for name in EXPERIMENTS
             for claim in module(name).claims(Points(load(RESULTS, name)))}
    assert found - {""} == {str(n) for n in range(1, 23) if n != 18}


def test_the_scoreboard_is_what_the_results_say():
    assert (RESULTS / "scoreboard.md").read_text() == scoreboard(RESULTS)
    of_the_paper, _ = scoreboard(RESULTS).split("\n\n")
    assert of_the_paper in (ROOT / "README.md").read_text()


def test_every_claim_has_comparisons():
    for name in EXPERIMENTS:
        assert all(claim.comparisons for claim in module(name).claims(Points(load(RESULTS, name))))


def test_what_the_search_found_is_what_is_used():
    points = Points(load(RESULTS, "search"))
    assert points.seeds == list(search.SEEDS) and not set(search.SEEDS) & set(range(20))
    assert search.best(points) == search.FOUND
    usual = Settings()
    assert search.FOUND["ppo"] == dict(ppo_lr=usual.ppo_lr, ppo_kl=usual.ppo_kl)
    assert usual.lr in search.RATES[1:-1]
    assert {len(candidates) for candidates in search.CANDIDATES.values()} == {8}
