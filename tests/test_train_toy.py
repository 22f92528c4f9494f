"""train_toy.py: the invented language by hand-worked cases, and whole little runs end to end."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rest
import train_toy
from helpers import kept_by, some_policy, spy
from infra import demo, figures
from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.relatives import METHODS
from infra.run import Run, Stopped
from infra.sampling import logprobs_of, sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import parse
from infra.storage import Checkpoint, load
from model import EOS, Config, Transformer
from reward import RewardModel
from train_toy import (ADJECTIVES, FORGOTTEN, HABIT_RATES, HABITS, PRESETS, RANDOM, TASKS, WORDS,
                       Language, Settings, Sums, prepare)

PROGRAM = Path(train_toy.__file__)
TINY = ("--device cpu --shortest 3 --longest 6 --d-model 16 --demonstrations 200 "
        "--rated-sources 60 --bc-updates 30 --reward-updates 20 --updates 10 --evaluate-every 5 "
        "--eval-sources 20 --test-sources 30 --grow 2 --improve 2 1 --samples 2 --best-of 4 "
        "--ppo-samples 64 --ppo-batch 32 --batch-tokens 400").split()
MAX_LEN = 6 + 4  # tokens of an output of these


# ------------------------------------------------------------------------------------ the language
#
# By hand: a, b, c, d are nouns, p and q adjectives, and P and Q their second forms. Behind a and c
# an adjective has its first form, behind b and d its second; p and q ask for the first, P and Q for
# the second.


@pytest.fixture(scope="module")
def language():
    return Language(Settings())


@pytest.fixture(scope="module")
def words(language):
    """Source words by these letters, as numbers from 0."""
    asks = np.where(language.is_adjective, 2, language.asks[language.lexicon])
    of_kind = [np.flatnonzero(asks == kind)[:2] for kind in range(3)]
    return dict(zip("acbdpq", np.concatenate(of_kind)))


def source(language, words, text):
    return np.array([language.first_source + words[x] for x in text] + [EOS])


def target(language, words, text):
    ids = [language.form[int(x.isupper()), language.lexicon[words[x.lower()]]] for x in text]
    return np.array(ids + [EOS])


@pytest.mark.parametrize("said, translated", [
    ("abcd", "abcd"), ("pabc", "apbc"), ("apbc", "abPc"), ("abcp", "abcp"), ("papb", "apbP"),
    ("pqab", "qpab"), ("apqb", "aqpb"), ("bpqa", "bQPa"), ("pppa", "ppap"), ("abqc", "abcq"),
    ("abqd", "abdQ"), ("pdqp", "dPPQ"), ("p", "p"), ("pd", "dP"), ("qpd", "pqd")])
def test_adjectives_change_places_with_the_next_word_and_agree_with_the_one_before_them(
        language, words, said, translated):
    assert np.array_equal(language.answer(source(language, words, said)),
                          target(language, words, translated))


@pytest.mark.parametrize("lengths", [{}, dict(shortest=1, longest=1), dict(shortest=3, longest=6)])
def test_a_translation_has_the_same_words_in_the_other_language(lengths):
    settings = Settings(**lengths)
    language = Language(settings)
    sources = language.sources(300, np.random.default_rng(0))
    assert {len(x) - 1 for x in sources} == {*range(settings.shortest, settings.longest + 1)}
    for x in sources:
        y = language.answer(x)
        assert len(x) == len(y) <= language.max_len and x[-1] == y[-1] == EOS
        assert ((x[:-1] >= 3) & (x[:-1] < 3 + WORDS)).all()
        assert ((y[:-1] >= 3 + WORDS) & (y[:-1] < language.vocab_size)).all()
        assert Counter(language.lexicon[x[:-1] - 3]) == Counter(language.form[0, y[:-1]])


@pytest.mark.parametrize("seed", range(12))
def test_the_language_is_what_it_says(seed):
    language = Language(Settings(seed=seed))
    lexicon, habit, rate = language.lexicon, language.habit, language.habit_rate
    assert sorted(lexicon) == list(range(3 + WORDS, 3 + 2 * WORDS))  # one to one
    assert language.is_adjective.sum() == ADJECTIVES
    nouns = set(lexicon[~language.is_adjective])
    has = habit != lexicon
    assert has.sum() == HABITS and set(habit[has]) | set(lexicon[has]) <= nouns
    assert len(set(habit[has])) > HABITS // 2
    low, high = HABIT_RATES
    assert (rate[~has] == 0).all() and low <= rate[has].min() < rate[has].max() <= high
    assert len(set(rate[has])) == HABITS  # each has its own
    first, second = lexicon[language.is_adjective], range(3 + 2 * WORDS, language.vocab_size)
    both = language.form[:, first]
    assert (both[0] == first).all() and sorted(both[1]) == list(second)
    assert (language.form[:, both[1]] == both).all()  # of either form
    others = np.setdiff1d(np.arange(language.vocab_size), both)
    assert (language.form[:, others] == others).all()
    assert (language.asks[both] == [[0], [1]]).all()
    assert 2 < language.asks[list(nouns)].sum() < len(nouns) - 2
    assert len(language.names) == language.vocab_size == 3 + 2 * WORDS + ADJECTIVES
    assert len(set(language.names[3:])) == 2 * WORDS + ADJECTIVES
    assert all(language.names[b] == language.names[a] + "n" for a, b in both.T)


def test_oracle_by_hand(language, words):
    x = source(language, words, "apbc")
    cases = [("abPc", 1.0), ("apbc", 0.5), ("abPb", 0.75), ("abP", 0.75), ("ab", 0.5), ("", 0.0),
             ("abPca", 0.8), ("abPcabPc", 0.5), ("bPc", 0.0), ("cPba", 0.0), ("dabPc", 0.0)]
    outputs = [target(language, words, text) for text, _ in cases]
    expected = [score for _, score in cases]
    assert np.allclose(language.oracle([x] * len(cases), outputs), expected)
    cut = [y[:-1] for y in outputs]  # reached the maximum length: no eos
    assert np.allclose(language.oracle([x] * len(cases), cut), expected)


@pytest.mark.parametrize("said, output, right", [
    ("apbc", "abpc", "1101"),  # b asks for P
    ("apbc", "aaPc", "1001"), ("apbc", "aapc", "1011"),  # another noun, which asks for p
    ("apbc", "adPc", "1011"), ("apbc", "adpc", "1001"),  # another, which asks for P too
    ("apbc", "aPpc", "1001"),  # a wrong adjective asks as a right one does
    ("bpqa", "bqpa", "1011"), ("bpqa", "bQpa", "1101"), ("bpqa", "aQPa", "0011"),
    ("pqab", "Qpab", "0011"), ("pqab", "QPab", "0111"),  # the first word has its first form
    ("apbc", "abPcbP", "111100"), ("apbc", "ab", "11"), ("apbc", "", "")])
def test_an_adjective_agrees_with_the_word_before_it_in_the_output(language, words, said, output,
                                                                   right):
    x, y = source(language, words, said), target(language, words, output)
    for said_so in (y, y[:-1]):  # with eos, and cut off before it
        assert "".join(map(str, language.right(x, said_so).astype(int))) == right
    longer = max(len(said), len(output))
    assert language.oracle([x, x], [y, y[:-1]]) == pytest.approx(2 * [right.count("1") / longer])


def test_another_noun_costs_one_word_and_one_more_only_with_the_old_ending(language):
    """Wherever an adjective stands behind a noun, and nothing agrees with the adjective."""
    first, tried = language.lexicon[~language.is_adjective], 0
    adjective = np.zeros(language.vocab_size, bool)
    adjective[language.form[:, language.lexicon[language.is_adjective]]] = True
    for x in language.sources(100, np.random.default_rng(0)):
        y, n = language.answer(x), len(x) - 1
        assert language.right(x, y).all() and language.oracle([x], [y]) == 1.0
        for i in range(n - 1):
            if adjective[y[i]] or not adjective[y[i + 1]] or adjective[y[min(i + 2, n)]]:
                continue
            other = next(w for w in first if language.asks[w] != language.asks[y[i]])
            old, new = y.copy(), y.copy()
            old[i] = new[i] = other
            new[i + 1] = language.form[language.asks[other], y[i + 1]]
            assert list(np.flatnonzero(~language.right(x, old))) == [i, i + 1]
            assert list(np.flatnonzero(~language.right(x, new))) == [i]
            assert language.oracle([x, x], [old, new]) == pytest.approx([(n - 2) / n, (n - 1) / n])
            tried += 1
    assert tried > 50


def test_oracle_of_right_and_other_translations(language):
    sources = language.sources(300, np.random.default_rng(0))
    exact = [language.answer(x) for x in sources]
    assert (language.oracle(sources, exact) == 1).all()
    others = exact[1:] + exact[:1]
    assert language.oracle(sources, others).mean() < 0.06  # 1 / 32 by chance
    source_words = [np.asarray(x) for x in sources]
    assert (language.oracle(sources, source_words) == 0).all()  # the other language
    cut, empty = [y[: len(y) // 2] for y in exact], [y[:0] for y in exact]
    twice = [np.concatenate([y[:-1], y]) for y in exact]
    rng = np.random.default_rng(1)
    human = [language.demonstrate(x, rng) for x in sources]
    for outputs in (exact, others, source_words, cut, empty, twice, human):
        counts = [language.right(x, y).sum() for x, y in zip(sources, outputs)]
        longer = [max(len(x) - 1, len(y[y != EOS])) for x, y in zip(sources, outputs)]
        assert np.allclose(language.oracle(sources, outputs), np.divide(counts, longer))
    assert (language.oracle(sources, empty) == 0).all()
    assert (language.oracle(sources, [y[-1:] for y in exact]) == 0).all()  # only eos


def test_demonstrations_err_by_habit_at_random_and_in_endings_at_their_rates(language):
    rng = np.random.default_rng(0)
    sources = language.sources(4000, rng)
    said, endings = defaultdict(Counter), defaultdict(list)  # asked for -> which are said
    oracle = []
    adjectives = language.lexicon[language.is_adjective]
    for x in sources:
        y = language.demonstrate(x, rng)
        assert len(y) == len(x) and y[-1] == EOS
        oracle.append(language.right(x, y).mean())
        asked = np.append(0, language.asks[y[:-1]])
        for word, to_say, ending in zip(language.reordered(x), y, asked):
            said[word][language.form[0, to_say]] += 1
            if language.form[0, to_say] in adjectives:
                endings[ending].append(to_say >= 3 + 2 * WORDS)
    assert 0.55 < np.mean(oracle) < 0.7  # four words of ten are wrong
    by_chance = RANDOM / (WORDS + ADJECTIVES)  # of a noun; an adjective has two forms
    for word in range(WORDS):
        share = {target: count / said[word].total() for target, count in said[word].items()}
        right, rate = language.lexicon[word], language.habit_rate[word]
        chance = by_chance * (1 + language.is_adjective[word])
        assert share.pop(right) == pytest.approx((1 - rate) * (1 - RANDOM) + chance, abs=0.04)
        if language.habit[word] != right:
            habit = share.pop(language.habit[word])
            assert habit == pytest.approx(rate * (1 - RANDOM) + by_chance, abs=0.04)
        assert max(share.values()) < 0.02 and sum(share.values()) < RANDOM + 0.03
    assert not any(endings[0])
    assert np.mean(endings[1]) == pytest.approx(1 - FORGOTTEN, abs=0.02)
    assert len(endings[1]) > 3000


def test_a_seed_is_a_language(language):
    same, other = Language(Settings()), Language(Settings(seed=1))
    for name in ("lexicon", "is_adjective", "habit", "habit_rate", "asks", "form", "names"):
        assert np.array_equal(getattr(same, name), getattr(language, name))
        assert not np.array_equal(getattr(other, name), getattr(language, name)), name


def test_text(language, words):
    y = language.answer(language.sources(1, np.random.default_rng(0))[0])
    assert len(language.text(y).split(" ")) == len(y) - 1 and language.text([EOS]) == ""
    first, second = language.text(target(language, words, "pP")).split(" ")
    assert second == first + "n"


def test_ratings_are_sixths_of_the_unit_interval(language):
    rng = np.random.default_rng(0)
    sources = 5 * language.sources(200, rng)
    outputs = [language.demonstrate(x, rng) for x in sources]
    exact = language.oracle(sources, outputs)
    noisy = language.rate(sources, outputs, 0.7, rng)
    assert noisy.min() >= 0 and noisy.max() <= 1 and np.allclose(6 * noisy, np.round(6 * noisy))
    assert np.allclose(language.rate(sources, outputs, 0, rng), np.round(6 * exact) / 6)
    assert 0.5 < np.corrcoef(noisy, exact)[0, 1] < 0.95
    assert abs((noisy - exact).mean()) < 0.03
    wild = language.rate(sources, outputs, 50, rng)
    assert len(np.unique(wild)) == 7  # clipped, not wrapped


# ---------------------------------------------------------------------------------------- the sums


@pytest.fixture(scope="module")
def sums():
    return Sums(Settings(task="sums", **Sums.usual))


def numbers(*values, end=True):
    return np.array([3 + value for value in values] + end * [EOS], int)


@pytest.mark.parametrize("output, right, reward, oracle", [
    (numbers(2, 5, 9), "111", 1, 1),
    (numbers(2, 6, 9), "100", 1, 0),  # two wrong steps that come to the same
    (numbers(2, 5, 8), "110", 0, 0), (numbers(3, 6, 10), "011", 0, 0), (numbers(9), "0", 1, 0),
    (numbers(2, 5), "11", 0, 0), (numbers(2, 5, 9, 9), "1110", 1, 0),
    (numbers(2, 5, 9, 10), "1110", 0, 0), (numbers(), "", 0, 0), (numbers(9, 2, 5), "000", 0, 0)])
def test_sums_by_hand(sums, output, right, reward, oracle):
    x = numbers(2, 3, 4)
    assert list(sums.answer(x)) == list(numbers(2, 5, 9))
    assert "".join(map(str, sums.right(x, output).astype(int))) == right
    assert sums.reward([x], [output]) == [reward] and sums.oracle([x], [output]) == [oracle]


@pytest.mark.parametrize("values, right", [((), ""), ((2, 5), "11"), ((2, 5, 9), "111"),
                                           ((2, 5, 9, 11), "1110"), ((2, 6, 9), "100")])
def test_a_sum_without_its_end_is_wrong_but_its_steps_are_seen(sums, values, right):
    """An output that was cut off at the maximum length, or is empty."""
    x, output = numbers(2, 3, 4), numbers(*values, end=False)
    assert sums.reward([x], [output]) == sums.oracle([x], [output]) == [0]
    assert "".join(map(str, sums.right(x, output).astype(int))) == right


def test_sums_of_many_sources(sums):
    rng = np.random.default_rng(0)
    sources = sums.sources(2000, rng)
    assert {len(x) - 1 for x in sources} == {4, 5, 6, 7} and sums.max_len == 8
    assert {int(k) for x in sources for k in x[:-1]} == {4, 5, 6, 7, 8}  # the digits 1 to 5
    answers = [sums.answer(x) for x in sources]
    human = [sums.demonstrate(x, rng) for x in sources]
    assert (sums.oracle(sources, answers) == 1).all()
    assert (sums.reward(sources, answers) == 1).all()
    assert all(sums.right(x, y).all() for x, y in zip(sources, answers))
    reward, oracle = sums.reward(sources, human), sums.oracle(sources, human)
    assert reward.dtype == oracle.dtype == np.float32 and 0.3 < reward.mean() < 0.6
    assert (reward == oracle).all()  # people's errors are too large, or too few, to come to nothing
    assert (oracle == [sums.right(x, y).all() for x, y in zip(sources, human)]).all()
    for x, y in zip(sources, human):
        assert len(y) == len(x) and 3 <= y[:-1].min() and y.max() < sums.vocab_size
    assert sums.text(answers[0]) == " ".join(map(str, np.cumsum(sources[0][:-1] - 3)))


def test_people_forget_carries_and_slip_at_their_rates(sums):
    rng, carries, slips = np.random.default_rng(0), [], []
    for x in sums.sources(4000, rng):
        before = 0
        for digit, total in zip(x[:-1] - 3, sums.demonstrate(x, rng)[:-1] - 3):
            off = total - (before + digit)
            if digit >= 4 and before % 10 + digit >= 10:
                carries.append(off < -8)
            else:
                slips.append(off)
            before = total
    assert np.mean(carries) == pytest.approx(sums.forgotten, abs=0.03) and len(carries) > 1000
    assert set(slips) == {0, 1} and np.mean(slips) == pytest.approx(sums.slip, abs=0.01)


# ------------------------------------------------------------------------------- what is by default


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_made_of_settings_for_each_problem(preset, task):
    settings = Settings(**TASKS[task].usual | PRESETS[preset] | {"task": task})
    assert parsed("--task", task, "--preset", preset) == settings
    problem = TASKS[task](settings)
    assert len(problem.answer(problem.sources(1, np.random.default_rng(0))[0])) > 1


def test_the_quick_preset_is_smaller_in_everything():
    assert next(iter(PRESETS)) == "default" and PRESETS["default"] == {}
    usual = Settings()
    assert all(value < getattr(usual, name) for name, value in PRESETS["quick"].items())


def parsed(*argv):
    """As `main` does it."""
    return parse(Settings, argv, task={name: problem.usual for name, problem in TASKS.items()},
                 preset=PRESETS, method=METHODS)


def test_a_problem_has_defaults_of_its_own():
    """A preset overrules them, a method both, and a flag all."""
    assert parsed() == Settings()
    sums = parsed("--task", "sums")
    assert sums.task == "sums" and sums == Settings(task="sums", **Sums.usual)
    assert (sums.filter, sums.thresholds, sums.ppo, sums.grow) == ("threshold", (0.5,), False, 3)
    flags = parsed("--grow", "1", "--task", "sums", "--thresholds", "0.9", "--ppo")
    assert flags == replace(sums, grow=1, thresholds=(0.9,), ppo=True)
    quick = parsed("--task", "sums", "--preset", "quick")
    assert quick.longest == PRESETS["quick"]["longest"] and quick.grow == 3
    method = parsed("--task", "sums", "--method", "rest-em")
    assert method == replace(sums, **METHODS["rest-em"]) and method.filter == "threshold"
    assert (method.temperature, method.thresholds) == ((0.7,), (0.8,))
    assert parsed("--method", "rft", "--task", "sums").grow == 1
    assert parsed("--method", "rft", "--task", "sums", "--grow", "2").grow == 2
    assert parsed("--task", "sums", "--method", "raft").filter == "top"


def test_an_unknown_problem_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--task", "sum")
    assert "sums" in capsys.readouterr().err
    with pytest.raises(UserError, match="--task sum: must be one of language, sums"):
        Settings(task="sum")


# ------------------------------------------------------------------------------------ the program


def command(folder, *flags):
    return [sys.executable, str(PROGRAM), *TINY, "--out", str(folder), *flags]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}


def main(folder, *flags):
    """The program in this process, which has torch loaded already; later flags win."""
    train_toy.main([*TINY, "--out", str(folder), *flags])


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: [])


@pytest.fixture
def only_rows(monkeypatch, no_figures):
    """No examples either, which take as long as a tiny training."""
    monkeypatch.setattr(demo, "example_lines", lambda *args: [])


def strict(text):
    """JSON without NaN and Infinity, which Python's json would let pass."""
    def refuse(name):
        raise ValueError(f"{name} is not JSON")
    return json.loads(text, parse_constant=refuse)


def events(folder):
    return [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results(folder):
    return strict((folder / "results.json").read_text())


def timeless(rows):
    return [{k: v for k, v in row.items()
             if not k.endswith("seconds") and k != "tokens_per_second"} for row in rows]


def same_results(a, b):
    a, b = results(a), results(b)
    assert timeless(a["rows"]) == timeless(b["rows"])
    assert a["best_of_n"] == b["best_of_n"]


def begin(finished, folder, *steps):
    """A folder in which the steps of a finished run are done."""
    (folder / "steps").mkdir(parents=True)
    for path in (finished / "steps").iterdir():
        if any(path.match(step) or path.match(f"{step}.pt") for step in steps):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, folder / "steps" / path.name)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(folder)
    (folder / "stdout").write_text(out.getvalue())
    return folder


NAMES = ["BC", "ReST (1,0)", "ReST (1,1)", "ReST (1,2)", "ReST (2,1)", "PPO"]
STEPS = ["bc", "rated-1", "reward", "evaluate-bc", "grow-1", "score-1", "improve-1-0",
         "improve-1-1", "improve-1-2", "grow-2", "score-2", "improve-2-1", "ppo-1", "best-of-n"]


def test_the_folder_of_a_run(finished):
    config = strict((finished / "config.json").read_text())
    assert config["program"] == "toy" and config["settings"]["demonstrations"] == 200
    assert config["settings"]["improve"] == [2, 1] and config["settings"]["seed"] == 0
    assert set(config["environment"]) == {"python", "torch", "numpy", "threads"}
    assert [e["step"] for e in events(finished) if e["event"] == "step"] == STEPS
    assert {path.stem for path in (finished / "steps").iterdir()} == set(STEPS)
    assert [e["name"] for e in events(finished) if e["event"] == "row"] == [
        "BC", "ReST", "ReST", "ReST", "ReST", "PPO"]
    for name in ("improve", "best_of_n", "rewards"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    unfinished = (".tmp", ".unfinished", "point.pt")
    assert not [path for path in finished.rglob("*") if path.name.endswith(unfinished)]


def test_results(finished):
    r = results(finished)
    assert set(r) == {"task", "seconds", "rows", "best_of_n"} and r["task"] == "toy"
    assert 0 < r["seconds"] < 600
    rows = r["rows"]
    assert [(row["name"], row["loss"]) for row in rows] == [
        ("BC", "bc"), *4 * [("ReST", "bc")], ("PPO", "ppo")]
    assert [(row["grow"], row["improve"]) for row in rows] == [
        (0, 0), (1, 0), (1, 1), (1, 2), (2, 1), (2, 4)]  # PPO: rounds, updates in each
    one, two = (Pairs.load(finished / "steps" / f"score-{g}").reward for g in (1, 2))
    lines = [np.quantile(one, 0.5), np.quantile(one, 0.7), np.quantile(two, 0.5)]
    assert [rows[k]["threshold"] for k in (0, 1, 5)] == [None] * 3
    assert [row["threshold"] for row in rows[2:5]] == pytest.approx(lines)
    assert [row["samples"] for row in rows] == [0, 400, 400, 400, 800, 64]
    for row in rows:
        trained = set() if row["name"] == "BC" else {"updates", "tokens_trained", "train_seconds"}
        assert set(row) == trained | {
            "name", "loss", "grow", "improve", "threshold", "reward", "oracle", "greedy_reward",
            "greedy_oracle", "cool_reward", "cool_oracle", "reward_error", "length", "distinct_2",
            "entropy", "kl_to_bc", "kept_samples", "kept_data", "samples", "distinct_samples",
            "tokens_drawn", "grow_seconds", "seconds"}
        for key in ("reward", "oracle", "greedy_reward", "greedy_oracle", "cool_reward",
                    "cool_oracle", "distinct_2", "kept_data"):
            assert 0 <= (row[key] or 0) <= 1, (row["name"], key)
        assert 0 < row["length"] < MAX_LEN / 4  # a right answer has four tokens at least
        assert 0 <= row["distinct_samples"] <= row["samples"]
        assert 0 < row["entropy"] < np.log(75) and abs(row["kl_to_bc"]) < 1 and row["seconds"] > 0
        assert 0 <= row["reward_error"] <= 1
    assert abs(rows[0]["kl_to_bc"]) < 1e-5  # BC from itself
    drawn = [len(Pairs.load(finished / "steps" / f"grow-{g}").tokens) for g in (1, 2)]
    assert [row["tokens_drawn"] for row in rows[:5]] == [0, *3 * drawn[:1], sum(drawn)]
    assert 64 <= rows[5]["tokens_drawn"] <= 64 * MAX_LEN and rows[0]["grow_seconds"] == 0
    assert all(row["updates"] in (0, 5, 10) and row["tokens_trained"] > 0 for row in rows[1:5])
    assert rows[5]["updates"] == 2 * 4
    assert rows[1]["kept_samples"] == rows[1]["kept_data"] == 1  # I = 0 keeps all
    assert rows[1]["kept_samples"] > rows[2]["kept_samples"] > rows[3]["kept_samples"] > 0


def test_best_of_n(finished):
    entries = results(finished)["best_of_n"]
    assert [(e["policy"], e["n"]) for e in entries] == [
        (policy, n) for policy in ("BC", "ReST") for n in (1, 2, 4)]
    for policy in ("BC", "ReST"):
        rewards = [e["reward"] for e in entries if e["policy"] == policy]
        assert rewards == sorted(rewards) and rewards[0] < rewards[-1]
        assert all(0 <= e["oracle"] <= 1 for e in entries)


def test_what_is_kept_is_what_is_strictly_above(finished):
    pairs = Pairs.load(finished / "steps" / "score-1")
    assert len(pairs) == 600 and pairs.human.sum() == 200 and not pairs.human[:400].any()
    for row, q in zip(results(finished)["rows"][2:4], (0.5, 0.7)):
        kept = pairs.reward > np.quantile(pairs.reward, q)
        assert row["kept_samples"] == pytest.approx(kept[:400].mean())
        assert row["kept_data"] == pytest.approx(kept[400:].mean())


def test_saved_weights_are_those_of_the_last_step(finished):
    last = load(finished / "steps" / "improve-2-1.pt")["policy"]
    for name, cls in (("policy.pt", Transformer), ("reward.pt", RewardModel)):
        content = load(finished / name)
        model = cls(Config(**content["config"]))
        model.load_state_dict(content["weights"])  # strict: every name, every shape
        if name == "policy.pt":
            assert all(torch.equal(content["weights"][k], last[k]) for k in last)


def test_samples_and_output(finished):
    """What became of two sources, from row to row; at the end it is printed too."""
    text, out = ((finished / name).read_text() for name in ("samples.txt", "stdout"))
    language, r = Language(Settings(shortest=3, longest=6)), results(finished)
    sources = language.sources(30, stream("toy sources", 0, 3))
    examples = text.strip().split("\n\n")
    assert len(examples) == 2 and out.index(text) > out.index("best of N") > out.index("BC   ")
    for x, lines in zip(sources, map(str.splitlines, examples)):
        assert [line[:12].strip() for line in lines] == ["source", "right", *NAMES]
        texts = [line[27:] for line in lines]
        assert texts[:2] == [language.text(x), language.text(language.answer(x))]
        assert lines[1][12:27] == "reward oracle  "
        for line, said in zip(lines[2:], texts[2:]):
            reward, oracle = map(int, line[12:27].split())
            words = said.split()
            assert 0 <= reward <= 100
            right = sum(not word.endswith("*") for word in words)
            assert oracle == round(100 * right / max(len(words), len(x) - 1))
            assert {word.rstrip("*") for word in words} <= set(language.names)
    for name in NAMES:
        assert sum(line.startswith(name + " ") for line in out.splitlines()) >= 4, name
    table = out[: out.index("best of N")].strip().splitlines()
    equal = table[-1].startswith("(=")  # where a row's policy is an earlier row's
    table = table[-len(NAMES) - equal : len(table) - equal]
    assert [line[:12].strip() for line in table] == NAMES
    assert [line[12:].split()[0] for line in table] == [
        f"{100 * row['reward']:.1f}" for row in r["rows"]]
    assert str(finished) in out.splitlines()[-1]


def test_show_marks_what_is_wrong(finished, monkeypatch):
    """Of a policy's outputs, here one that is right, one with a wrong word, and one cut off."""
    language = Language(Settings(shortest=3, longest=6))
    sources = language.sources(3, np.random.default_rng(0))
    outputs = [language.answer(x) for x in sources]
    outputs[1][1] = language.first_target + (outputs[1][1] + 1) % WORDS
    outputs[2] = outputs[2][:-1]
    task = SimpleNamespace(test_sources=sources, max_len=MAX_LEN,
                           reward=lambda sources, outputs: [0.25, 0.5, 1.0][: len(outputs)])
    monkeypatch.setattr(demo, "sample_outputs", lambda *args, **kwargs: Pairs.of(
        range(3), outputs))
    lines = demo.example_lines(language, task, None, 3)
    assert [line.split()[0] for line in lines] == ["25", "50", "100"]
    texts = [line[15:].split(" ") for line in lines]
    for words, x, y in zip(texts, sources, outputs):
        assert [word.endswith("*") for word in words] == list(~language.right(x, y))
        assert [word.rstrip("*") for word in words] == language.text(y).split(" ")
    assert texts[1][1].endswith("*") and not any("*" in word for word in texts[0] + texts[2])
    assert [int(line.split()[1]) for line in lines[::2]] == [100, 100]
    assert [[line[27:] for line in lines] for lines in demo.example_heads(language, task, 1)] == [
        [language.text(sources[0]), language.text(language.answer(sources[0]))]]


def test_another_seed_is_another_run(finished, tmp_path, only_rows):
    main(tmp_path / "run", "--seed", "1", "--grow", "1", "--improve", "1", "--no-ppo",
         "--bc-updates", "10", "--reward-updates", "5", "--updates", "2", "--best-of", "1")
    rows = results(tmp_path / "run")["rows"]
    assert [row["name"] for row in rows] == ["BC", "ReST", "ReST"]
    assert rows[0]["reward"] != results(finished)["rows"][0]["reward"]


def test_a_second_run_that_is_stopped_and_resumed_is_the_same(finished, tmp_path, no_figures,
                                                               capsys):
    folder = tmp_path / "run"
    run_cli(lambda: main(folder, "--stop-after", "grow-1"))
    assert "grow-1 is done" in capsys.readouterr().out
    assert (folder / "steps/grow-1").exists() and not (folder / "steps/score-1").exists()
    assert not (folder / "results.json").exists()
    with pytest.raises(UserError, match="grow1: no step is called so; there are bc, rated-1"):
        main(folder, "--resume", "--stop-after", "grow1")
    main(folder, "--resume")
    same_results(finished, folder)
    assert (finished / "samples.txt").read_text() == (folder / "samples.txt").read_text()
    assert [e["step"] for e in events(folder) if e["event"] == "step"] == STEPS


@pytest.mark.slow  # test_trust.py kills runs at every kind of moment, in forked processes
def test_a_killed_program_resumes_to_the_same_results(finished, tmp_path, no_figures):
    folder = tmp_path / "run"
    running = subprocess.Popen(command(folder), env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "steps/improve-1-0.pt").exists() and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -9
    assert (folder / "steps/improve-1-0.pt").exists() and not (folder / "results.json").exists()
    main(folder, "--resume")
    same_results(finished, folder)
    assert (finished / "samples.txt").read_text() == (folder / "samples.txt").read_text()


# Killed inside of a training step, which goes on from its checkpoint: at update 3, between two
# evaluations, and at update 5, which is one.


class Killed(BaseException):
    """Passes through every handler, like the process's end."""


def killed_inside(monkeypatch, folder, step, update, flags):
    """Run the program with a checkpoint at every update, killed right after one of them."""
    save = Checkpoint.save

    def kill(checkpoint, name, content):
        save(checkpoint, name, content)
        if checkpoint.step == step and content["state"]["update"] >= update:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", kill)
        with pytest.raises(Killed):
            main(folder, *flags)
    assert (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("step, update, loss", [
    ("bc", 7, "bc"), ("improve-1-1", 3, "bc"), ("improve-1-1", 3, "gold"),
    *(pytest.param("improve-1-1", update, loss, marks=pytest.mark.slow)
      for update, loss in ((5, "bc"), (3, "oac"), (3, "bvmpo")))])
def test_a_step_that_was_killed_goes_on_where_it_was(finished, tmp_path, monkeypatch, only_rows,
                                                      capsys, save_always, step, update, loss):
    flags = ["--stop-after", step, "--loss", loss, "--value-updates", "2", "--gold-sync", "4"]
    done, whole = STEPS[: STEPS.index(step)], finished
    if loss != "bc":
        flags += ["--updates", "6"]
        whole = begin(finished, tmp_path / "whole", *done)
        run_cli(lambda: main(whole, *flags))
    cut = begin(whole, tmp_path / "cut", *done, "value-1")
    killed_inside(monkeypatch, cut, step, update, flags)
    run_cli(lambda: main(cut, *flags, "--resume"))
    a, b = (load(x / "steps" / f"{step}.pt") for x in (whole, cut))
    for name in a["policy"]:
        assert torch.equal(a["policy"][name], b["policy"][name]), name
    if "row" in a:
        assert timeless([a["row"]]) == timeless([b["row"]])
    curves = [timeless(e for e in events(x) if e["event"] == "train" and e["step"] == step)
              for x in (whole, cut)]
    assert curves[0] == curves[1]
    assert not (cut / "checkpoint.pt").exists()


# ------------------------------------------------------------------------------ settings of ReST


def short(folder, *flags):
    """A run of one Grow and two Improves, its rows."""
    main(folder, "--grow", "1", "--improve", "2", "--no-ppo", "--best-of", "1", "--updates", "2",
         "--value-updates", "2", "--evaluate-every", "2", *flags)
    rows = results(folder)["rows"]
    assert len(rows) == 4
    for row in rows:
        for key, value in row.items():
            if not isinstance(value, (str, type(None))):
                assert np.isfinite(value), key
        assert 0 <= row["reward"] <= 1 and 0 <= row["oracle"] <= 1
    return rows


DRAWN = ["bc", "rated-1", "reward", "evaluate-bc", "grow-1", "score-1"]


@pytest.mark.parametrize("loss", ["gold", "bvmpo", "oac"])
def test_every_loss(finished, tmp_path, only_rows, capsys, loss):
    begin(finished, tmp_path / "run", *DRAWN)
    rows = short(tmp_path / "run", "--loss", loss)
    # BC and I = 0 are the paper's: BC on all of D_g, whatever the loss of the Improves
    assert [row["loss"] for row in rows] == ["bc", "bc", loss, loss]
    assert f"{loss.upper()} (1,2)" in capsys.readouterr().out
    assert (tmp_path / "run/steps/value-1.pt").exists() == (loss in ("bvmpo", "oac"))


@pytest.mark.parametrize("name, thresholds", [
    ("threshold", None), ("quantile", ["0.4", "0.8"]), ("percentile", ["30", "60"]),
    ("gamma", ["0", "0.6"]), ("top", ["2", "1"])])
def test_every_filter(finished, tmp_path, only_rows, name, thresholds):
    reward = Pairs.load(finished / "steps/score-1").reward
    if thresholds is None:  # rewards of so short a training lie close together
        thresholds = [f"{np.quantile(reward, q):.6f}" for q in (0.3, 0.6)]
    begin(finished, tmp_path / "run", *DRAWN)
    rows = short(tmp_path / "run", "--filter", name, "--thresholds", *thresholds)
    lines = [float(x) for x in thresholds]
    lines = {"threshold": lines, "quantile": np.quantile(reward, np.clip(lines, 0, 1))}.get(name)
    assert [row["threshold"] for row in rows[:2]] == [None, None]
    expected = 2 * [None] if lines is None else pytest.approx(lines)  # each source has its own
    assert [row["threshold"] for row in rows[2:]] == expected
    kept = [row["kept_samples"] for row in rows[1:]]
    assert 1 == kept[0] >= kept[1] >= kept[2] > 0 and kept[2] < 1


def test_a_filter_that_keeps_nothing_skips_the_improve(finished, tmp_path, only_rows, capsys):
    begin(finished, tmp_path / "run", *DRAWN)
    rows = short(tmp_path / "run", "--filter", "threshold", "--thresholds", "0.01", "0.999")
    assert rows[3]["kept_samples"] == rows[3]["kept_data"] == 0
    assert rows[3]["reward"] == rows[2]["reward"]
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ReST (1,2)")]
    assert last and all("  = ReST (1," in line for line in last)
    assert any("kept nothing" in e["text"] for e in events(tmp_path / "run")
               if e["event"] == "warning")


def test_distinct_and_some_sources(finished, tmp_path, only_rows):
    begin(finished, tmp_path / "run", *DRAWN[:4])
    rows = short(tmp_path / "run", "--distinct", "--grow-sources", "50", "--temperature", "0")
    assert rows[3]["samples"] == 100 and rows[3]["distinct_samples"] == 50
    assert len(Pairs.load(tmp_path / "run/steps/score-1")) == 50 + 200


def test_ppo_with_fewer_sources_than_a_round_wants(tmp_path, only_rows):
    main(tmp_path / "run", "--demonstrations", "20", "--ppo-batch", "512", "--grow", "0",
         "--bc-updates", "5", "--reward-updates", "5", "--best-of", "1")
    ppo = results(tmp_path / "run")["rows"][-1]
    assert ppo["name"] == "PPO" and ppo["samples"] % 8 == 0 and 0 <= ppo["reward"] <= 1


def test_rows_along_the_way_of_ppo(finished, tmp_path, only_rows):
    """A step and a row each; the last is the one that there is without."""
    begin(finished, tmp_path / "run", *STEPS[:-2])
    main(tmp_path / "run", "--ppo-rows", "2")
    assert {path.stem for path in (tmp_path / "run/steps").iterdir()} == {*STEPS, "ppo-2"}
    rows, whole = (timeless(results(x)["rows"]) for x in (tmp_path / "run", finished))
    assert [row["name"] for row in rows[5:]] == ["PPO", "PPO"] and rows[:5] == whole[:5]
    assert [row["samples"] for row in rows[5:]] == [32, 64]
    for row in (rows[6], whole[5]):
        del row["updates"], row["tokens_trained"]  # of this part alone
    assert rows[6] == whole[5]
    assert results(tmp_path / "run")["best_of_n"] == results(finished)["best_of_n"]


def test_a_run_of_bc_alone_reports_bc_alone(finished, tmp_path, only_rows):
    begin(finished, tmp_path / "run", *DRAWN[:4])
    main(tmp_path / "run", "--grow", "0", "--no-ppo", "--best-of", "2")
    r = results(tmp_path / "run")
    assert [row["name"] for row in r["rows"]] == ["BC"]
    assert [entry["policy"] for entry in r["best_of_n"]] == 2 * ["BC"]


def test_a_run_without_a_grow(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_png", lambda figure, path: path.touch())
    begin(finished, tmp_path / "run", *DRAWN[:4])
    main(tmp_path / "run", "--grow", "0", "--best-of", "2")
    r = results(tmp_path / "run")
    assert [row["name"] for row in r["rows"]] == ["BC", "PPO"]
    assert {path.stem for path in (tmp_path / "run/steps").iterdir()} == {
        *DRAWN[:4], "ppo-1", "best-of-n"}
    assert [e["policy"] for e in r["best_of_n"]] == 2 * ["BC"] + 2 * ["PPO"]
    steps, saved = (load(tmp_path / "run" / x) for x in ("steps/ppo-1.pt", "policy.pt"))
    assert all(torch.equal(steps["policy"][k], saved["weights"][k]) for k in saved["weights"])
    assert (tmp_path / "run/improve.png").exists() and not (tmp_path / "run/rewards.png").exists()


def test_preferences(finished, tmp_path, only_rows):
    begin(finished, tmp_path / "run", "bc")
    short(tmp_path / "run", "--preferences", "--filter", "top", "--thresholds", "2", "1")
    a, b = (load(x / "steps/reward.pt")["reward"] for x in (finished, tmp_path / "run"))
    assert any(not torch.equal(a[k], b[k]) for k in a)


# --------------------------------------------------------------------- answers that can be checked


SUMS = ("--task sums --device cpu --shortest 2 --longest 4 --d-model 16 --demonstrations 60 "
        "--bc-updates 40 --updates 4 --evaluate-every 2 --eval-sources 20 --test-sources 60 "
        "--samples 4 --best-of 2 --batch-tokens 200").split()


def add(folder, *flags):
    """A tiny run of the sums -> its rows."""
    train_toy.main([*SUMS, "--out", str(folder), *flags])
    return results(folder)["rows"]


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda folder: [])
        add(folder)
    (folder / "stdout").write_text(out.getvalue())
    return folder


def test_a_run_of_the_sums(added):
    """Three Grows with an Improve each; no one rates anything, and there is no reward model."""
    rows = results(added)["rows"]
    assert [(row["name"], row["grow"], row["improve"]) for row in rows] == [
        ("BC", 0, 0), ("ReST", 1, 1), ("ReST", 2, 1), ("ReST", 3, 1)]
    assert {path.stem for path in (added / "steps").iterdir()} == {
        "bc", "evaluate-bc", "best-of-n",
        *(f"{step}-{g}" for step in ("grow", "score") for g in (1, 2, 3)),
        *(f"improve-{g}-1" for g in (1, 2, 3))}
    assert (added / "policy.pt").exists() and not (added / "reward.pt").exists()
    sums = Sums(parse(Settings, SUMS[2:]))
    test_sources = sums.sources(60, stream("toy sources", 0, 3))
    for row in rows:
        assert row["oracle"] <= row["reward"] and 0 < row["pass_at_8"] <= 1
        share = row["reward"]  # one of eight is right more often than one, but for chance
        assert row["pass_at_8"] >= share - 3 * np.sqrt(share * (1 - share) / 60)
    D_g = Pairs.load(added / "steps/score-1")
    sources = sums.sources(60, stream("toy sources", 0, 0))
    assert np.array_equal(D_g.reward, sums.reward([sources[i] for i in D_g.source], D_g.targets()))
    assert rows[1]["threshold"] == 0.5
    assert rows[1]["kept_samples"] == pytest.approx(D_g.reward[~D_g.human].mean())
    assert rows[1]["kept_data"] == pytest.approx(D_g.reward[D_g.human].mean())
    out, samples = (added / "stdout").read_text(), (added / "samples.txt").read_text()
    assert "pass@8" in out and "task sums" in out and "reward model" not in out
    for x, lines in zip(test_sources, samples.split("\n\n")):
        assert lines.splitlines()[0].split()[1:] == [str(k - 3) for k in x[:-1]]
        assert lines.splitlines()[1].split()[3:] == sums.text(sums.answer(x)).split()


def test_pass_at_8_is_of_eight_samples_of_each_source(added):
    rows, settings = results(added)["rows"], parse(Settings, SUMS)
    sums, policy = Sums(settings), model_of(Transformer, added, "improve-3-1", "policy")
    sources = sums.sources(60, stream("toy sources", 0, 3))
    drawn = sample_outputs(policy, sources, 8, ("pass", 0), sums.max_len)
    right = sums.reward([sources[i] for i in drawn.source], drawn.targets())
    found = {int(i) for i, one in zip(drawn.source, right) if one}
    assert rows[-1]["pass_at_8"] == pytest.approx(len(found) / 60)


@pytest.mark.parametrize("name", ["rest-em", "raft", "expert-iteration"])
def test_of_the_sums_methods_keep_what_is_right(name, added, tmp_path, only_rows, monkeypatch):
    """RAFT keeps a sample of each source, right if one of them is."""
    begin(added, tmp_path / "run", "bc", "evaluate-bc")
    improves = spy(monkeypatch, "improve")
    rows = add(tmp_path / "run", "--method", name, "--grow", "2", "--samples", "8")
    assert [(row["name"], row["grow"], row["improve"]) for row in rows] == [
        ("BC", 0, 0), ("ReST", 1, 1), ("ReST", 2, 1)]
    assert len(improves) == 2 and all("pass_at_8" in row for row in rows)
    for g, call in enumerate(improves, 1):
        D_g, kept = call["args"][1], kept_by(call)
        right = D_g.reward == 1
        assert not D_g.human.any() and len(D_g) == 60 * 8 and set(D_g.reward) == {0, 1}
        assert len(kept) and rows[g]["kept_samples"] == pytest.approx(len(kept) / len(D_g))
        solved = np.bincount(D_g.source, right, minlength=60)
        counts = np.bincount(kept.source, minlength=60)
        if name == "raft":
            assert (counts == 1).all()
            assert (kept.reward[np.argsort(kept.source)] == (solved > 0)).all()
        else:
            assert (kept.reward == 1).all()
            assert (counts == (np.minimum(solved, 3) if name == "rest-em" else solved)).all()


def test_show_on_a_run_of_the_sums(added, capsys):
    add(added, "--show", "2")
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith("Grow ")]
    assert [line.split(":")[0] for line in heads] == [f"Grow {g}, Improve 1" for g in (1, 2, 3)]
    shown = [line.split("  ->  ") for line in lines if "  ->  " in line]
    assert len(shown) == 3 * 10
    for left, right in shown:
        reward, _, fate, *digits = left.split()
        answer = sum(map(int, digits))
        assert (right.split()[-1:] == [str(answer)]) == (float(reward) == 100) == (fate == "kept")


# ------------------------------------------------------------------------------ what comes before


def settings_of(*flags):
    return parse(Settings, [*TINY, *flags], method=METHODS)


def data_of(monkeypatch, *flags):
    """The task as it is before anything is trained."""
    seen = []

    def stop(problem, task, *args):
        seen.append(task)
        raise Stopped

    monkeypatch.setattr(train_toy, "train_bc", stop)
    with pytest.raises(Stopped):
        prepare(settings_of(*flags), None, "cpu")
    return seen[0]


def equal(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.mark.parametrize("flag", ["demonstrations", "rated-sources", "eval-sources",
                                  "test-sources"])
def test_more_of_one_of_the_data_shifts_nothing_in_the_others(monkeypatch, capsys, flag):
    a, b = data_of(monkeypatch), data_of(monkeypatch, f"--{flag}", "250")
    grown = {"demonstrations": "sources", "eval-sources": "eval_sources",
             "test-sources": "test_sources"}.get(flag)
    for name in ("sources", "eval_sources", "test_sources"):
        x, y = getattr(a, name), getattr(b, name)
        assert equal(x, y[: len(x)]) and (len(y) == 250) == (name == grown)
    assert equal(a.data.targets(), b.data.targets(range(200)))
    assert not equal(a.eval_sources, a.test_sources[:20])
    other = data_of(monkeypatch, "--seed", "1")
    assert not equal(a.test_sources, other.test_sources)


def test_what_prepare_prepares(finished, tmp_path, capsys):
    """BC, a base from which its training gives BC again, the reward model, and the metrics."""
    folder = begin(finished, tmp_path / "run", *DRAWN[:3])
    settings = settings_of("--out", str(folder))
    with Run(settings, "toy") as run:
        toy = prepare(settings, run, torch.device("cpu"))
    task, (base, hp) = toy.task, toy.task.base
    assert not toy.bc.training and task.refresh is None
    assert (hp.updates, hp.lr, hp.warmup) == (settings.bc_updates, settings.bc_lr, 100)
    again = load(finished / "steps/bc.pt")["policy"]
    assert all(torch.equal(x, again[k]) for k, x in toy.bc.state_dict().items())
    assert any(not torch.equal(x, again[k]) for k, x in base.state_dict().items())
    rest.improve(base, task.data, task.sources, settings, hp,
                 seed_of("bc", settings.seed))
    assert all(torch.equal(x, again[k]) for k, x in base.state_dict().items())
    right = [toy.problem.answer(x) for x in task.test_sources]
    assert np.array_equal(task.reward(task.test_sources, right),
                          toy.reward_model.score(task.test_sources, right))
    n = len(right)
    sampled = Pairs.of(range(n), right, reward=np.where(np.arange(n) % 2, 0.25, 1))
    greedy = Pairs.of(range(n), [y[::-1][1:] for y in right], reward=np.ones(n))
    metrics = task.metrics(toy.bc, sampled, greedy)
    assert set(metrics) == {"oracle", "greedy_oracle", "cool_reward", "cool_oracle", "reward_error",
                            "length", "distinct_2"}
    assert metrics["oracle"] == metrics["length"] == 1 and metrics["greedy_oracle"] < 0.5
    assert metrics["reward_error"] == pytest.approx(0.75 / np.sqrt(2))
    cool = sample_outputs(toy.bc, task.test_sources, 1, ("cool", 0), MAX_LEN, temperature=0.8)
    scores = task.reward(task.test_sources, cool.targets())
    assert metrics["cool_reward"] == pytest.approx(scores.mean(), abs=1e-5)
    assert metrics["cool_oracle"] == pytest.approx(
        toy.problem.oracle(task.test_sources, cool.targets()).mean())


def test_signs_of_over_optimisation_by_hand():
    """The length of what is sampled, and how many of its pairs of neighbours are different."""
    settings = settings_of()
    language, policy = Language(settings), some_policy(vocab_size=75, max_len=MAX_LEN)
    sources = language.sources(4, np.random.default_rng(0))
    task = SimpleNamespace(test_sources=sources, max_len=MAX_LEN,
                           reward=lambda sources, outputs: np.full(len(outputs), 0.5))

    def measured(outputs):
        pairs = Pairs.of(range(4), outputs, reward=np.full(4, 0.5))
        return demo.metrics(language, task, settings, policy, pairs, pairs)

    exact = [language.answer(x) for x in sources]
    said_twice = measured([np.concatenate([y[:-1], y]) for y in exact])
    tokens = sum(map(len, exact))
    assert said_twice["length"] == pytest.approx((2 * tokens - 4) / tokens)
    same = measured(4 * [np.array([40, 41, 40, 41, EOS])])
    assert same["distinct_2"] == pytest.approx(3 / 16)  # 40 41, 41 40, 41 eos
    assert same["length"] == pytest.approx(20 / tokens) and same["reward_error"] <= 0.5
    empty = measured(4 * [np.array([EOS])])  # a policy may come to this
    assert empty["length"] == pytest.approx(4 / tokens) and empty["oracle"] == 0
    assert 0 <= empty["distinct_2"] <= 1


REFRESHED = ["--refresh", "--rated-sources", "61", "--best-of", "1"]  # PPO has the last reward


@pytest.fixture(scope="module")
def refreshed_and_seen(finished, tmp_path_factory):
    """A run with --refresh, and the ratings that each reward model was trained on."""
    folder = begin(finished, tmp_path_factory.mktemp("refresh") / "run", "bc")
    seen, train_reward = [], train_toy.rm.train_reward

    def spied(model, sources, rated, *args, **kwargs):
        seen.append(rated)
        return train_reward(model, sources, rated, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda folder: [])
        patch.setattr(demo, "example_lines", lambda *args: [])
        patch.setattr(train_toy.rm, "train_reward", spied)
        main(folder, *REFRESHED)
    return folder, seen


@pytest.fixture(scope="module")
def refreshed(refreshed_and_seen):
    return refreshed_and_seen[0]


def model_of(cls, folder, step, key):
    model = cls(Config(**load(folder / "policy.pt")["config"]))
    model.load_state_dict(load(folder / "steps" / f"{step}.pt")[key])
    return model.eval()


def test_refresh_shares_the_ratings_out_over_the_grows(finished, refreshed):
    """Each source is rated in one of them; there are as many ratings as without."""
    parts = [Pairs.load(refreshed / "steps" / f"rated-{g}") for g in (1, 2)]
    assert [len(set(part.source)) for part in parts] == [31, 30]
    both = Pairs.join(parts)
    assert (np.bincount(both.source) == 4).all() and len(np.bincount(both.source)) == 61
    assert len(both) == 4 * 61 and np.allclose(6 * both.reward, np.round(6 * both.reward))
    assert len(Pairs.load(finished / "steps/rated-1")) == 4 * 60
    done = [e["step"] for e in events(refreshed) if e["event"] == "step"]
    assert done == ["rated-1", "reward", "evaluate-bc", "grow-1", "score-1", "improve-1-0",
                    "improve-1-1", "improve-1-2", "rated-2", "reward-2", "grow-2", "score-2",
                    "improve-2-1", "ppo-1", "best-of-n"]


def test_two_reward_scales_are_pointed_out(finished, refreshed, tmp_path, only_rows, capsys):
    shutil.copytree(refreshed, tmp_path / "run")
    main(tmp_path / "run", *REFRESHED, "--resume")
    assert "rewards of different Grows do not compare" in capsys.readouterr().out
    main(begin(finished, tmp_path / "plain", *DRAWN[:3]), "--no-ppo", "--best-of", "1")
    assert "do not compare" not in capsys.readouterr().out


def test_the_longest_translation_can_be_read_when_it_is_said_twice(finished):
    """As the test of the reward model does it: nothing of it is cut."""
    language = Language(Settings(shortest=3, longest=6))
    words = max(len(x) - 1 for x in language.sources(300, np.random.default_rng(0)))
    longest = load(finished / "reward.pt")["config"]["max_len"]
    assert language.max_len == MAX_LEN and words + 1 <= MAX_LEN and 2 * words + 1 <= longest


def test_refresh_rates_the_policy_that_grows(refreshed):
    settings = settings_of(*REFRESHED)
    sources = Language(settings).sources(61, stream("toy sources", settings.seed, 1))
    policies = [model_of(Transformer, refreshed, step, "policy") for step in ("bc", "improve-1-2")]
    for g, own in enumerate(policies):
        rated = Pairs.load(refreshed / "steps" / f"rated-{g + 1}")
        gaps = [np.abs(logprobs_of(policy, sources, rated) - rated.logprobs).max()
                for policy in (own, policies[1 - g])]
        assert gaps[0] < 1e-4 < gaps[1]


def test_each_grow_is_scored_by_its_own_reward_model(refreshed, monkeypatch, capsys):
    task = data_of(monkeypatch, *REFRESHED)
    models = [model_of(RewardModel, refreshed, step, "reward") for step in ("reward", "reward-2")]
    for g, model in enumerate(models):
        D_g = Pairs.load(refreshed / "steps" / f"score-{g + 1}")
        scores = [m.score([task.sources[i] for i in D_g.source], D_g.targets())
                  for m in (model, models[1 - g])]
        assert np.allclose(D_g.reward, scores[0], atol=1e-5)
        assert not np.allclose(D_g.reward, scores[1], atol=1e-3)


def test_the_reward_model_that_is_left_is_the_last(refreshed):
    """The one that best-of-N, and the last rows, were judged by."""
    left = load(refreshed / "reward.pt")["weights"]
    last = load(refreshed / "steps/reward-2.pt")["reward"]
    assert all(torch.equal(left[k], last[k]) for k in last)


def test_a_new_reward_model_is_trained_on_all_ratings_so_far(refreshed_and_seen):
    folder, seen = refreshed_and_seen
    parts = [Pairs.load(folder / "steps" / f"rated-{g}") for g in (1, 2)]
    for rated, expected in zip(seen, (parts[0], Pairs.join(parts)), strict=True):
        assert equal(rated.targets(), expected.targets())
        assert np.array_equal(rated.source, expected.source)
        assert np.array_equal(rated.reward, expected.reward)


def test_a_refreshed_run_goes_on(refreshed, tmp_path, only_rows):
    folder = begin(refreshed, tmp_path / "run", "bc", "rated-1", "reward", "evaluate-bc", "grow-1",
                   "score-1", "improve-1-*")
    run_cli(lambda: main(folder, *REFRESHED, "--stop-after", "rated-2"))
    assert (folder / "steps/rated-2").exists() and not (folder / "steps/reward-2.pt").exists()
    main(folder, *REFRESHED, "--resume")
    same_results(refreshed, folder)


def test_refresh_without_a_grow_shares_nothing_out(finished, tmp_path, only_rows):
    begin(finished, tmp_path / "run", "bc")
    main(tmp_path / "run", "--refresh", "--grow", "0", "--best-of", "1")
    assert len(Pairs.load(tmp_path / "run/steps/rated-1")) == 4 * 60
    rows, whole = (timeless(results(x)["rows"]) for x in (tmp_path / "run", finished))
    assert rows == [whole[0], whole[-1]]


# ----------------------------------------------------------------------------- --show, bad settings


def test_show_on_a_finished_run(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    main(finished, "--show", "2")
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("Grow ")]
    assert [lines[i].split(":")[0] for i in heads] == [
        "Grow 1, Improve 1", "Grow 1, Improve 2", "Grow 2, Improve 1"]
    titles = ["kept, best", "kept, worst", "dropped, best", "dropped, worst", "nearest to the line"]
    for i in heads:
        block = lines[i + 1 : i + 16]
        assert [line.strip() for line in block[::3]] == titles
        scores = [[float(line.split()[0]) for line in block[k + 1 : k + 3]]
                  for k in range(0, 15, 3)]
        assert all(pair == sorted(pair, reverse=True) for pair in scores)
        assert scores[0][0] >= scores[1][1] >= scores[2][0] >= scores[3][1]
        assert all("  ->  " in line and line.split()[1] in ("human", "sample")
                   for k, line in enumerate(block) if k % 3)
    pairs = Pairs.load(finished / "steps/score-1")
    kept = (pairs.reward > np.quantile(pairs.reward, 0.5)).sum()
    assert f"keeps {kept} of 600 pairs" in lines[heads[0]]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def one_line(capsys, *flags, folder):
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(folder, *flags))
    error = capsys.readouterr().err
    lines = error.replace("\r", "\n").splitlines()  # progress bars may stand before it
    assert stop.value.code == 2 and lines[-1].startswith("error: ")
    assert error.endswith("\n") and error.count("error: ") == 1 and "Traceback" not in error
    return lines[-1]


def test_show_on_nothing(tmp_path, capsys):
    assert "nothing to show" in one_line(capsys, "--show", "2", folder=tmp_path / "run")


def test_show_on_nothing_leaves_nothing(tmp_path, capsys):
    one_line(capsys, "--show", "2", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # else a new run is refused there


@pytest.mark.parametrize("flags", [
    ["--grow", "-1"], ["--improve", "-1"], ["--ppo-rows", "0"], ["--samples", "0"],
    ["--seed", "-1"], ["--d-model", "17"], ["--shortest", "7"], ["--longest", "2"],
    ["--thresholds", "0.9", "0.5"], ["--filter", "top", "--thresholds", "1", "2"]], ids=" ".join)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(tmp_path, capsys, flags,
                                                                          no_figures):
    one_line(capsys, *flags, folder=tmp_path / "run")
    assert not list(tmp_path.glob("run/steps/*"))


def test_what_the_demo_is_by_default():
    s = Settings()
    assert s.grow == len(s.improve) and max(s.improve) <= len(s.thresholds) and s.ppo
