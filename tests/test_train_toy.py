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
from pathlib import Path

import numpy as np
import pytest
import torch

import rest
import train_toy
from infra import figures
from infra.cli import run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.relatives import METHODS
from infra.run import Run, Stopped
from infra.sampling import logprobs_of
from infra.seeds import seed_of, stream
from infra.settings import parse
from infra.storage import Checkpoint, load
from model import EOS, Config, Transformer
from reward import RewardModel
from train_toy import ADJECTIVES, HABITS, MAX_LEN, WORDS, Language, Settings, prepare, rate

PROGRAM = Path(train_toy.__file__)
TINY = ("--device cpu --d-model 16 --demonstrations 200 --rated-sources 60 --bc-updates 30 "
        "--reward-updates 20 --updates 10 --evaluate-every 5 --eval-sources 20 --test-sources 30 "
        "--grow 2 --improve 2 1 --samples 2 --best-of 4 --ppo-samples 64 --ppo-batch 32 "
        "--batch-tokens 400").split()


# ------------------------------------------------------------------------------------ the language


@pytest.fixture(scope="module")
def language():
    return Language(0)


@pytest.fixture(scope="module")
def nouns(language):
    """Four source words that are no adjectives, and two that are, as numbers from 0."""
    plain, adjectives = (np.flatnonzero(language.adjective == x) for x in (False, True))
    return dict(zip("abcdpq", [*plain[:4], *adjectives[:2]]))


def source(language, nouns, text):
    return np.array([language.first_source + nouns[x] for x in text] + [EOS])


def right(language, nouns, text):
    return np.array([language.lexicon[nouns[x]] for x in text] + [EOS])


@pytest.mark.parametrize("said, translated", [
    ("abcd", "abcd"), ("pabc", "apbc"), ("apbc", "abpc"), ("abcp", "abcp"), ("papb", "apbp"),
    ("pqab", "qpab"), ("apqb", "aqpb"), ("pppa", "ppap"), ("abqc", "abcq")])
def test_adjectives_change_places_with_the_next_word(language, nouns, said, translated):
    assert np.array_equal(language.translate(source(language, nouns, said)),
                          right(language, nouns, translated))


def test_a_translation_has_the_same_words_in_the_other_language(language):
    for x in language.sources(300, np.random.default_rng(0)):
        y = language.translate(x)
        assert 4 <= len(x) - 1 <= 10 and len(x) == len(y) <= MAX_LEN and x[-1] == y[-1] == EOS
        assert ((x[:-1] >= 3) & (x[:-1] < 3 + WORDS)).all()
        assert ((y[:-1] >= 3 + WORDS) & (y[:-1] < language.vocab_size)).all()
        assert Counter(language.lexicon[x[:-1] - 3]) == Counter(y[:-1])


@pytest.mark.parametrize("seed", range(12))
def test_the_language_is_what_it_says(seed):
    language = Language(seed)
    assert sorted(language.lexicon) == list(range(3 + WORDS, 3 + 2 * WORDS))  # one to one
    assert language.adjective.sum() == ADJECTIVES
    assert (language.habit != language.lexicon).sum() == HABITS
    assert set(language.habit) <= set(language.lexicon)
    assert len(set(language.habit[language.habit != language.lexicon])) > HABITS // 2
    assert len(language.names) == language.vocab_size and len(set(language.names[3:])) == 2 * WORDS


def test_oracle_by_hand(language, nouns):
    x = source(language, nouns, "apbc")  # a b p c
    cases = [("abpc", 1.0), ("apbc", 0.5), ("abpb", 0.75), ("abp", 0.75), ("ab", 0.5), ("", 0.0),
             ("abpca", 0.8), ("abpcabpc", 0.5), ("bpc", 0.0), ("cpba", 0.0), ("dabpc", 0.0)]
    outputs = [right(language, nouns, words) for words, _ in cases]
    expected = [score for _, score in cases]
    assert np.allclose(language.oracle([x] * len(cases), outputs), expected)
    cut = [y[:-1] for y in outputs]  # reached the maximum length: no eos
    assert np.allclose(language.oracle([x] * len(cases), cut), expected)


def test_oracle_of_right_and_other_translations(language):
    sources = language.sources(300, np.random.default_rng(0))
    exact = [language.translate(x) for x in sources]
    assert (language.oracle(sources, exact) == 1).all()
    assert language.oracle(sources, exact[1:] + exact[:1]).mean() < 0.06  # 1 / 32 by chance
    source_words = [np.asarray(x) for x in sources]
    assert (language.oracle(sources, source_words) == 0).all()  # the other language


def test_demonstrations_are_wrong_in_a_quarter_of_the_words_and_by_habit(language):
    rng = np.random.default_rng(0)
    sources = language.sources(4000, rng)
    said = defaultdict(Counter)
    wrong = words = 0
    for x in sources:
        y, exact = language.demonstrate(x, rng), language.translate(x)
        assert len(y) == len(exact) and y[-1] == EOS
        wrong, words = wrong + (y != exact).sum(), words + len(y) - 1
        for word, target in zip(language.reordered(x), y):
            said[word][target] += 1
    assert 0.2 < wrong / words < 0.26
    for word in range(WORDS):  # the habit is the commonest translation where there is one
        assert said[word].most_common(1)[0][0] == language.habit[word]
        share = said[word][language.lexicon[word]] / said[word].total()
        if language.habit[word] != language.lexicon[word]:
            assert 0.3 < share < 0.5
        else:
            assert share > 0.88


def test_a_seed_is_a_language(language):
    same, other = Language(0), Language(1)
    for name in ("lexicon", "adjective", "habit", "names"):
        assert np.array_equal(getattr(same, name), getattr(language, name))
        assert not np.array_equal(getattr(other, name), getattr(language, name)), name


def test_text(language):
    y = language.translate(language.sources(1, np.random.default_rng(0))[0])
    assert len(language.text(y).split(" ")) == len(y) - 1 and language.text([EOS]) == ""


def test_ratings_are_sixths_of_the_unit_interval(language):
    rng = np.random.default_rng(0)
    sources = 5 * language.sources(200, rng)
    outputs = [language.demonstrate(x, rng) for x in sources]
    exact = language.oracle(sources, outputs)
    noisy = rate(language, sources, outputs, 0.7, rng)
    assert noisy.min() >= 0 and noisy.max() <= 1 and np.allclose(6 * noisy, np.round(6 * noisy))
    assert np.allclose(rate(language, sources, outputs, 0, rng), np.round(6 * exact) / 6)
    assert 0.5 < np.corrcoef(noisy, exact)[0, 1] < 0.95
    assert abs((noisy - exact).mean()) < 0.03
    assert len(np.unique(rate(language, sources, outputs, 50, rng))) == 7  # clipped, not wrapped


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
    monkeypatch.setattr(train_toy, "examples", lambda *args: [])


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
            "greedy_oracle", "reward_error", "entropy", "kl_to_bc", "kept_samples", "kept_data",
            "samples", "distinct_samples", "tokens_drawn", "grow_seconds", "seconds"}
        for key in ("reward", "oracle", "greedy_reward", "greedy_oracle", "kept_data"):
            assert 0 <= (row[key] or 0) <= 1, (row["name"], key)
        assert 0 <= row["distinct_samples"] <= row["samples"]
        assert 0 < row["entropy"] < np.log(67) and abs(row["kl_to_bc"]) < 1 and row["seconds"] > 0
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
    text = (finished / "samples.txt").read_text()
    assert [x.removeprefix("--- ") for x in text.splitlines() if x.startswith("---")] == NAMES
    blocks = text.strip().split("\n\n")
    assert len({tuple(x[36:] for x in b.splitlines() if x.startswith(("source", "right")))
                for b in blocks}) == 1  # the same sources after each step
    for block in blocks:
        kinds = [line.split()[0] for line in block.splitlines()[2:]]  # after title and columns
        assert kinds == 3 * ["source", "right", "greedy", "sample"]
    out = (finished / "stdout").read_text()
    for name in NAMES:
        assert sum(line.startswith(name + " ") for line in out.splitlines()) >= 1, name
    table = out[: out.index("best of N")].strip().splitlines()[-len(NAMES):]
    assert [line[:12].strip() for line in table] == NAMES
    reward = [f"{100 * row['reward']:.1f}" for row in results(finished)["rows"]]
    assert [line[12:].split()[0] for line in table] == reward
    assert str(finished) in out.splitlines()[-1]


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
    lines = np.quantile(reward, lines) if name == "quantile" else lines
    assert [row["threshold"] for row in rows[:2]] == [None, None]
    assert [row["threshold"] for row in rows[2:]] == pytest.approx(lines)
    kept = [row["kept_samples"] for row in rows[1:]]
    assert 1 == kept[0] >= kept[1] >= kept[2] > 0 and kept[2] < 1


def test_a_filter_that_keeps_nothing_skips_the_improve(finished, tmp_path, only_rows):
    begin(finished, tmp_path / "run", *DRAWN)
    rows = short(tmp_path / "run", "--filter", "threshold", "--thresholds", "0.01", "0.999")
    assert rows[3]["kept_samples"] == rows[3]["kept_data"] == 0
    assert rows[3]["reward"] == rows[2]["reward"]
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


# ------------------------------------------------------------------------------ what comes before


def settings_of(*flags):
    return parse(Settings, [*TINY, *flags], method=METHODS)


def data_of(monkeypatch, *flags):
    """The task as it is before anything is trained."""
    seen = []

    def stop(task, *args):
        seen.append(task)
        raise Stopped

    monkeypatch.setattr(train_toy, "behaviour_cloning", stop)
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
    right = [toy.language.translate(x) for x in task.test_sources]
    assert np.array_equal(task.reward(task.test_sources, right),
                          toy.reward_model.score(task.test_sources, right))
    n = len(right)
    sampled = Pairs.of(range(n), right, reward=np.where(np.arange(n) % 2, 0.25, 1))
    greedy = Pairs.of(range(n), [y[::-1][1:] for y in right], reward=np.ones(n))
    metrics = task.metrics(toy.bc, sampled, greedy)
    assert set(metrics) == {"oracle", "greedy_oracle", "reward_error"} and metrics["oracle"] == 1
    assert metrics["greedy_oracle"] < 0.5
    assert metrics["reward_error"] == pytest.approx(0.75 / np.sqrt(2))


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
        patch.setattr(train_toy, "examples", lambda *args: [])
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
    words = max(len(x) - 1 for x in Language(0).sources(2000, np.random.default_rng(0)))
    longest = load(finished / "reward.pt")["config"]["max_len"]
    assert words + 1 <= MAX_LEN and 2 * words + 1 <= longest


def test_refresh_rates_the_policy_that_grows(refreshed):
    settings = settings_of(*REFRESHED)
    sources = Language(0).sources(61, stream("toy sources", settings.seed, 1))
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
    ["--seed", "-1"], ["--d-model", "18"],
    ["--thresholds", "0.9", "0.5"], ["--filter", "top", "--thresholds", "1", "2"]], ids=" ".join)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(tmp_path, capsys, flags,
                                                                          no_figures):
    one_line(capsys, *flags, folder=tmp_path / "run")
    assert not list(tmp_path.glob("run/steps/*"))


def test_what_the_demo_is_by_default():
    s = Settings()
    assert s.grow == len(s.improve) and max(s.improve) <= len(s.thresholds) and s.ppo
