"""experiments/: the rule of the verdicts on made-up numbers, what runs share, a quick one."""

import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from experiments import __main__ as command
from experiments import (best_of_n, captions, conditioned, filters, guided, improve_steps,
                         online_rl, over_optimisation, raters, sampling, search, workers)
from experiments.__main__ import FIRST_SEED, NAMES
from experiments.lab import (HERE, LOOKED_AT_FROM, PROGRAM, STAGES, Lab, SharedRun, TextLab,
                             as_seen, code_of, folder_name, hash_of)
from experiments.scoreboard import EXPERIMENTS, lab_of, load, module, scoreboard
from experiments.verdicts import (CONTRADICTED, OPEN, REPRODUCED, T975, Claim, Comparison, Points,
                                  holm, interval, p_above)
from infra.pairs import Pairs
from infra.storage import LOCKS
from infra.text import read_parallel
from model import EOS
from rest import FILTERS
from reward import ValueModel
from train_toy import TASKS, Settings

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
TINY = dict(shortest=3, longest=6, demonstrations=24, rated_sources=12, eval_sources=6,
            test_sources=8, d_model=16, bc_updates=4, reward_updates=3, updates=2, evaluate_every=1,
            batch_tokens=256, value_updates=2, ppo_batch=64)


def tiny_lab(folder, seed=0):
    lab = Lab(seed, True, folder)
    lab.usual = replace(lab.usual, **TINY)
    return lab


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
    ("+", [0.5, 0.6, 0.4], REPRODUCED), ("+", [0.1, -0.1, 0.0], CONTRADICTED),  # not by a point
    ("+", [1.0, -1.0, 0.5], OPEN), ("+", [0.0, 0.0, 0.0], CONTRADICTED), ("+", [5.0], OPEN),
    ("-", [-1.0, -1.1, -0.9], REPRODUCED), ("-", [1.0, 1.1, 0.9], CONTRADICTED),
    ("-", [-0.1, 0.1, 0.0], CONTRADICTED), ("-", [-1.0, 1.0, -0.5], OPEN), ("=", [0.0], OPEN),
    ("=", [0.1, -0.1, 0.0], REPRODUCED), ("=", [0.9, 0.9, 0.9], REPRODUCED),
    ("=", [1.9, 1.9, 1.9], CONTRADICTED), ("=", [-3.0, -3.1, -2.9], CONTRADICTED),
    ("=", [1.2, 0.4, 0.8], OPEN), ("=", [9.0, -9.0, 0.0], OPEN), ("=", [1.0, 1.0, 1.0], OPEN),
    (">=", [-0.3, -0.4, -0.2], REPRODUCED), (">=", [9.0, 9.1, 8.9], REPRODUCED),
    (">=", [-3.0, -3.1, -2.9], CONTRADICTED), (">=", [-2.5, 0.5, -0.5], OPEN)])
def test_a_comparison(expected, differences, verdict):
    comparison = Comparison("it", expected, differences)
    assert comparison.verdict() == verdict
    if verdict == REPRODUCED:
        assert comparison.p_value() <= 0.025  # of 0.05, one-sided


def test_a_comparison_has_a_margin():
    assert [Comparison("it", "=", [0.6] * 3, margin).verdict() for margin in (0.5, 1.0)] == [
        CONTRADICTED, REPRODUCED]
    assert Comparison("it", ">=", [-0.6] * 3, 0.5).verdict() == CONTRADICTED


@pytest.mark.parametrize("parts, verdict, existence", [
    ("rr", REPRODUCED, REPRODUCED), ("ro", OPEN, REPRODUCED), ("rc", CONTRADICTED, REPRODUCED),
    ("oc", CONTRADICTED, OPEN), ("o", OPEN, OPEN), ("c", CONTRADICTED, CONTRADICTED),
    ("cc", CONTRADICTED, CONTRADICTED), ("", OPEN, OPEN)])
def test_a_claim_is_as_good_as_its_weakest_comparison_or_if_it_can_be_its_best(parts, verdict,
                                                                               existence):
    made = {"r": [1.0, 1.1, 0.9], "c": [-1.0, -1.1, -0.9], "o": [1.0, -1.0, 0.5]}
    comparisons = [Comparison(x, "+", made[x]) for x in parts]
    assert Claim("1", "it", comparisons).verdict() == verdict
    assert Claim("1", "it", comparisons, existence=True).verdict() == existence


@pytest.mark.parametrize("n", [2, 3, 5, 21])
def test_a_p_value_is_student_s(n):
    """At the 97.5 % quantile a fortieth is left; on the line itself a half."""
    values = np.random.default_rng(n).standard_normal(n)
    values = (values - values.mean()) / values.std(ddof=1) * np.sqrt(n)  # of standard error 1
    assert p_above(values + T975[n - 2], 0.0) == pytest.approx(0.025, abs=2e-4)
    assert p_above(values + 2 - T975[n - 2], 2.0) == pytest.approx(0.975, abs=2e-4)
    assert p_above(values + 7, 7.0) == pytest.approx(0.5, abs=2e-4)
    assert p_above([1.0], 0.0) == 1 and p_above([1.0, 1.0], 0.0) == 0 == 1 - p_above([1, 1], 1.0)


def test_the_p_value_of_each_kind():
    up, down = [0.4, 0.6, 0.5], [-0.4, -0.6, -0.5]
    assert Comparison("it", "-", down).p_value() == Comparison("it", "+", up).p_value()
    assert Comparison("it", ">=", down).p_value() == p_above(down, -1.0)
    assert Comparison("it", "=", up).p_value() == Comparison("it", "=", down).p_value() == (
        p_above(down, -1.0))


def test_holm_by_hand(monkeypatch):
    """0.05 is shared by all that are tested: the smallest has the least of it."""
    def made(*values):
        comparisons = [Comparison(str(p), "+", [1.0, 1.1, 0.9]) for p in values]
        for comparison, p in zip(comparisons, values):
            comparison.p_value = lambda p=p: p
        return comparisons

    not_so = Comparison("it", "+", [-1.0, -1.1, -0.9])
    assert holm(made(0.03, 0.001, 0.016, 0.04)) == 0.016  # 0.0125, 0.0167, then 0.025 < 0.03
    assert holm([*made(0.016, 0.001), not_so, not_so]) == 0.016  # they too were tested
    assert holm(made(0.02, 0.03, 0.04)) == 0.0 and holm([]) == 0.0
    assert holm([*made(0.02), *5 * [not_so]]) == 0.0
    first, second = made(0.01, 0.03)
    for claim, stands, exists in ((Claim("1", "it", [first, second]), False, True),
                                  (Claim("1", "it", [first]), True, True),
                                  (Claim("1", "it", [second, not_so]), False, False)):
        assert claim.stands(0.02) == stands
        claim.existence = True
        assert claim.stands(0.02) == exists


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
                   thresholds=(0.1,), lr=0.5, value_updates=3, best_of=2, checkpoint="last",
                   inclusive=True, max_per_source=1)
    labs = [tiny_lab(tmp_path / name) for name in "ab"]
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
    assert lab.settings(filter="percentile").thresholds == FILTERS["percentile"].thresholds
    assert lab.settings(filter="top", thresholds=(3,)).thresholds == (3,)
    assert lab.settings(grow=1).thresholds == FILTERS["quantile"].thresholds


def test_a_shared_step_is_made_in_the_shared_folder(tmp_path):
    """With its checkpoint: or another run would find there one that is not of its step."""
    pairs = Pairs.of([0, 0], [[5, 2], [6, 2]], reward=[0.1, 0.9])
    with SharedRun(Settings(), tmp_path) as run:
        assert run.begin("bc") is None and run.checkpoint is run.shared["bc"].checkpoint
        run.end({"x": 1})
        for _ in run.parts("grow-1", ["a part"]):
            assert run.checkpoint is run.shared["grow-1"].checkpoint
            run.add(pairs)
        run.bind(reward=[0.5])  # of this run alone: another one may have another reward
        assert run.seconds("bc") == run.shared["bc"].times["bc"] > 0
        assert run.begin("improve-1-0") is None and run.checkpoint is run.own.checkpoint
        run.end({"x": 2})
    assert {path.stem: path.parent.parent.name.split("-")[0]
            for path in tmp_path.glob("*/steps/*")} == {
        "bc": "bc", "grow-1": "grow", "improve-1-0": "improve"}
    with SharedRun(Settings(lr=0.5), tmp_path) as other:
        assert other.begin("bc") == {"x": 1} and other.begin("improve-1-0") is None
        assert not list(other.parts("grow-1", ["a part"]))
        np.testing.assert_array_equal(other.pairs("grow-1").reward, pairs.reward)
        other.bind(reward=[0.7])


@pytest.fixture
def no_gc():
    """What only the garbage collector would close stays open."""
    gc.disable()
    yield
    gc.enable()


def test_a_seed_is_free_again_when_its_work_is_done(tmp_path, no_gc):
    """Also after work that was left half-way, or that failed: another worker takes the seed."""
    lab, kept = tiny_lab(tmp_path), []

    def leave():
        with lab.walk(grow=1) as (toy, steps):
            assert len(LOCKS) == 4  # BC, reward, Grow, Improves
            kept.append((next(steps), next(steps), steps))

    def fail():
        with lab.walk(grow=1) as (toy, steps):
            kept.append(next(steps))
            raise ZeroDivisionError

    kept.append(lab.first_D_g(grow=2, refresh=True))  # its task refers to itself
    assert not LOCKS
    leave()
    assert not LOCKS
    with pytest.raises(ZeroDivisionError) as error:
        fail()
    assert not LOCKS and error
    lab.rest(grow=1)
    lab.online()
    assert not LOCKS


def test_the_code_hash_is_of_the_code_alone(monkeypatch):
    read = Path.read_text
    files = [HERE.parent / f"{name}.py" for name in PROGRAM]
    before = hash_of(*files)

    def changed(file, old, new):
        text = (ROOT / file).read_text()
        assert old in text
        monkeypatch.setattr(Path, "read_text", lambda self: text.replace(old, new)
                            if self == ROOT / file else read(self))
        return hash_of(*files)

    assert changed("rest.py", '"""Booleans (n,): the k best', '"""The k very best') == before
    assert changed("rest.py", "import numpy as np", "import numpy as np  # numbers") == before
    assert changed("rest.py", "reward > tau", "reward >= tau") != before
    assert changed("infra/sampling.py", "tokens != PAD", "tokens > PAD") != before


def test_of_each_file_it_is_known_whether_a_result_depends_on_it():
    """What only reads, writes, checks or shows changes no number; nor does a table of settings."""
    others = ("train_mt", *(f"infra/{name}" for name in (
        "__init__", "beam", "checks", "cli", "corpus", "errors", "evaluate", "figures",
        "own_reward", "page", "progress", "relatives", "report", "reward_metrics", "run",
        "settings", "storage", "text", "translate")))
    files = [*ROOT.glob("*.py"), *ROOT.glob("infra/*.py")]
    program = [name for name in PROGRAM if not name.startswith("experiments/")]
    assert sorted((*program, *others)) == sorted(
        str(file.relative_to(ROOT).with_suffix("")) for file in files)


def test_a_result_on_text_depends_on_the_translation_program_too():
    files = ["train_mt", "infra/beam", "infra/corpus", "infra/text"]
    assert TextLab.code() == Lab.code() + hash_of(*(ROOT / f"{name}.py" for name in files))
    assert code_of("raters", TextLab).startswith(TextLab.code())


# --------------------------------------------------------------------------------- the experiments


class Dry:
    """Checks all settings that an experiment asks for, and answers with made-up numbers."""

    def row(self, name, settings, g=0, i=0):
        values = {key: self.rng.random() for key in (
            "reward", "greedy_reward", "cool_reward", "oracle", "greedy_oracle", "cool_oracle",
            "kl_to_bc", "reward_error", "entropy", "length", "distinct_2", "grow_seconds",
            "train_seconds", "bleu", "sampled_bleu", "beam_bleu", "chrf", "sampled_chrf", "ter",
            "repetition")}
        values["reward"] /= 2  # some τ lies above it, as claim 17 asks
        values["threshold"] = settings.thresholds[0]
        return {"name": name, "loss": settings.loss, "grow": g, "improve": i, "samples": 8,
                "tokens_drawn": 50, "tokens_trained": 9, **values}

    def rest(self, **changes):
        s = self.settings(**changes)
        return [self.row("BC", s)] + [self.row("ReST", s, g, i) for g in range(1, s.grow + 1)
                                      for i in s.improves(g)]

    def online(self, **changes):
        s = self.settings(**changes)
        return [self.row("PPO", s, k) for k in range(s.ppo_rows)]

    def cached(self, name, changes, make):
        s = self.settings(**changes)
        if name.split(", ")[0] in raters.RATERS:
            label = dict(zip(("rater", "sources"), name.split(", ")))
            return [{"part": "rater", "pairs": 0.5, "best": 30.0, **label},
                    *({"part": "ReST", **label, "step": step, **row}
                      for step, row in enumerate(self.rest(**changes)))]
        residual = {f"{end} {by}": 0.1 for end in ("low", "high") for by in ("reward", "oracle")}
        return {"levels": [{"kept": 0.5, "values": {f: 0.5 for f in filters.FILTER}}] * 7,
                "mean-of-D_g": 0.5, "residual": residual,
                "spread": {"spread": 0.5, "sd": 0.1, "best": 0.9, "sd_of_all": 0.2},
                "conditioned": self.row("", s), "ensemble": self.rest(**changes),
                "guided": self.rest(**changes)[1:],
                "best-of-n": [{"policy": policy, "n": n, "reward": 0.5, "oracle": 0.5, "chrf": 50.0}
                              for policy in best_of_n.POLICIES for n in best_of_n.COUNTS]}[name]


@pytest.mark.parametrize("name", NAMES)
def test_all_settings_and_claims_of_an_experiment_make_sense(name, tmp_path):
    """Nothing is trained: each setting exists and has a value that it may have."""
    points = []
    for seed in (0, 1):
        lab = type("DryLab", (Dry, lab_of(name)), {})(seed, True, tmp_path)
        lab.rng = np.random.default_rng(seed)
        points += [{"seed": seed, **point} for point in module(name).points(lab)]
    assert all(claim.comparisons for claim in module(name).claims(Points(points)))


def test_what_experiments_measure_themselves(tmp_path, monkeypatch):
    lab = tiny_lab(tmp_path)
    monkeypatch.setattr(best_of_n, "MAIN", dict(grow=2))  # all that its policies need
    rows = [*best_of_n.points(lab)]
    assert [(row["policy"], row["n"]) for row in rows] == [
        (policy, n) for policy in best_of_n.POLICIES for n in best_of_n.COUNTS]
    for policy in best_of_n.POLICIES:  # the best of more is no worse
        assert (np.diff([row["reward"] for row in rows if row["policy"] == policy]) >= 0).all()
    D_g, toy = lab.first_D_g(samples=32, human_data="out")
    level = filters.equal_levels(D_g)[2]
    shares = [FILTERS[filters.FILTER[name]["filter"]].keep(
        D_g.source, D_g.reward, threshold, "≥" in name).mean()
        for name, threshold in level["values"].items()]
    assert len(shares) > 2 and max(abs(share - level["kept"]) for share in shares) < 0.02
    assert sampling.spread_of(D_g)["best"] > D_g.reward.mean()
    assert set(over_optimisation.residuals(D_g, toy)) == {
        "low reward", "high reward", "low oracle", "high oracle"}


@pytest.fixture
def text_lab(tmp_path, monkeypatch):
    """A tiny laboratory of train_mt.py on an invented corpus."""
    rng, words = np.random.default_rng(0), "ein zwei rote blaue Hunde Katzen laufen".split()
    for split, n in (("train", 120), ("val", 12), ("test", 12)):
        lines = [" ".join(rng.choice(words, 4)) + "." for _ in range(n)]
        for language, of in (("de", lines), ("en", [line.upper() for line in lines])):
            (tmp_path / f"{split}.{language}").write_text("\n".join(of) + "\n")
    monkeypatch.setenv("REST_DATA", str(tmp_path))
    lab = TextLab(0, True, tmp_path / "cache")
    lab.usual = replace(lab.usual, vocab_size=300, d_model=16, d_ff=32, heads=2, bc_updates=150,
                        bc_evaluate_every=75, bc_lr=1e-2, rated_sources=20, reward_updates=4,
                        grow_sources=20, samples=3, updates=2, evaluate_every=1, max_len=24,
                        batch_tokens=256)
    return lab


def test_the_better_a_rater_knows_the_reference_the_better_it_ranks(text_lab, monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(raters, "USUAL", raters.USUAL | dict(limit=60, improve=(2,)))
    points = [*raters.points(text_lab)]
    for sources in ("seen", "new"):
        pairs = {q["rater"]: q["pairs"] for q in points
                 if q["part"] == "rater" and q["sources"] == sources}
        assert list(pairs) == list(raters.RATERS)
        assert pairs["chrF"] == 1 > pairs["chrF + 0.1 noise"] > pairs["chance"]
        assert abs(pairs["chance"] - 0.5) < 0.1
        best = {q["rater"]: q["best"] for q in points
                if q["part"] == "rater" and q["sources"] == sources}
        assert best["chrF"] > best["chance"]
    rows = [q for q in points if q["part"] == "ReST"]
    assert [q["step"] for q in rows] == 2 * len(raters.RATERS) * [0, 1, 2]
    assert len({q["bleu"] for q in rows if q["step"] == 0}) == 1
    assert len({q["entropy"] for q in rows if q["rater"] == "learned" and q["step"] == 1}) == 2
    with text_lab.prepared(**raters.USUAL) as (settings, _, mt):
        there = read_parallel(settings.data, "train", "de", "en")
        assert mt.texts["train"].sources == there.sources[:60]
        assert raters.other_half(mt.texts, settings).targets == there.targets[60:]


def test_what_captions_measures_itself(text_lab, monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(captions, "MAIN", dict(grow=1, improve=(1,), checkpoint="last"))
    monkeypatch.setattr(captions, "POLICIES", ("BC", "ReST (1,1)"))
    monkeypatch.setattr(captions, "COUNTS", (1, 4))
    best = captions.best_of_n(text_lab)
    assert [(q["policy"], q["n"]) for q in best] == [
        ("BC", 1), ("BC", 4), ("ReST (1,1)", 1), ("ReST (1,1)", 4)]
    assert best[1]["reward"] > best[0]["reward"] and best[3]["reward"] > best[2]["reward"]
    assert best[0]["reward"] != best[2]["reward"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A tiny laboratory in which BC, reward model and the first D_g are there."""
    lab = tiny_lab(tmp_path_factory.mktemp("lab"))
    lab.first_D_g()
    return lab


def test_conditioning_asks_for_the_best_fifth(begun, monkeypatch):
    seen = []
    monkeypatch.setattr(conditioned, "improve", lambda *args: seen.append(args))
    asked, draw = [], conditioned.sample_outputs
    monkeypatch.setattr(conditioned, "sample_outputs", lambda policy, sources, *args: (
        asked.extend(sources), draw(policy, sources, *args))[1])
    found = conditioned.conditioned(begun)
    assert set(found) == {f"{how}{key}" for how in ("", "cool_", "greedy_")
                          for key in ("reward", "oracle")}
    assert all(0 <= value <= 1 for value in found.values())
    (policy, pairs, sources, settings, hp, _), = seen
    D_g, toy = begun.first_D_g()
    words = toy.problem.vocab_size
    assert {int(x[0]) for x in asked} == {words + 4}  # of the best fifth
    assert len(asked) == 3 * len(toy.task.test_sources)
    assert all(np.array_equal(x[1:], y) for x, y in zip(asked, toy.task.test_sources))
    assert len(sources) == len(D_g) == len(pairs) and hp.updates == 5 * settings.updates
    level = np.array([x[0] for x in sources]) - words
    counts = np.bincount(level, minlength=5)
    assert counts.sum() == len(D_g) and np.ptp(counts) <= 0.1 * len(D_g)
    for k in range(4):  # a word names a fifth by reward
        assert D_g.reward[level == k].max() <= D_g.reward[level == k + 1].min()
    assert all(np.array_equal(x[1:], toy.task.sources[i]) for x, i in zip(sources, D_g.source))
    assert policy.config.vocab_size == words + 5
    assert policy.config.max_len == toy.bc.config.max_len + 1


def test_the_spread_is_that_within_a_source():
    """Two sources of three samples, one easy and one hard, in mixed order; D does not count."""
    reward = [0.9, 0.1, 0.8, 0.2, 0.7, 0.0, 1.0]
    D_g = Pairs.of([0, 1, 0, 1, 0, 1, 0], 7 * [[EOS]], reward=reward)
    D_g.human[6] = True
    found = sampling.spread_of(D_g)
    assert found["spread"] == pytest.approx(0.2) and found["best"] == pytest.approx(0.55)
    assert found["sd"] == pytest.approx(np.std([0.7, 0.8, 0.9]))
    assert found["sd_of_all"] == pytest.approx(np.std(reward[:6]))


def test_the_best_step_is_the_first_of_the_highest_reward():
    rows = [{"seed": s, "improve": i, "reward": x} for s, way in enumerate(([0.1, 0.5, 0.5, 0.3],
            [0.1, 0.2, 0.3, 0.4])) for i, x in enumerate(way)]
    assert list(improve_steps.best_step(Points(rows))) == [1, 3]


def test_the_error_in_thirds_by_hand():
    """The reward is right but for the third that it scores lowest."""
    reward, truth = (np.array([x, 0.2, 0.5, 0.5, 0.8, 0.9]) for x in (0.1, 0.3))
    D_g = Pairs.of(range(6), 6 * [[EOS]], reward=reward)
    toy = SimpleNamespace(problem=SimpleNamespace(oracle=lambda *_: truth),
                          task=SimpleNamespace(sources=range(6)))
    found = over_optimisation.residuals(D_g, toy)
    assert found["low reward"] == pytest.approx(0.1) == pytest.approx(found["low oracle"])
    assert found["high reward"] == pytest.approx(0, abs=1e-7) == found["high oracle"]


def test_what_a_step_has_cost_by_hand():
    """100 samples of 5 tokens; each later step looks at 20 more, and trains."""
    rows = [{"samples": 100, "tokens_drawn": 500, "grow_seconds": 2.0},
            {"samples": 100, "tokens_drawn": 500, "grow_seconds": 2.0, "tokens_trained": 1000,
             "train_seconds": 3.0},
            {"samples": 200, "tokens_drawn": 1000, "grow_seconds": 5.0, "tokens_trained": 2000,
             "train_seconds": 4.0}]
    first, second, third = online_rl.with_costs(rows, 20, method="it")
    assert [row["step"] for row in (first, second, third)] == [0, 1, 2]
    assert (first["samples"], first["tokens"], first["seconds"]) == (0.1, 0.5, 2.0)
    assert (second["samples"], second["tokens"], second["seconds"]) == (0.12, 1.6, 5.0)
    assert (third["samples"], third["tokens"], third["seconds"]) == (0.24, 4.2, 12.0)
    drawn = 1000 + 40 * 5
    assert third["operations"] == pytest.approx((2 + 2) * drawn / 1e6 + 6 * 3000 / 1e6)
    assert third["method"] == "it" and third["drawing"] == 5.0


def test_how_far_below_its_best_a_way_ends():
    rows = [{"seed": s, "step": k, "oracle": x} for s, way in enumerate(([0.5, 0.7, 0.6],
            [0.5, 0.6, 0.8])) for k, x in enumerate(way)]
    assert over_optimisation.from_best(Points(rows)) == pytest.approx([-10, 0])


@pytest.mark.parametrize("reward, oracle, verdict", [
    ("r", "f", REPRODUCED), ("r", "r", CONTRADICTED), ("f", "f", CONTRADICTED), ("o", "f", OPEN),
    ("r", "o", OPEN)])
def test_over_fitting_is_a_rise_and_a_fall(reward, oracle, verdict):
    made = {"r": [3.0, 3.1, 2.9], "f": [-3.0, -3.1, -2.9], "o": [9.0, -9.0, 1.0]}
    both = over_optimisation.Both("it", made[reward], made[oracle])
    assert both.verdict() == verdict
    assert both.p_value() == max(both.reward.p_value(), both.oracle.p_value())


def test_a_policy_with_more_words_is_the_same_on_the_old_ones(begun):
    _, toy = begun.first_D_g()
    wide, source = conditioned.widened(toy.bc, 5).eval(), torch.tensor([[5, 6, 7, 2]])
    output = torch.tensor([[1, 40, 41, 2]])
    old, new = (policy(source, output)[..., : toy.problem.vocab_size] for policy in (toy.bc, wide))
    torch.testing.assert_close(old, new)


def test_guided_samples_are_outputs_of_each_source(begun):
    rows = guided.guided(begun)
    assert [(row["grow"], row["improve"]) for row in rows] == [(1, i) for i in range(5)]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("reward", "oracle", "drawn_reward"))
    _, toy = begun.first_D_g()
    value = ValueModel.from_policy(toy.bc)
    settings, sources = begun.settings(samples=6), toy.task.sources[:5]
    pairs = guided.guided_samples(toy.bc, value, sources, 20, settings, toy.task.max_len)
    assert list(pairs.source) == list(np.repeat(range(20, 25), 6))
    for y in pairs.targets():
        assert 1 <= len(y) <= toy.task.max_len and EOS not in y[:-1]
    again = guided.guided_samples(toy.bc, value, sources, 20, settings, toy.task.max_len)
    assert all(map(np.array_equal, pairs.targets(), again.targets()))


def test_the_value_model_guides(begun, monkeypatch):
    """One that likes a word has the samples with that word go on, and the others given up."""
    _, toy = begun.first_D_g()
    settings = begun.settings(samples=32)
    plain = guided.guided_samples(toy.bc, ValueModel.from_policy(toy.bc), toy.task.sources[:8], 0,
                         settings, toy.task.max_len)
    liked = np.bincount(plain.tokens).argmax()

    class Likes(torch.nn.Module):
        def forward(self, src, tokens):
            seen = (tokens == liked).cumsum(1) - (tokens == liked).long()
            return 9.0 * (2 * (seen > 0) - 1.0)

    monkeypatch.setattr(guided, "EVERY", 2)
    led = guided.guided_samples(toy.bc, Likes(), toy.task.sources[:8], 0, settings,
                                toy.task.max_len)
    shares = [np.mean([liked in y for y in pairs.targets()]) for pairs in (plain, led)]
    assert shares[1] > shares[0] + 0.1 or shares[1] == 1


def test_a_reward_of_several_models_is_the_lowest(begun, monkeypatch):
    seen = []
    monkeypatch.setattr(over_optimisation, "rest", lambda bc, task, settings: seen.append(
        (task.reward, task)) or [({"row": 1}, bc, None)])
    assert over_optimisation.with_ensemble(begun, grow=1) == [{"row": 1}]
    (reward, task), = seen
    one = begun.first_D_g()[1].reward_model.score
    n = len(task.test_sources)
    outputs = [np.array([40 + k % 9, 41, EOS]) for k in range(n)]
    lowest, alone = reward(task.test_sources, outputs), one(task.test_sources, outputs)
    assert lowest.shape == (n,) and (lowest <= alone + 1e-6).all() and (lowest < alone).any()


def test_flawed_raters_are_wrong_in_one_way_each():
    """The hasty see six words; those who like length give a point for each word more."""
    toys = {name: TASKS[name](Settings()) for name in ("language", "hasty", "verbose", "careful")}
    language, rng = toys["language"], np.random.default_rng(0)
    sources = language.sources(50, rng)
    exact = [language.answer(x) for x in sources]
    half = [np.append(np.append(y[:6], np.full(len(y) - 7, 40)), EOS) for y in exact]
    twice = [np.concatenate([y[:-1], y]) for y in exact]
    rated = {name: [toy.rate(sources, outputs, 0.0, rng).mean() for outputs in (exact, half, twice)]
             for name, toy in toys.items()}
    assert rated["language"][0] == 1 > rated["language"][1] and rated["language"][2] < 0.7
    assert rated["hasty"] == [1, 1, 1] and rated["verbose"][2] == 1 > rated["verbose"][1]
    assert rated["careful"] == rated["language"]
    assert (toys["careful"].habit_rate == 0.3 * language.habit_rate).all()


def test_the_random_filter_looks_at_no_reward():
    rule, n = FILTERS["random"], 1000
    source = np.arange(n) % 7
    kept = rule.keep(source, np.linspace(0, 1, n), 0.7)
    assert kept.sum() == 300 and (kept == rule.keep(source, np.zeros(n), 0.7)).all()
    assert not (rule.keep(source, np.zeros(n), 0.85) & ~kept).any()  # stricter is a part of it


# -------------------------------------------------------------------------------------- a whole one


measure = workers.measure  # in a worker, too, where nothing is replaced


def measured_or_not(name, lab):
    """workers.measure of made-up points; one seed fails, and the process of one is killed."""
    def points(lab):
        if (name, lab.seed) == ("losses", FIRST_SEED + 1):
            raise ValueError("no luck")
        if (name, lab.seed) == ("filters", FIRST_SEED):
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"name": name}]

    with patch.object(module(name), "points", points):
        return measure(name, lab)


@pytest.mark.slow
def test_what_fails_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "measure", measured_or_not)  # in processes of their own
    monkeypatch.setattr(command, "conclude", lambda name, results: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    line = f"losses filters grow_steps --quick --workers 1 --out {tmp_path}"
    with pytest.raises(SystemExit) as end:
        command.main(line.split())
    said = end.value.code  # a text: exit code 1
    assert f"losses, seed {FIRST_SEED + 1}: ValueError: no luck\n" in said
    assert f"filters, seed {FIRST_SEED}: its process was killed\n" in said
    assert said.endswith(f"to go on: python -m experiments {line}")
    assert 'ValueError("no luck")' in (tmp_path / "log.txt").read_text()
    for name, seeds in (("grow_steps", (0, 1)), ("losses", (0,)), ("filters", (1,))):
        assert load(tmp_path, name) == [{"seed": FIRST_SEED + k, "name": name} for k in seeds]


def test_a_picture_that_fails_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", lambda seeds, *_: [
        (name, seed, [{"seed": seed}], None) for name in seeds for seed in seeds[name]])
    monkeypatch.setattr(command, "conclude", lambda name, results: 1 / 0)
    with pytest.raises(SystemExit, match="losses, drawing it: ZeroDivisionError"):
        command.main(["losses", "filters", "--out", str(tmp_path)])
    assert load(tmp_path, "losses") == load(tmp_path, "filters") == [
        {"seed": seed} for seed in range(FIRST_SEED, FIRST_SEED + 5)]


@pytest.mark.slow
def test_a_quick_experiment_end_to_end(tmp_path):
    command = [sys.executable, "-m", "experiments", "grow_steps", "--quick", "--seeds", "2",
               "--out", str(tmp_path)]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                     for _ in range(2))
    points = load(tmp_path, "grow_steps")
    seeds = FIRST_SEED, FIRST_SEED + 1
    assert [p["seed"] for p in points] == [*17 * seeds[:1], *17 * seeds[1:]]
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
    difference = np.array([100 * (at(points, s, 2, 3) - at(points, s, 1, 4)) for s in seeds])
    half = 12.706 * difference.std(ddof=1) / np.sqrt(2)
    assert f"(2,3) − (1,4) {difference.mean():+.1f} ± {half:.1f}" in board


def at(points, seed, g, i):
    return next(p["reward"] for p in points if (p["seed"], p["grow"], p["improve"]) == (seed, g, i))


# ------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_results_are_of_all_seeds(name):
    seeds = getattr(module(name), "SEEDS", range(FIRST_SEED, FIRST_SEED + 5))
    assert Points(load(RESULTS, name)).seeds == [*seeds]
    assert (RESULTS / f"{name}.png").stat().st_size > 5000


def test_every_claim_has_a_verdict():
    found = {claim.number.split(",")[0] for name in EXPERIMENTS
             for claim in module(name).claims(Points(load(RESULTS, name)))}
    assert {str(n) for n in range(1, 23)} <= found
    text = (ROOT / "docs" / "claims.md").read_text()
    assert all(f"\n| {n} | " in text for n in range(1, 23))


def test_the_scoreboard_is_what_the_results_say():
    assert (RESULTS / "scoreboard.md").read_text() == scoreboard(RESULTS)


def test_every_claim_has_comparisons():
    for name in EXPERIMENTS:
        assert all(claim.comparisons for claim in module(name).claims(Points(load(RESULTS, name))))


def test_what_the_search_found_is_what_is_used():
    points = Points(load(RESULTS, "search"))
    assert points.seeds == list(search.SEEDS) and not set(search.SEEDS) & set(range(20))
    assert search.best(points) == search.FOUND
    usual = Settings()
    assert dict(ppo_lr=usual.ppo_lr, ppo_kl=usual.ppo_kl) in search.CANDIDATES["ppo"]
    assert usual.lr in search.RATES[1:-1]
    assert {len(candidates) for candidates in search.CANDIDATES.values()} == {8}
