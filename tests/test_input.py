"""Bad input ends with one line that names it, and with nothing lost; odd input simply works."""

import gzip
import io
import json
import os
import pickle
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import train_mt
import train_toy
from infra import storage
from infra.cli import choose_device, run_cli
from infra.errors import UserError
from infra.own_reward import BATCH, own_reward
from infra.pairs import Pairs, check_rewards
from infra.relatives import METHODS
from infra.run import Run
from infra.settings import parse, plain, plain_type
from infra.storage import EventLog
from infra.text import Tokenizer, read_lines, read_parallel, read_ratings
from infra.translate import load_model
from model import Config, Transformer
from reward import RewardModel
from test_train_mt import (copied, corpus, events, main, no_figures, one_line,  # noqa: F401
                           no_modules_from_here, results, translated, write_corpus)
from test_trust import died, forked

BRIEF = ["--bc-updates", "1", "--bc-evaluate-every", "1"]
QUICK = [*BRIEF, "--no-ppo", "--improve", "1", "--best-of", "1", "--updates", "1"]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, folder, call):
    """The one line on standard error of a call that leaves every file of the folder as it was."""
    before = snapshot(folder)
    error = one_line(capsys, call)
    assert snapshot(folder).items() >= before.items()
    return error


def save_model(path, model):
    config = getattr(model, "config", None) or model.body.config
    storage.save(path, {"config": vars(config), "weights": model.state_dict()})


@pytest.fixture(scope="module")
def tokenizer(corpus):
    train = read_parallel(corpus, "train", "xx", "yy")
    return Tokenizer.train(train.sources + train.targets, 330)


@pytest.fixture(scope="module")
def policy(tokenizer):
    """What test_train_mt.TINY begins with."""
    torch.manual_seed(0)
    return Transformer(Config(tokenizer.vocab_size, 16, 2, 1, 1, 32, 0.2, 24))


@pytest.fixture
def begun(tmp_path, tokenizer, policy):
    """A folder in which BC is done."""
    (tmp_path / "run/steps").mkdir(parents=True)
    tokenizer.save(tmp_path / "run/tokenizer.json")
    storage.save(tmp_path / "run/steps/bc.pt", {"policy": policy.state_dict()})
    return tmp_path / "run"


@pytest.fixture
def finished(tmp_path, tokenizer, policy):
    """What translate needs of a run."""
    folder = tmp_path / "finished"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    save_model(folder / "policy.pt", policy)
    save_model(folder / "reward.pt", RewardModel.from_policy(policy))
    (folder / "config.json").write_text('{"settings": {"reward": ""}}')
    return folder


# -------------------------------------------------------------------------------- parallel files


def a_folder(path):
    path.unlink()
    path.mkdir()
    return "directory"


def no_permission(path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.chmod(0)
    return "Permission denied"


def cut_off(path):
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed[: len(packed) // 2])
    return ".gz: damaged or not a gzip file"


def not_packed(path):
    path.rename(path.with_name(path.name + ".gz"))
    return ".gz: damaged or not a gzip file"


def other_encoding(path):
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    return "line 1: not valid UTF-8"


def last_line_not_utf8(path):
    content = path.read_bytes()
    path.write_bytes(content + b"\xed\xa0\x80\n")  # a lone surrogate
    return f"line {content.count(10) + 1}: not valid UTF-8"


def only_a_mark(path):
    path.write_bytes(b"\xef\xbb\xbf")
    return "empty"


def one_line_less(path):
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    return "lines but"


@pytest.mark.parametrize("name", ["train.xx", "val.yy"])
@pytest.mark.parametrize("spoil", [a_folder, no_permission, cut_off, not_packed, other_encoding,
                                   last_line_not_utf8, only_a_mark, one_line_less])
def test_a_spoilt_file_is_named_and_the_run_stays_as_it_was(corpus, begun, tmp_path, capsys,
                                                            spoil, name):
    folder = copied(corpus, tmp_path / "spoilt")
    said = spoil(folder / name)
    error = refused(capsys, begun, lambda: main(begun, folder))
    assert name in error and said in error


@pytest.mark.parametrize("data", ["a file", "absent", "a\nb"])
def test_data_that_is_no_folder(begun, tmp_path, capsys, data):
    (tmp_path / "a file").write_text("text")
    error = refused(capsys, begun, lambda: main(begun, tmp_path / data))
    assert data.split()[0] in error


ODD = {"NUL": "a\0b", "U+2028": "a\u2028b", "U+2029": "a\u2029b", "U+0085": "a\x85b",
       "vertical tab": "a\x0bb", "form feed": "a\x0cb", "return": "a\rb",
       "separators": "\x1c\x1d\x1e", "right to left": "\u202eשלום مرحبا\u202c",
       "emoji": "👩‍👩‍👧🏽 🇩🇪", "combining": "e\u0301\u0308 \u0301", "mark inside": "a\ufeffb",
       "unassigned": "\uffff\U0010ffff",
       "MB": "ta ki " * 170_000, "MB without a space": "ä" * 500_000,
       "MB of marks": "!?" * 500_000}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_text_moves_no_line(tmp_path, tokenizer, text):
    """And comes back from the tokenizer as it was."""
    sources = [f"0 {text}", f"{text} 1", "2", f"3{text}3"]
    targets = [f"{k}" for k in range(4)]
    for ending, lines, newline in (("xx", sources, "\n"), ("yy", targets, "\r\n")):
        content = "\ufeff" + newline.join(lines) + newline
        (tmp_path / f"train.{ending}").write_bytes(content.encode())
    pairs = read_parallel(tmp_path, "train", "xx", "yy")
    assert (pairs.sources, pairs.targets) == (sources, targets)
    assert all(tokenizer.decode(tokenizer.encode(x)) == x for x in sources)


def test_a_corpus_of_odd_text_trains(corpus, tmp_path, capsys):
    """What is too long is dropped, and said; nothing else is."""
    folder = copied(corpus, tmp_path / "odd")
    odd = [x for name, x in ODD.items() if name == "MB" or len(x) < 99]  # MBs of one word: slow
    for path in folder.iterdir():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        lines[: len(odd)] = odd if path.suffix == ".xx" else [x[:99] for x in odd]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    run_cli(lambda: main(tmp_path / "run", folder, *BRIEF, "--max-len", "48", "--stop-after", "bc"))
    assert "238 training pairs" in capsys.readouterr().out
    assert (tmp_path / "run/steps/bc.pt").exists()
    said = {e["text"] for e in events(tmp_path / "run") if e["event"] == "warning"}
    assert {text for text in said if not text.startswith("BC is not better")} == {
        *(f"{split}: 1 pairs with a blank side are dropped" for split in ("train", "val", "test")),
        *(f"{split}: 1 sources cut at 48 tokens" for split in ("val", "test")),
        "train: 1 pairs of 48 tokens or more dropped"}


# --------------------------------------------------------------------------------------- ratings

HEADER = "source\ttarget\tscore"
GOOD = ["ta ki\tOne two\t1", "rul\tDogs\t2"]


@pytest.mark.parametrize("lines, said", [
    ([HEADER.replace("score", "value"), *GOOD], "line 1: 0 columns named score"),
    ([HEADER.replace("\t", ","), *GOOD], "line 1: 0 columns named source"),
    ([HEADER, *GOOD, "ki\ttwo\tvery good"], "line 4: the score 'very good'"),
    ([HEADER, *GOOD, "ki\ttwo\t1,5"], "line 4: the score '1,5'"),
    ([HEADER, *GOOD, "ki\ttwo\tNaN"], "line 4: the score 'NaN'"),
    ([HEADER, *GOOD, "ki\ttwo\t1e999"], "line 4: the score '1e999'"),
    ([HEADER, *GOOD, "ki\t\t1"], "line 4: the target is blank"),
    ([HEADER, *GOOD, " \ttwo\t1"], "line 4: the source is blank"),
    ([HEADER, *GOOD, "ki\ttwo"], "line 4: 2 columns"),
    ([HEADER, GOOD[0], GOOD[0]], "lines 2 to 3: all scores"),
    ([HEADER, GOOD[0], "ta ki\tDogs\t3"], "all ratings are of one source"),
    ([HEADER, "ki " * 50 + "\ttwo\t1", "ta\t" + "two " * 50 + "\t2"], "--max-len"),
    ([HEADER], "no ratings"), ([], "empty"), (None, "no such file")])
def test_bad_ratings_are_refused_before_anything_is_trained(corpus, tmp_path, capsys,
                                                            lines, said):
    path = tmp_path / "ratings.tsv"
    if lines is not None:
        path.write_text("".join(line + "\n" for line in lines))
    run = tmp_path / "run"
    error = one_line(capsys, lambda: main(run, corpus, "--ratings", str(path)))
    assert "ratings.tsv" in error and said in error
    assert not list(run.glob("steps/*"))


@pytest.mark.parametrize("rows", [
    ["ta\tOne\t1", "ki\ttwo\t2", "rul\tDogs\t3"],
    ["ta\tOne\t1", "ta\ttwo\t1", "ki\ttwo\t2", "ki\tcats\t2", "rul\tDogs\t3"]])
def test_preferences_need_two_outputs_of_different_score(corpus, tmp_path, capsys, rows):
    (tmp_path / "ratings.tsv").write_text("\n".join([HEADER, *rows]))
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--preferences", "--ratings",
                                          str(tmp_path / "ratings.tsv")))
    assert "ratings.tsv: --preferences needs sources with two outputs of different score" in error
    assert not list(tmp_path.glob("run/steps/*"))


def test_three_files_of_ratings_are_refused(corpus, tmp_path, capsys):
    (tmp_path / "ratings.tsv").write_text("\n".join([HEADER, *GOOD]))
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--ratings",
                                          *3 * [str(tmp_path / "ratings.tsv")]))
    assert "--ratings takes one file, or two" in error
    assert not list(tmp_path.glob("run/steps/*"))


def test_ratings_of_two_sources_are_enough(corpus, begun, capsys):
    path = begun.parent / "ratings.tsv"
    path.write_text("\n".join([HEADER, *GOOD]))
    run_cli(lambda: main(begun, corpus, "--ratings", str(path), "--stop-after", "reward"))
    assert (begun / "steps/reward.pt").exists()
    assert "NaN" not in (begun / "metrics.jsonl").read_text()


# ----------------------------------------------------------------------- other data than at first


@pytest.fixture(scope="module")
def stopped(corpus, tmp_path_factory):
    """A run that was stopped after BC, in one folder with its data and its ratings."""
    place = tmp_path_factory.mktemp("stopped")
    copied(corpus, place / "data")
    (place / "ratings.tsv").write_text("\n".join([HEADER, *GOOD]))
    run_cli(lambda: main(place / "run", place / "data", *BRIEF, "--stop-after", "bc",
                         "--ratings", str(place / "ratings.tsv")))
    return place


def swapped(text):
    """Lines 2 and 3 of the file have changed places."""
    one, two, three, *others = text.split("\n")
    return "\n".join([one, three, two, *others])


@pytest.mark.parametrize("files, change, said", [
    (["data/train.xx", "data/train.yy"], swapped, "train is not the same"),
    (["data/train.yy"], lambda text: text.replace("sleep", "run", 1), "train is not the same"),
    (["data/val.xx"], swapped, "val is not the same"),
    (["data/test.yy", "data/val.yy"], swapped, "val, test are not the same"),
    (["ratings.tsv"], swapped, "ratings is not the same"),
    (["ratings.tsv"], lambda text: text.replace("2", "0"), "ratings is not the same"),
    (["ratings.tsv"], lambda text: text.replace("ta ki", "ki"), "ratings is not the same")])
def test_edited_data_are_refused_by_name(stopped, tmp_path, capsys, files, change, said):
    place = shutil.copytree(stopped, tmp_path / "place")
    for name in files:
        text = (place / name).read_text(encoding="utf-8")
        (place / name).write_text(change(text), encoding="utf-8")
        assert change(text) != text
    call = lambda *flags: main(place / "run", place / "data", *BRIEF, "--ratings",
                               str(place / "ratings.tsv"), *flags)
    assert said in refused(capsys, place, lambda: call("--resume"))
    if "ratings" not in said:  # which --show does not need
        assert said in refused(capsys, place, lambda: call("--show", "1"))


def test_the_same_data_elsewhere_are_gone_on_with(stopped, tmp_path, capsys):
    place = shutil.copytree(stopped, tmp_path / "place")
    for path in (place / "data").iterdir():  # packed, too
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (place / "ratings.tsv").rename(place / "others.tsv")
    call = lambda *flags: main(place / "run", place / "data", *BRIEF, *flags)
    run_cli(lambda: call("--resume", "--ratings", str(place / "others.tsv"), "--beam", "3",
                         "--best-of", "2", "--stop-after", "reward"))
    assert (place / "run/steps/reward.pt").exists()
    assert "has no scored Grow" in refused(capsys, place, lambda: call("--show", "1"))


def test_show_takes_the_data_from_where_it_lies_now(stopped, tmp_path, capsys):
    place = shutil.copytree(stopped, tmp_path / "place")
    config = json.loads((place / "run/config.json").read_text())
    config["settings"]["data"] = "nowhere"
    (place / "run/config.json").write_text(json.dumps(config))
    show = ["--out", str(place / "run"), "--show", "1"]
    assert "nowhere" in refused(capsys, place, lambda: train_mt.main(show))
    error = refused(capsys, place, lambda: train_mt.main([*show, "--data", str(place / "data")]))
    assert "has no scored Grow" in error


# ---------------------------------------------------------------------------------- small corpora


@pytest.mark.parametrize("pairs", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_corpus_smaller_than_a_batch(tmp_path, capsys, no_figures, pairs):
    """Of a vocabulary that it cannot fill, and with every step there is."""
    folder = write_corpus(tmp_path / "corpus", train=pairs, held_out=pairs)
    run_cli(lambda: main(tmp_path / "run", folder, *BRIEF, "--vocab-size", "4000"))
    assert [row["name"] for row in results(tmp_path / "run")["rows"]] == [
        "BC", "ReST", "ReST", "ReST", "PPO"]
    said = " ".join(e["text"] for e in events(tmp_path / "run") if e["event"] == "warning")
    assert "entries of the 4000 asked for" in said
    assert "NaN" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_the_smallest_demo(tmp_path, capsys, no_figures):
    flags = ("--demonstrations --rated-sources --bc-updates --reward-updates --updates --samples "
             "--test-sources --grow --improve --best-of --batch-tokens --sample-batch-size").split()
    run_cli(lambda: train_toy.main(["--out", str(tmp_path / "run"), "--device", "cpu",
                                    "--d-model", "4", "--eval-sources", "2",
                                    *(x for flag in flags for x in (flag, "1"))]))
    assert len(results(tmp_path / "run")["rows"]) == 4
    assert "NaN" not in (tmp_path / "run/metrics.jsonl").read_text()


# ---------------------------------------------------------------------------- a reward of one's own

REWARDS = """
import numpy, torch
def constant(sources, outputs):
    return [0.5] * len(outputs)
def infinite(sources, outputs):
    return numpy.full(len(outputs), numpy.inf)
def too_large(sources, outputs):
    return [1e300] * len(outputs)
def below(sources, outputs):
    return [-0.01] * len(outputs)
def column(sources, outputs):
    return numpy.zeros((len(outputs), 1))
def ragged(sources, outputs):
    return [[0.5]] + [0.5] * (len(outputs) - 1)
def nothing(sources, outputs):
    pass
def nones(sources, outputs):
    return [None] * len(outputs)
def strings(sources, outputs):
    return ["good"] * len(outputs)
def record(sources, outputs):
    return {y: 0.5 for y in outputs}
def lazy(sources, outputs):
    return (0.5 for _ in outputs)
def with_gradient(sources, outputs):
    return torch.full((len(outputs),), 0.5, requires_grad=True)
def one_argument(sources):
    return [0.5]
def raises(sources, outputs):
    raise ZeroDivisionError("the first\\nand the second line")
def raises_without_a_word(sources, outputs):
    raise AssertionError
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with modules of the user's."""
    (tmp_path / "own.py").write_text(REWARDS)
    (tmp_path / "typo.py").write_text("def f(sources, outputs)\n    return [0.5]\n")
    (tmp_path / "at_import.py").write_text("open('nowhere')\n")
    (tmp_path / "needs.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("name, said", [
    ("infinite", "inf"), ("too_large", "inf"), ("below", "output 0 is -0.0"), ("column", "shape"),
    ("ragged", "array of numbers"), ("nothing", "shape ()"), ("nones", "nan"),
    ("strings", "could not convert string"), ("record", "array of numbers"),
    ("lazy", "array of numbers"), ("with_gradient", "requires grad"),
    ("one_argument", "TypeError: one_argument() takes 1"),
    ("raises", "ZeroDivisionError: the first and the second line"),
    ("raises_without_a_word", "AssertionError")])
def test_a_reward_that_fails_is_one_line_before_anything_is_trained(corpus, tmp_path, own, capsys,
                                                                    name, said):
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--reward", f"own:{name}"))
    assert f"--reward own:{name}" in error and said in error
    assert not list(tmp_path.glob("run/steps/*"))


@pytest.mark.parametrize("name, said", [
    ("typo:f", "typo.py, line 1"), ("at_import:f", "FileNotFoundError"),
    ("needs:f", "a_package_that_is_not_there"), ("own.absent:f", "own"), ("own:f.g", "f.g"),
    (":", "module:function"), ("own.py", "FILE.py:function"), ("..:f", "relative import"),
    ("absent:f", "no module absent in {here}"), ("lib/absent.py:f", "looked for in {here}"),
    ("lib:f", "lib"), ("lib.py:f", "no such file"), ("typo.py:f", "line 1"),
    ("own.py:short", "own.py has no function short; it has constant, infinite"),
    ("reward:length", "write ./reward.py:function"), ("infra.text:f", "write ./infra.py:function"),
    ("rest:f", "rest is a part of this program")])
def test_a_module_that_cannot_be_had_is_refused_at_once(corpus, tmp_path, own, capsys,
                                                        name, said):
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--reward", name))
    assert f"--reward {name}" in error and said.format(here=Path.cwd()) in error
    assert not list(tmp_path.glob("run/steps/*"))


class Lines:
    """Texts whose ids are their lines."""

    lines = staticmethod(list)


FILE = """
from __future__ import annotations
import dataclasses
import beside
@dataclasses.dataclass
class Answer:
    sizes: list[int]
answer = Answer([])
def length(sources, outputs):
    answer.sizes.append((len(sources), len(outputs)))
    return [beside.SHARE * len(y) for y in outputs]
"""


@pytest.mark.parametrize("name", ["lib/my reward.v2.py:length", "./reward.py:length",
                                  "{here}/reward.py:length", "lib.module:length"])
def test_a_function_of_a_file_or_a_module_in_batches(tmp_path, own, name):
    """Of whatever name and place, with what lies beside it, and as a whole number of batches."""
    (tmp_path / "lib").mkdir()
    for path in ("lib/my reward.v2.py", "reward.py", "lib/module.py"):
        (tmp_path / path).write_text(FILE)
    for path in ("beside.py", "lib/beside.py"):
        (tmp_path / path).write_text("SHARE = 0.01\n")
    n = 2 * BATCH + 5
    outputs = ["a" * (k % 100) for k in range(n)]
    reward = own_reward(name.format(here=tmp_path), Lines())
    np.testing.assert_allclose(reward(n * ["x"], outputs), [len(y) / 100 for y in outputs], 1e-6)
    made = next(module for key, module in sys.modules.items()
                if key.startswith(("own_reward_", "lib.")) and hasattr(module, "answer"))
    assert made.answer.sizes == [(BATCH, BATCH), (BATCH, BATCH), (5, 5)]
    assert sys.modules["reward"].RewardModel is RewardModel  # the program's stays what it was


def test_an_edited_reward_is_not_gone_on_with(corpus, begun, own, capsys):
    flags = [*BRIEF, "--reward", "own.py:constant"]
    run_cli(lambda: main(begun, corpus, *flags, "--stop-after", "evaluate-bc"))
    Path("own.py").write_text(REWARDS.replace("0.5", "0.25", 1))
    error = one_line(capsys, lambda: main(begun, corpus, *flags, "--resume"))
    assert "reward is not the same" in error


def test_a_constant_reward_works(corpus, begun, own, no_figures, capsys):
    run_cli(lambda: main(begun, corpus, "--reward", "own:constant"))
    rows = results(begun)["rows"]
    assert len(rows) == 5 and all(row["reward"] == 0.5 for row in rows)
    assert [row["kept_samples"] for row in rows[2:4]] == [0, 0]


# -------------------------------------------------------------------------------------- settings

@pytest.fixture
def run_there(tmp_path):
    (tmp_path / "run/steps").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "run/steps/bc.pt").write_bytes(b"hours of work")
    return tmp_path / "run"


@pytest.mark.parametrize("program", [train_toy, train_mt])
def test_no_number_is_without_bounds(program):
    bad = {int: (10**30, -1, 1.5, "x"), float: (np.nan, np.inf, -np.inf, "x"), str: (1, None),
           bool: ("x", 1)}
    for field in fields(program.Settings):
        kind, many = plain_type(field.type)
        for value in bad[kind]:
            with pytest.raises(UserError, match="--" + field.name.replace("_", "-")):
                program.Settings(**{field.name: (value,) if many else value})


@pytest.mark.parametrize("flags, said", [
    ("--thresholds 0.5 0.9 0.9", "must rise"), ("--filter top --thresholds 1 2", "must fall"),
    ("--filter top --thresholds inf 1", "--thresholds inf"),
    ("--filter quantile --thresholds 0.5 1.01", "between"),
    ("--temperature 0.5 inf", "--temperature inf"), ("--samples 0", "at least 1"),
    ("--seed " + "9" * 5000, "--seed"), ("--seed 18446744073709551616", "--seed"),
    ("--seed x", "--seed"), ("--seed -1", "--seed -1"), ("--lr nan", "--lr nan"),
    ("--lr 1e999", "--lr inf"), ("--lr=-inf", "--lr -inf"), ("--top-k 1e3", "--top-k"),
    ("--sample-batch-size 999999999999", "--sample-batch-size 999999999999"),
    ("--dropout 0.91", "--dropout 0.91"),
    ("--improve", "--improve"), ("--thresholds x", "--thresholds"),
    ("--device nonsense", "--device nonsense"), ("--device cuda:99", "--device cuda:99"),
    ("--device meta", "--device meta"), ("--device cuda:x", "--device cuda:x"),
    ("--device CPU", "--device CPU"), ("--nonsense 1", "--nonsense"), ("stray", "stray"),
    ("--loss nonsense", "--loss"), ("--method nonsense", "--method"),
    ("--grow 2 --improve 0", "Grow 2 has no Improve"), ("--improve 1 0", "Grow 2 has no Improve"),
    ("--no-unfiltered --improve 0 1", "Grow 1 has no Improve, nor I = 0"),
    ("--grow 999999999 --improve 3 0", "Grow 2 has no Improve"),
    ("--stop-after grow1", "no step is called so; there are bc, "),
    ("--stop-after improve-1-9", "improve-1-4, grow-2")])
@pytest.mark.parametrize("program", [train_toy, train_mt])
def test_settings_that_cannot_be(run_there, capsys, program, flags, said):
    call = lambda: program.main(["--out", str(run_there), *flags.split()])
    assert said in refused(capsys, run_there, call)


def test_a_beam_wider_than_the_vocabulary_is_refused_before_anything_is_trained(corpus, tmp_path,
                                                                                 capsys):
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--beam", "328"))
    assert "--beam 328 is wider than the vocabulary" in error
    assert not list(tmp_path.glob("run/steps/*"))


def test_a_device_that_is_not_there_makes_no_folder(tmp_path, capsys):
    one_line(capsys, lambda: train_toy.main(["--out", str(tmp_path / "run"), "--device", "xpu"]))
    assert list(tmp_path.iterdir()) == []
    assert choose_device("").type in ("cpu", "cuda")


def test_an_empty_out_is_no_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse(train_toy.Settings, ["--out", ""], method=METHODS)
    assert Run(settings, "toy").folder == Path("runs/toy-1")


@pytest.mark.parametrize("out", ["a" * 300, "file/run", "file"])
def test_an_out_that_cannot_be_made(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text")
    error = refused(capsys, tmp_path, lambda: train_toy.main(["--out", out, "--device", "cpu"]))
    assert out in error and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_no_memory_holds(tmp_path):
    """In a process that may have 64 GB of addresses, and asks for more."""
    resource = pytest.importorskip("resource")

    def main():
        resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
        run_cli(lambda: train_toy.main(["--out", str(tmp_path / "run"), "--device", "cpu",
                                        "--d-model", "2000000000"]))

    assert died(forked(main, tmp_path / "errors")) == 2
    error = (tmp_path / "errors").read_text()
    assert error.startswith("error: not enough memory") and error.count("\n") == 1


# ------------------------------------------------------------------------------------- translate


class Code:
    """Unpickled carelessly, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def garbage(folder):
    (folder / "policy.pt").write_bytes(np.random.default_rng(0).bytes(5000))


def empty(folder):
    (folder / "policy.pt").write_bytes(b"")


def code(folder):
    (folder / "policy.pt").write_bytes(pickle.dumps(Code(folder / "made")))


def code_in_torch(folder):
    content = {"format": storage.FORMAT, "content": Code(folder / "made")}
    torch.save(content, folder / "policy.pt")


def another_kind(folder):
    (folder / "reward.pt").rename(folder / "policy.pt")


def bare_weights(folder):
    storage.save(folder / "policy.pt", storage.load(folder / "policy.pt")["weights"])


def other_size(folder):
    content = storage.load(folder / "policy.pt")
    storage.save(folder / "policy.pt", {**content, "config": {**content["config"], "d_ff": 64}})


def no_heads(folder):
    content = storage.load(folder / "policy.pt")
    storage.save(folder / "policy.pt", {**content, "config": {**content["config"], "n_heads": 0}})


def other_format(folder):
    torch.save({"format": torch.zeros(3), "content": {}}, folder / "policy.pt")


def folder_instead(folder):
    (folder / "policy.pt").unlink()
    (folder / "policy.pt").mkdir()


def nothing(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("spoil", [garbage, empty, code, code_in_torch, another_kind, bare_weights,
                                   other_size, no_heads, other_format, folder_instead, nothing])
def test_a_policy_that_is_none_is_refused_by_name(finished, capsys, spoil):
    spoil(finished)
    error = refused(capsys, finished, lambda: train_mt.main(["translate", "--run", str(finished)]))
    assert "policy.pt" in error and not (finished / "made").exists()


def test_files_of_different_runs(finished, tokenizer, policy, capsys):
    other = Transformer(Config(tokenizer.vocab_size, 16, 2, 1, 1, 32, 0.2, 12))
    save_model(finished / "reward.pt", RewardModel.from_policy(other))
    call = lambda *flags: train_mt.main(["translate", "--run", str(finished), *flags])
    error = refused(capsys, finished, lambda: call("--best-of", "2"))
    assert "reward.pt" in error
    Tokenizer.train(["aaa"], 300).save(finished / "tokenizer.json")
    assert "tokenizer.json" in refused(capsys, finished, call)


@pytest.mark.parametrize("content", [None, "", "[]", '{"settings": 1}'])
def test_a_run_without_its_settings(finished, capsys, content):
    """They say which reward chooses the best of N."""
    (finished / "config.json").unlink()
    if content is not None:
        (finished / "config.json").write_text(content)
    error = refused(capsys, finished, lambda: train_mt.main(
        ["translate", "--run", str(finished), "--best-of", "2"]))
    assert "config.json" in error


@pytest.mark.parametrize("flags", ["--beam 0", "--beam -1", "--beam 9999", "--beam x",
                                   "--best-of -1", "--best-of 1e3", "--seed -1", "--seed x",
                                   "--device nonsense", "--nonsense"])
def test_flags_of_translate(finished, capsys, flags):
    error = refused(capsys, finished, lambda: train_mt.main(
        ["translate", "--run", str(finished), *flags.split()]))
    assert flags.split()[0] in error


@pytest.mark.parametrize("name", ODD)
def test_translate_takes_odd_text(finished, monkeypatch, capfdbinary, name):
    out, err = translated(monkeypatch, capfdbinary, finished, f"ta\n{ODD[name]}\n\n".encode())
    assert len(out) == 3 and out[2] == ""
    assert err in ([], ["warning: 1 lines were cut at 24 tokens"])


@pytest.mark.parametrize("text, line", [
    (b"\xff", 1), (b"\n\n\xc3", 3), (b"a\x0b\n" * 9 + b"\xed\xa0\x80", 10),
    ("ä\n".encode("utf-16"), 1)])
def test_what_is_not_utf8_names_its_line(finished, monkeypatch, capsys, text, line):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    call = lambda: train_mt.main(["translate", "--run", str(finished)])
    error = refused(capsys, finished, call)
    assert f"standard input, line {line}: not valid UTF-8" in error


# ------------------------------------------------------------------------------------------ fuzz

CASES = pytest.mark.parametrize("cases", [30, pytest.param(1000, marks=pytest.mark.slow)])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x,
                                                                        max_size=3), max_leaves=8)


def tried(cases, strategy, check):
    """check(case) for so many of them; what is told of a failure is the smallest that fails."""
    hypothesis_settings(max_examples=cases, deadline=None, database=None, derandomize=cases < 100,
                        suppress_health_check=list(HealthCheck))(given(strategy)(check))()


def unless_refused(function, *args):
    """Its value; or None after a UserError, of which `run_cli` makes one line."""
    try:
        return function(*args)
    except UserError as error:
        assert str(error).strip()


@st.composite
def damaged(draw, whole):
    """A file's bytes, a part of which is gone or other bytes; or any bytes at all."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    a, b = sorted(draw(st.tuples(*2 * [st.integers(0, len(whole))])))
    b = draw(st.sampled_from([a, b, min(a + 1, len(whole))]))
    return whole[:a] + draw(st.binary(max_size=20)) + whole[b:]


@st.composite
def altered(draw, record):
    """A JSON file in which one value is another, or missing, or the file damaged."""
    record, name = dict(record), draw(st.sampled_from(list(record)))
    record[name] = draw(JSON)
    if draw(st.booleans()):
        del record[name]
    content = json.dumps(draw(st.just(record) | JSON)).encode()
    return draw(st.just(content) | damaged(content))


TEXT = "eins zwei\r\n\n\ufeffdrei\x85 vier\u2028\n".encode()
RATED = "\n".join([HEADER, *GOOD, ""]).encode()


@CASES
def test_fuzz_lines(cases, tmp_path):
    def check(content):
        (tmp_path / "a").write_bytes(content)
        lines = unless_refused(read_lines, tmp_path / "a")
        if lines is not None:
            assert len(lines) == content.count(b"\n") + (content[-1:] != b"\n")
            assert all("\n" not in line for line in lines)

    tried(cases, damaged(TEXT), check)


@CASES
def test_fuzz_packed_lines(cases, tmp_path):
    def check(content):
        (tmp_path / "a.gz").write_bytes(content)
        unless_refused(read_lines, tmp_path / "a")

    tried(cases, damaged(gzip.compress(TEXT * 9)), check)


@CASES
def test_fuzz_parallel(cases, tmp_path):
    def check(contents):
        for ending, content in zip("xy", contents):
            (tmp_path / f"train.{ending}").write_bytes(content)
        pairs = unless_refused(read_parallel, tmp_path, "train", "x", "y")
        if pairs is not None:
            assert len(pairs.sources) == len(pairs.targets) > 0
            assert all(map(str.strip, pairs.sources + pairs.targets))

    tried(cases, st.tuples(damaged(TEXT), damaged(TEXT)), check)


@CASES
def test_fuzz_ratings(cases, tmp_path):
    def check(content):
        (tmp_path / "a").write_bytes(content)
        rated = unless_refused(read_ratings, tmp_path / "a")
        if rated is not None:
            assert len(rated[0]) == len(rated[1]) == len(rated[2])
            assert ((0 <= rated[2]) & (rated[2] <= 1)).all()

    row = st.lists(st.text(max_size=9) | st.floats().map(str), min_size=2, max_size=4)
    rows = st.lists(row.map("\t".join), max_size=4).map(lambda x: "\n".join([HEADER, *x]).encode())
    tried(cases, damaged(RATED) | rows, check)


@CASES
def test_fuzz_tokenizer(cases, tmp_path):
    def check(case):
        lines, size, text = case
        tokenizer = unless_refused(Tokenizer.train, lines, size)
        if tokenizer is None:
            assert size < 259
            return
        tokenizer.save(tmp_path / "t")
        for one in (tokenizer, Tokenizer.load(tmp_path / "t")):
            assert [one.decode(one.encode(x)) for x in [*lines, text]] == [*lines, text]
            assert one.vocab_size <= size

    any_text = st.text(max_size=60) | st.text("ab \n1.", max_size=60)
    tried(cases, st.tuples(st.lists(any_text, max_size=6), st.integers(250, 300), any_text), check)


@CASES
def test_fuzz_tokenizer_file(cases, tmp_path):
    Tokenizer.train(["banana bandana"] * 2, 270).save(tmp_path / "t")
    whole = (tmp_path / "t").read_bytes()

    def check(case):
        content, text = case
        (tmp_path / "t").write_bytes(content)
        tokenizer = unless_refused(Tokenizer.load, tmp_path / "t")
        if tokenizer is not None:
            assert tokenizer.decode(tokenizer.encode(text)) == text

    content = damaged(whole) | altered(json.loads(whole))
    tried(cases, st.tuples(content, st.text("abdn ü", max_size=20)), check)


@CASES
def test_fuzz_pairs(cases, tmp_path):
    Pairs.of([0, 1], [np.array([5, 2]), np.array([6, 7, 2])], reward=[0.25, 1]).append_to(tmp_path)
    whole = snapshot(tmp_path)

    def check(case):
        path, content = case
        for name, old in whole.items():
            name.write_bytes(content if name == path else old)
        pairs = unless_refused(Pairs.load, tmp_path)
        assert pairs is None or len(pairs) + 1 >= len(pairs.starts)
        unless_refused(lambda: Pairs.of([0], [[3]]).append_to(tmp_path))

    size = tmp_path / "size.json"
    contents = [st.tuples(st.just(path), damaged(content)) for path, content in whole.items()]
    odd = st.tuples(st.just(size), altered(json.loads(whole[size])))
    tried(cases, st.one_of(*contents, odd), check)


@CASES
def test_fuzz_saved_files(cases, tmp_path):
    content = {"w": torch.arange(6.0).view(2, 3), "row": {"name": "BC", "n": 2}}
    storage.save(tmp_path / "new", content)
    torch.save(torch.load(tmp_path / "new"), tmp_path / "old", _use_new_zipfile_serialization=False)
    both = [(tmp_path / name).read_bytes() for name in ("new", "old")]

    def check(content):
        (tmp_path / "a.pt").write_bytes(content)
        unless_refused(storage.load, tmp_path / "a.pt")

    tried(cases, st.one_of(*map(damaged, both)), check)


@CASES
def test_fuzz_models(cases, tmp_path, policy):
    config, weights = vars(policy.config), policy.state_dict()

    def check(case):
        name, value, of_config = case
        content = {"config": {**config, name: value} if of_config else config,
                   "weights": weights if of_config else {**weights, name: value}}
        storage.save(tmp_path / "policy.pt", content)
        unless_refused(load_model, tmp_path / "policy.pt", Transformer, "cpu")

    few = JSON.filter(lambda x: not (isinstance(x, int) and x > 1000))  # layers are made one by one
    tried(cases, st.tuples(st.sampled_from([*config, *weights]), few, st.booleans()), check)


@CASES
def test_fuzz_event_log(cases, tmp_path):
    path = tmp_path / "metrics.jsonl"
    known = [{"event": "step", "step": "bc", "seconds": 2.5},
             {"event": "part", "step": "grow-1", "seconds": 1, "part": 0},
             {"event": "checkpoint", "step": "bc", "seconds": 1.5, "number": 3},
             {"event": "warning", "text": "short", "kind": None}, {"event": "grow", "grow": 1}]

    def check(parts):
        content = b"".join(parts)
        path.write_bytes(content)
        run = Run(train_toy.Settings(out=str(tmp_path), resume=True), "toy")
        assert content.startswith(path.read_bytes())
        log = EventLog(path, lambda mark: True)
        log.add("step", step="x", seconds=1.0)
        assert EventLog(path, lambda mark: True).events[:-1] == log.events == run.event_log.events

    Run(train_toy.Settings(out=str(tmp_path)), "toy")
    (tmp_path / "steps/bc.pt").write_bytes(b"")
    lines = [altered(e).map(lambda x: x + b"\n") for e in known]
    whole = st.sampled_from([json.dumps(e).encode() + b"\n" for e in known])
    tried(cases, st.lists(st.one_of(whole, whole, *lines), max_size=5), check)


@CASES
@pytest.mark.parametrize("show", [0, 1])
def test_fuzz_config(cases, tmp_path, show):
    config = tmp_path / "config.json"
    run = Run(train_toy.Settings(out=str(tmp_path)), "toy")
    run.begin("bc"), run.end({})
    whole = json.loads(config.read_text())

    def check(content):
        config.write_bytes(content)
        settings = train_toy.Settings(out=str(tmp_path), resume=True, show=show)
        unless_refused(Run, settings, "toy")
        assert config.read_bytes() == content

    inner = altered(whole["settings"]).map(lambda x: json.dumps(whole).encode().replace(
        json.dumps(whole["settings"]).encode(), x))
    tried(cases, altered(whole) | inner, check)


VALUES = st.one_of(
    st.sampled_from("0 1 2 -1 0.5 1.0 1e3 nan inf -inf 1e999 -0.0 1e-320 1_0 ٣ 0x10 true cpu bc "
                    "top percentile cuda:1 -- - =".split()
                    + ["", " ", "9" * 30, "9" * 5000, "a\nb"]),
    st.integers().map(str), st.floats().map(str), st.text(max_size=9))


@CASES
@pytest.mark.parametrize("program", [train_toy, train_mt])
def test_fuzz_settings(cases, capsys, program):
    tables = {"preset": program.PRESETS, "method": METHODS}
    if program is train_toy:
        tables["task"] = {name: problem.usual for name, problem in train_toy.TASKS.items()}
    flags = [f"--{field.name.replace('_', '-')}" for field in fields(program.Settings)]

    def check(words):
        argv = [x for flag, values in words for x in (flag, *values)]
        try:
            settings = parse(program.Settings, argv, **tables)
            assert parse(program.Settings, argv, **tables) == settings
            json.dumps(plain(settings), allow_nan=False)
        except UserError as error:
            assert "\n" not in str(error) and "--" in str(error)
        except SystemExit as stop:
            assert stop.code == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1

    value = VALUES.filter(lambda x: not x.startswith(("-h", "--help")))
    word = st.tuples(st.sampled_from([*flags, "--method", "--preset"]), st.lists(value, max_size=2))
    tried(cases, st.lists(word, min_size=1, max_size=4), check)


@CASES
def test_fuzz_rewards(cases):
    def check(answers):
        try:
            rewards = check_rewards(answers, 3)
        except ValueError:
            return
        assert rewards.shape == (3,) and ((0 <= rewards) & (rewards <= 1)).all()

    number = st.floats() | st.floats(0, 1) | st.integers() | st.booleans()
    tried(cases, JSON | st.lists(JSON, min_size=3, max_size=3)
          | st.lists(number, min_size=3, max_size=3) | st.complex_numbers(), check)
