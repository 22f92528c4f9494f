"""train_mt.py: whole runs on an invented parallel corpus, `translate`, and input that is wrong."""

import contextlib
import copy
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import infra.corpus
import infra.evaluate
import infra.text
import infra.translate
import rest
import reward as rm
import train_mt
from infra import figures
from infra.cli import run_cli
from infra.corpus import Codec, against_references, bleu_chrf, bleu_of, quality
from infra.pairs import Pairs
from infra.sampling import sample_outputs
from infra.seeds import seed_of
from infra.storage import load
from infra.text import Corpus, Tokenizer
from infra.translate import load_model, load_run
from model import EOS, Config, Transformer
from reward import RewardModel
from train_mt import Settings, corrupt, made_ratings, split_ratings

sacrebleu = pytest.importorskip("sacrebleu")

PROGRAM = Path(train_mt.__file__)
TINY = ("--preset smoke --device cpu --src xx --tgt yy --vocab-size 330 --d-model 16 --d-ff 32 "
        "--heads 2 --bc-updates 10 --bc-evaluate-every 5 --rated-sources 40 --reward-updates 6 "
        "--grow-sources 40 --samples 3 --updates 4 --evaluate-every 2 --ppo-batch 16 "
        "--ppo-group 4 --ppo-samples 32 --max-len 24 --batch-tokens 256").split()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def no_modules_from_here():
    """--reward imports the user's module from the current folder; leave the path as it was."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda folder: [])


LEXICON = dict(zip("ta ki mö rul sem ban dor fil gas hup lin wex nör pum zat vig".split(),
                   "One two cats Dogs run sleep over Under blue tiny houses rivers eat see and or"
                   .split()))


def invented(n, seed):
    """n sentences of 3 to 6 words, and their word-for-word translations."""
    rng = np.random.default_rng(seed)
    sources = [" ".join(rng.choice(list(LEXICON), rng.integers(3, 7))) + "." for _ in range(n)]
    return sources, [" ".join(LEXICON[w] for w in x[:-1].split()) + "." for x in sources]


def write_corpus(folder, train=240, held_out=24):
    folder.mkdir(parents=True)
    for k, (split, n) in enumerate((("train", train), ("val", held_out), ("test", held_out))):
        for language, lines in zip(("xx", "yy"), invented(n, k)):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("mt") / "corpus")


def main(folder, corpus, *flags):
    """Train in this process, which has torch loaded already; later flags win."""
    train_mt.main([*TINY, "--data", str(corpus), "--out", str(folder), *flags])


def one_line(capsys, call):
    """The one line on standard error of a call that must end with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run_cli(call)
    error = capsys.readouterr().err
    lines = error.replace("\r", "\n").splitlines()  # progress bars may stand before it
    assert stop.value.code == 2 and lines[-1].startswith("error: ")
    assert error.endswith("\n") and error.count("error: ") == 1 and "Traceback" not in error
    return lines[-1]


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def strict(text):
    """JSON without NaN and Infinity, which Python's json would let pass."""
    def refuse(name):
        raise ValueError(f"{name} is not JSON")
    return json.loads(text, parse_constant=refuse)


def results(folder):
    return strict((folder / "results.json").read_text())


# ----------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mt") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(folder, corpus)
    (folder / "stdout").write_text(out.getvalue(), encoding="utf-8")
    return folder


def test_the_folder_of_a_run(finished):
    config = strict((finished / "config.json").read_text())
    assert config["program"] == "mt" and config["settings"]["vocab_size"] == 330
    assert config["settings"]["improve"] == [2] and config["settings"]["src"] == "xx"
    log = [strict(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if e["event"] == "step"] == [
        "bc", "reward", "evaluate-bc", "grow-1", "score-1", "improve-1-0", "improve-1-1",
        "improve-1-2", "ppo-1", "best-of-n"]
    assert [e["update"] for e in log if e["event"] == "train" and e["step"] == "bc"] == [0, 5, 10]
    assert {e["step"] for e in log if e["event"] == "train"} >= {"improve-1-0", "improve-1-2"}
    for name in ("improve", "best_of_n", "rewards", "tradeoff"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert Tokenizer.load(finished / "tokenizer.json").vocab_size <= 330
    assert not list(finished.rglob("*.tmp")) and not (finished / "checkpoint.pt").exists()


def test_results(finished):
    r = results(finished)
    assert r["task"] == "mt" and r["seconds"] > 0
    assert [(row["name"], row["grow"], row["improve"]) for row in r["rows"]] == [
        ("BC", 0, 0), ("ReST", 1, 0), ("ReST", 1, 1), ("ReST", 1, 2), ("PPO", 2, 4)]
    for row in r["rows"]:
        for key in ("bleu", "chrf", "beam_bleu", "val_bleu", "val_chrf", "sampled_bleu"):
            assert 0 <= row[key] <= 100, key
        for key in ("reward", "greedy_reward", "val_reward", "kept_data"):
            assert 0 <= (row[key] or 0) <= 1, key
        assert "version:" in row["signature"] and "tok:13a" in row["signature"]
        assert "oracle" not in row and row["seconds"] > 0 and row["entropy"] > 0
    assert [(e["policy"], e["n"]) for e in r["best_of_n"]] == [
        (policy, n) for policy in ("BC", "ReST") for n in (1, 2, 4)]
    assert all(0 <= e["bleu"] <= 100 and 0 <= e["chrf"] <= 100 for e in r["best_of_n"])


def test_rows_of_the_log_are_those_of_the_results(finished):
    rows = [e for e in events(finished) if e["event"] == "row"]
    for row in rows:
        del row["event"]
    assert rows == results(finished)["rows"]


def test_saved_weights(finished):
    last = load(finished / "steps" / "improve-1-2.pt")["policy"]
    for name, cls in (("policy.pt", Transformer), ("reward.pt", RewardModel)):
        content = load(finished / name)
        cls(Config(**content["config"])).load_state_dict(content["weights"])
        if name == "policy.pt":
            assert all(torch.equal(content["weights"][k], last[k]) for k in last)


def test_samples_and_output(finished, corpus):
    text, out = ((finished / name).read_text(encoding="utf-8")
                 for name in ("samples.txt", "stdout"))
    names = ["BC", "ReST (1,0)", "ReST (1,1)", "ReST (1,2)", "PPO"]
    sources, targets = ((corpus / f"test.{x}").read_text(encoding="utf-8").splitlines()
                        for x in ("xx", "yy"))
    examples = text.removesuffix("\n").split("\n\n")
    assert len(examples) == 5 and text in out
    for lines, s, t in zip(examples, sources, targets):
        lines = lines.split("\n")
        assert lines[:2] == [f"source      {s}", f"reference   {t}"]
        assert [line[:12].strip() for line in lines[2:]] == names
        assert all(0 <= int(line[12:15]) <= 100 and line[15] == " " for line in lines[2:])
    assert "validation BLEU" in out and "reward model, on held-out sources" in out
    assert str(finished) in out.splitlines()[-1]


def test_resume_gives_the_same(corpus, finished, tmp_path, no_figures, capsys):
    folder = tmp_path / "run"
    run_cli(lambda: main(folder, corpus, "--stop-after", "improve-1-0"))
    assert not (folder / "results.json").exists()
    main(folder, corpus, "--resume")
    a, b = results(finished), results(folder)
    for row in a["rows"] + b["rows"]:
        for key in ("seconds", "grow_seconds", "train_seconds"):
            row.pop(key, None)
    assert a["rows"] == b["rows"] and a["best_of_n"] == b["best_of_n"]


def test_show(corpus, finished, capsys):
    before = (finished / "config.json").read_bytes()
    main(finished, corpus, "--show", "2")
    assert (finished / "config.json").read_bytes() == before
    out = capsys.readouterr().out
    assert "Grow 1, Improve 2" in out and "kept, best" in out and "dropped, worst" in out
    lines = (corpus / "train.xx").read_text(encoding="utf-8").splitlines()
    shown = [line for line in out.splitlines() if "  ->  " in line]
    assert len(shown) == 20 and all(line.split("  ->  ")[0][25:].strip() in lines for line in shown)


@pytest.mark.slow
def test_bc_learns_a_lexicon(tmp_path, no_figures, capsys):
    """The same text twice, word for word: a policy that learns anything gets this right."""
    corpus = write_corpus(tmp_path / "corpus", train=1500, held_out=30)
    run_cli(lambda: main(tmp_path / "run", corpus, "--limit", "0", "--d-model", "32",
                         "--d-ff", "64", "--batch-tokens", "512",
                         "--bc-updates", "400", "--bc-lr", "1e-2", "--bc-evaluate-every", "200",
                         "--dropout", "0", "--stop-after", "bc"))
    scores = [e["score"] for e in events(tmp_path / "run") if e["event"] == "train"]
    assert scores[0] < 10 and max(scores) > 80


def test_a_bc_whose_bleu_stays_at_zero_is_trained_all_the_same(finished):
    """And not the random start, which its score is equal to; one warning says so."""
    bc = load(finished / "steps/bc.pt")
    scores = [e["score"] for e in events(finished) if e.get("step") == "bc" and "score" in e]
    assert scores == [0, 0, 0] and bc["updates"] == 10
    torch.manual_seed(seed_of("weights", 0))
    start = Transformer(Config(**load(finished / "policy.pt")["config"])).state_dict()
    assert not any(torch.equal(x, start[k]) for k, x in bc["policy"].items())
    out = (finished / "stdout").read_text(encoding="utf-8")
    assert out.count("warning: BC is not better than before its training") == 1


def test_a_method_on_text(finished, corpus, tmp_path, no_figures, monkeypatch):
    """RFT: once, from what BC began with, on D and on what is right of the samples."""
    run, begun, improve = begin(finished, tmp_path / "run", "bc", "reward"), [], rest.improve

    def spied(policy, *args, **kwargs):
        begun.append(copy.deepcopy(policy))
        return improve(policy, *args, **kwargs)

    monkeypatch.setattr(rest, "improve", spied)
    main(run, corpus, "--method", "rft", "--no-ppo", "--best-of", "1")
    rows = results(run)["rows"]
    assert [(row["name"], row["grow"], row["improve"]) for row in rows] == [
        ("BC", 0, 0), ("ReST", 1, 1)]
    assert rows[1]["kept_data"] == 1 and rows[1]["samples"] == 120
    torch.manual_seed(seed_of("weights", 0))
    fresh = Transformer(begun[0].config).state_dict()
    assert len(begun) == 1
    assert all(torch.equal(x, fresh[k]) for k, x in begun[0].state_dict().items())
    trained = [e["update"] for e in events(run) if e.get("step") == "improve-1-1"
               and e["event"] == "train"]
    assert trained == [0, 5, 10]  # BC's settings, not those of an Improve


def test_a_method_without_a_grow(finished, corpus, tmp_path, no_figures, capsys):
    run = begin(finished, tmp_path / "run", "bc", "reward", "evaluate-bc")
    main(run, corpus, "--method", "policy-gradient", "--best-of", "1", "--ppo-rows", "2")
    rows = results(run)["rows"]
    assert [(row["name"], row["grow"]) for row in rows] == [("BC", 0), ("PPO", 1), ("PPO", 2)]
    assert [row["updates"] for row in rows[1:]] == [1, 1]
    assert "reference   " in capsys.readouterr().out


# ------------------------------------------------------------------------------------- translate


def translated(monkeypatch, capfdbinary, run, text, *flags):
    """translate's (lines out, lines of standard error), for `text` as bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    capfdbinary.readouterr()
    train_mt.main(["translate", "--run", str(run), "--device", "cpu", "--beam", "2", *flags])
    sys.stdout.flush()
    out, err = capfdbinary.readouterr()
    assert not out or out.endswith(b"\n")
    return out.decode().split("\n")[:-1], err.decode().splitlines()


LONG = b"ta ki rul " * 100

INPUTS = {b"ta ki.\nrul sem ban.\n": 2, b"ta ki.\nrul sem ban.": 2, b"ta ki.\n\nrul.\n": 3,
          b"\n\n\n": 3, b"\n": 1, b"": 0, b"   \nta\n": 2, b"ta\r\nki\r\n": 2,
          b"ta\n" + LONG + b"\nki\n": 3, LONG: 1, "ta\u2028ki\x0brul\x0csem\x85\n".encode(): 1,
          "日本語 👩‍👧\n".encode(): 1, b"ta\x00ki\n": 1}


@pytest.mark.parametrize("how", [[], ["--best-of", "3"]], ids=["beam", "best-of"])
@pytest.mark.parametrize("text", INPUTS, ids=range(len(INPUTS)))
def test_one_line_out_for_each_line_in(finished, monkeypatch, capfdbinary, text, how):
    out, err = translated(monkeypatch, capfdbinary, finished, text, *how)
    assert len(out) == INPUTS[text]
    for x, y in zip(text.decode().split("\n"), out):
        assert x.strip() or y == ""
    assert len(err) == (LONG in text) and all(x.startswith("warning: 1 line") for x in err)


@pytest.mark.parametrize("how", [[], ["--best-of", "3"]], ids=["beam", "best-of"])
def test_show_scores_is_one_number_per_line(finished, monkeypatch, capfdbinary, how):
    text = b"ta ki.\n\nrul sem ban.\nta"
    plain, nothing = translated(monkeypatch, capfdbinary, finished, text, *how)
    out, scores = translated(monkeypatch, capfdbinary, finished, text, *how, "--show-scores")
    assert plain == out and nothing == [] and len(out) == len(scores) == 4
    assert all(0 <= float(x) <= 100 for x in scores)
    assert translated(monkeypatch, capfdbinary, finished, b"", "--show-scores") == ([], [])


def test_best_of_n_scores_no_lower(finished, monkeypatch, capfdbinary):
    text = "\n".join(invented(8, 9)[0]).encode()
    mean = {n: np.mean([float(x) for x in translated(
        monkeypatch, capfdbinary, finished, text, "--best-of", str(n), "--show-scores")[1]])
        for n in (1, 16)}
    assert mean[16] > mean[1]


@pytest.mark.parametrize("how", [["--best-of", "2"], ["--temperature", "1"]], ids=" ".join)
def test_a_seed_is_a_draw(finished, monkeypatch, capfdbinary, how):
    text = "\n".join(invented(4, 9)[0]).encode()
    a, b, c = (translated(monkeypatch, capfdbinary, finished, text, *how, "--seed", s)
               for s in "001")
    assert a == b != c


def test_temperature_zero_is_greedy(finished, monkeypatch, capfdbinary):
    lines = invented(4, 9)[0]
    policy = load_model(finished / "policy.pt", Transformer, "cpu")
    texts = Codec(Tokenizer.load(finished / "tokenizer.json"), policy.config.max_len)
    greedy = sample_outputs(policy, texts.ids(lines), 1, 0, texts.max_len, temperature=0)
    found, _ = translated(monkeypatch, capfdbinary, finished, "\n".join(lines).encode(),
                          "--temperature", "0")
    assert found == texts.lines(greedy.targets())


def test_a_length_penalty_favours_the_longer(finished, monkeypatch, capfdbinary):
    """Of a policy that says "a", or ends: the likeliest output is the empty one."""
    logits = torch.full((Tokenizer.load(finished / "tokenizer.json").vocab_size,), -9.0)
    logits[EOS], logits[3 + ord("a")] = np.log(0.3), np.log(0.6)
    monkeypatch.setattr(Transformer, "step", lambda self, last, cache: logits.repeat(len(last), 1))
    for penalty, found in (("0", ""), ("3", "a" * 23)):
        out = translated(monkeypatch, capfdbinary, finished, b"ta", "--length-penalty", penalty)
        assert out == ([found], [])


@pytest.mark.parametrize("how", [["--beam", "4"], ["--best-of", "4"],
                                 ["--best-of", "4", "--temperature", "2"]], ids=" ".join)
def test_n_best_lines_for_each_line_the_best_first(finished, monkeypatch, capfdbinary, how):
    text = b"ta ki.\n\nrul sem ban."
    one, _ = translated(monkeypatch, capfdbinary, finished, text, *how)
    three, _ = translated(monkeypatch, capfdbinary, finished, text, *how, "--n-best", "3")
    assert len(one) == 3 and three[::3] == one and three[3:6] == ["", "", ""]
    assert len(set(three[:3])) == len(set(three[6:])) == 3


@pytest.mark.parametrize("flags, said", [
    ("--n-best 3", "more than --beam 2"), ("--n-best 3 --best-of 2", "more than --best-of 2"),
    ("--n-best 2 --temperature 1", "add --best-of"), ("--n-best 0", "at least 1"),
    ("--temperature -1", "at least 0"), ("--temperature nan", "a finite number"),
    ("--length-penalty -1", "at least 0")])
def test_translate_refuses_what_cannot_be(finished, capsys, flags, said):
    error = one_line(capsys, lambda: train_mt.main(
        ["translate", "--run", str(finished), "--beam", "2", *flags.split()]))
    assert flags.split()[0] in error and said in error


def test_translations_do_not_depend_on_their_neighbours(finished, monkeypatch, capfdbinary):
    lines = [x.encode() for x in invented(6, 9)[0]]
    together, _ = translated(monkeypatch, capfdbinary, finished, b"\n".join(lines))
    alone = [translated(monkeypatch, capfdbinary, finished, x)[0][0] for x in lines]
    assert together == alone


@pytest.mark.parametrize("how", [["--best-of", "2"], ["--temperature", "1"]], ids=" ".join)
def test_samples_do_not_depend_on_their_neighbours(finished, monkeypatch, capfdbinary, how):
    """But on the place of their line: the same line twice is drawn for twice."""
    a, b = (translated(monkeypatch, capfdbinary, finished, text, *how)[0] for text in (
        b"ta\nki sem.\nrul\nki sem.", b"nor dor fil lin hup.\nki sem.\n\nki sem.\nta"))
    assert a[1] == b[1] and a[3] == b[3] and a[1] != a[3]


def test_translate_reads_as_training_does(finished, monkeypatch, capfdbinary):
    """CRs of CRLF and a byte order mark are dropped; seen by giving back what was read."""
    monkeypatch.setattr(infra.translate, "translations", lambda policy, texts, sources, *others: [
        [text] for text in texts.lines(sources)])
    text = b"\xef\xbb\xbfta ki.\r\n\r\nrul\r\n\xef\xbb\xbfsem\rban"
    out, _ = translated(monkeypatch, capfdbinary, finished, text)
    assert out == ["ta ki.", "", "rul", "\ufeffsem\rban"]


def test_translate_as_a_program(finished):
    """It answers each line before the next one comes, and ends with 2 at what it cannot read."""
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM), "translate", "--run", str(finished), "--best-of", "3",
         "--show-scores"], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    impatient = threading.Timer(120, program.kill)  # or a program that waits would wait for ever
    impatient.start()
    with program:
        for line in ("tä ki.\n", "\n", "rul\n"):
            program.stdin.write(line.encode())
            program.stdin.flush()
            answer = program.stdout.readline()
            assert answer.endswith(b"\n") and (line == "\n") == (answer == b"\n")
        rest, error = program.communicate(b"ta\n\xff\n")
    impatient.cancel()
    assert program.returncode == 2 and rest == b""
    *scores, last = error.decode().splitlines()
    assert len(scores) == 3 and all(0 <= float(x) <= 100 for x in scores)
    assert last.startswith("error: standard input, line 5: not valid UTF-8")


def test_what_is_not_utf8_is_refused_with_its_line(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ta\nki \xff\n")))
    call = lambda: train_mt.main(["translate", "--run", str(finished)])
    assert "line 2" in one_line(capsys, call)


def test_translate_wants_a_finished_run(tmp_path, finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ta\n")))
    folder = tmp_path / "run"
    folder.mkdir()
    call = lambda: train_mt.main(["translate", "--run", str(folder), "--device", "cpu"])
    assert "policy.pt" in one_line(capsys, call)
    (folder / "policy.pt").write_bytes((finished / "policy.pt").read_bytes()[:1000])
    assert "policy.pt" in one_line(capsys, call)  # damaged
    (folder / "policy.pt").write_bytes((finished / "policy.pt").read_bytes())
    assert "tokenizer.json" in one_line(capsys, call)


# --------------------------------------------------------------------------------------- rewards


def begin(finished, folder, *steps):
    """A folder in which the steps of a finished run are done."""
    (folder / "steps").mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes((finished / "tokenizer.json").read_bytes())
    for step in steps:
        shutil.copy(finished / "steps" / f"{step}.pt", folder / "steps")
    return folder


def write_ratings(path, n=60, outputs=3):
    """Ratings of n sources on another scale: right translations high, others low."""
    rng, (sources, targets) = np.random.default_rng(5), invented(n, 5)
    lines = ["score\tsource\trater\ttarget"]
    for k in range(outputs):
        for x, y, other in zip(sources, targets, targets[1:] + targets[:1]):
            score = -1 if k else 5
            lines.append(f"{score + rng.random():.2f}\t{x}\tme\t{other if k else y}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("asked, threads", [(None, 1), ("3", 2)])
def test_one_thread_unless_asked_for(corpus, tmp_path, monkeypatch, asked, threads):
    """Beside other work, several are slower than one; processes (torchrun) are not."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:  # PyTorch reads it when it is imported: here it only says who decides
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    torch.set_num_threads(2)
    try:
        run_cli(lambda: main(tmp_path / "run", corpus, "--stop-after", "bc"))
    finally:
        torch.set_num_threads(1)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["environment"]["threads"] == threads


QUICK = ["--no-ppo", "--improve", "1", "--best-of", "1"]


def rated(run, corpus, ratings, *flags):
    """Train the reward model on ratings, and no more -> its measures."""
    run_cli(lambda: main(run, corpus, "--ratings", str(ratings), "--stop-after", "reward", *flags))
    return next(e for e in events(run) if e["event"] == "reward_model")["measures"]


@pytest.mark.parametrize("flags", [[], ["--lower-is-better"], ["--preferences"]], ids=" ".join)
def test_human_ratings(finished, corpus, tmp_path, capsys, flags):
    run = begin(finished, tmp_path / "run", "bc")
    measures = rated(run, corpus, write_ratings(tmp_path / "ratings.tsv"), *flags)
    assert all(np.isfinite(x) for x in measures.values())
    assert 0 <= measures["reference above a sample"] <= 1


def test_a_second_file_of_ratings_is_what_the_reward_model_is_judged_by(finished, corpus, tmp_path,
                                                                        monkeypatch):
    """And the first is trained on whole."""
    run, seen = begin(finished, tmp_path / "run", "bc"), {}
    judge, train_reward = train_mt.judge, rm.train_reward

    def spy(score, held_out, rated, *args):
        seen["judged"] = rated
        return judge(score, held_out, rated, *args)

    monkeypatch.setattr(train_mt, "judge", spy)
    monkeypatch.setattr(train_mt, "JUDGED", 30)
    monkeypatch.setattr(rm, "train_reward", lambda model, sources, rated, *args, **kwargs: (
        seen.update(trained=rated), train_reward(model, sources, rated, *args, **kwargs)))
    rated(run, corpus, write_ratings(tmp_path / "a.tsv"),
          "--ratings", str(tmp_path / "a.tsv"), str(write_ratings(tmp_path / "b.tsv", 20, 2)))
    assert len(seen["trained"]) == 3 * 60 and len(seen["judged"]) == 30  # of 40, with a warning
    assert any("only the first 30 of 40 pairs judge" in e["text"] for e in events(run)
               if e["event"] == "warning")


def test_a_run_on_human_preferences(finished, corpus, tmp_path, no_figures):
    run = begin(finished, tmp_path / "run", "bc")
    ratings = write_ratings(tmp_path / "ratings.tsv")
    main(run, corpus, "--ratings", str(ratings), "--preferences", *QUICK)
    assert len(results(run)["rows"]) == 3


def test_ratings_of_long_texts_are_dropped_and_counted(finished, corpus, tmp_path):
    run = begin(finished, tmp_path / "run", "bc")
    ratings = write_ratings(tmp_path / "ratings.tsv")
    header, *rows = ratings.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    long = rows[0].split("\t")
    long[columns.index("target")] = "cats " * 50
    ratings.write_text("\n".join([header, *rows, "\t".join(long)]) + "\n", encoding="utf-8")
    rated(run, corpus, ratings)
    text = " ".join(e["text"] for e in events(run) if e["event"] == "warning")
    assert f"1 of {len(rows) + 1} pairs have 24 tokens or more" in text


@pytest.mark.parametrize("flags, body", [([], False), (["--reward-body"], True)])
def test_the_reward_models_body_is_trained_only_if_asked(finished, corpus, tmp_path, monkeypatch,
                                                         flags, body):
    """And dropout is off where it is not: the frozen features are those that it will judge by."""
    run, dropout, train_reward = begin(finished, tmp_path / "run", "bc"), [], rm.train_reward

    def spy(model, sources, rated, hp, *args, **kwargs):
        dropout.append(hp.dropout)
        return train_reward(model, sources, rated, hp, *args, **kwargs)

    monkeypatch.setattr(rm, "train_reward", spy)
    run_cli(lambda: main(run, corpus, "--stop-after", "reward", *flags))
    bc, made = (load(run / "steps" / f"{name}.pt") for name in ("bc", "reward"))
    same = all(torch.equal(x, made["reward"][f"body.{k}"]) for k, x in bc["policy"].items())
    assert same != body and dropout == [body]


def test_one_output_per_source_is_enough_for_ratings(finished, corpus, tmp_path):
    run = begin(finished, tmp_path / "run", "bc")
    rated(run, corpus, write_ratings(tmp_path / "ratings.tsv", outputs=1))
    [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_preferences_need_two_outputs_of_a_source(finished, corpus, tmp_path, capsys):
    begin(finished, tmp_path / "run", "bc")
    ratings = write_ratings(tmp_path / "ratings.tsv", outputs=1)
    one_line(capsys, lambda: main(tmp_path / "run", corpus, "--ratings", str(ratings),
                                  "--preferences", *QUICK))


def test_bad_ratings_are_one_line(finished, corpus, tmp_path, capsys):
    begin(finished, tmp_path / "run", "bc")
    bad = tmp_path / "bad.tsv"
    bad.write_text("source\ttarget\tscore\nta\tOne\t1\nki\ttwo\tgood\n")
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--ratings", str(bad)))
    assert "bad.tsv, line 3" in error


OWN = """
import json, math
def short(sources, outputs):
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps([list(sources), list(outputs)]) + "\\n")
    return [1 / (1 + len(y)) for y in outputs]
def undefined(sources, outputs):
    return [math.nan for _ in outputs]
def too_few(sources, outputs):
    return [0.5]
def too_high(sources, outputs):
    return [2 for _ in outputs]
not_a_function = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder, with the module own_reward.py in it."""
    (tmp_path / "own_reward.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_reward", None)


def test_a_reward_of_ones_own_on_text(finished, corpus, own, no_figures, monkeypatch,
                                      capfdbinary):
    begin(finished, own / "run", "bc")
    main(own / "run", corpus, "--reward", "own_reward.py:short", *QUICK)
    rows = results(own / "run")["rows"]
    assert [row["name"] for row in rows] == ["BC", "ReST", "ReST"]
    seen = [json.loads(line) for line in (own / "seen.jsonl").read_text().splitlines()]
    sources, outputs = (sum((call[k] for call in seen), []) for k in (0, 1))
    assert all(isinstance(x, str) for x in sources + outputs)
    train = (corpus / "train.xx").read_text(encoding="utf-8").splitlines()
    assert set(train[:40]) <= set(sources)  # D's own pairs are scored too
    assert not (own / "run/reward.pt").exists() and (own / "run/policy.pt").exists()
    pairs = Pairs.load(own / "run/steps/score-1")
    texts = Tokenizer.load(own / "run/tokenizer.json")
    for k in (0, len(pairs) - 1):
        text = texts.decode(pairs.target(k).tolist())
        assert pairs.reward[k] == pytest.approx(1 / (1 + len(text)))
    out, _ = translated(monkeypatch, capfdbinary, own / "run", b"ta ki.\nrul.", "--best-of", "6",
                        "--n-best", "6")  # translate's reward is the run's
    for found in (out[:6], out[6:]):
        lengths = list(map(len, found))
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize("name, said", [
    ("own_reward:undefined", "nan"), ("own_reward:too_high", "[0, 1]"),
    ("own_reward.py:too_few", "shape")])
def test_a_reward_that_is_no_reward(finished, corpus, own, capsys, name, said):
    begin(finished, own / "run", "bc")
    error = one_line(capsys, lambda: main(own / "run", corpus, "--reward", name))
    assert said in error


@pytest.mark.parametrize("name", ["own_reward:absent", "absent:short", "own_reward", ":short",
                                  "a:b:c", "own_reward:not_a_function", "absent.py:short",
                                  "own_reward.py:absent", "own_reward.py"])
def test_a_reward_that_is_not_there_is_refused_before_training(corpus, own, capsys, name):
    error = one_line(capsys, lambda: main(own / "run", corpus, "--reward", name))
    assert name in error
    assert not list((own / "run").glob("steps/*"))


class Stub:
    """A corpus of references, and tokens that are code points: what made_ratings asks of Texts."""

    max_len = 60

    def __init__(self, sources, targets):
        self.val = infra.text.Corpus(sources, targets)

    def __getitem__(self, split):
        return {"val": self.val}[split]

    def ids(self, lines):
        return [np.array([ord(c) + 3 for c in line] + [2]) for line in lines]

    def lines(self, targets):
        return ["".join(chr(max(0, i - 3)) for i in ids if i != 2) for ids in targets]


def test_made_ratings_are_chrf_and_references_are_as_good_as_the_best_sample(monkeypatch):
    sources, targets = invented(50, 3)
    texts = Stub(sources, targets)
    torch.manual_seed(0)
    bc = Transformer(Config(400, 16, 2, 1, 1, 32, max_len=60)).eval()
    settings = Settings(rated_temperatures=(0.5, 1.5), seed=0)
    ids, rated = made_ratings(bc, texts, "val", 30, settings)
    kinds = 2 + 1 + 1  # two samples, one of them damaged, the reference
    assert len(ids) == 30 and rated.source.tolist() == kinds * list(range(30))
    given, lines = texts.lines(ids), texts.lines(rated.targets())
    reference = dict(zip(sources, targets))
    assert lines[-30:] == [reference[x] for x in given]
    chrf = sacrebleu.CHRF(word_order=2, beta=1)
    exact = [chrf.sentence_score(y, [reference[given[i]]]).score / 100
             for i, y in zip(rated.source[:-30], lines)]
    np.testing.assert_allclose(rated.reward[:-30], exact, atol=1e-5)
    np.testing.assert_allclose(rated.reward[-30:], np.reshape(exact, (3, 30)).max(0), atol=1e-5)
    assert sum(x == y for x, y in zip(lines[30:60], lines[60:90])) < 20  # damage is done
    again = made_ratings(bc, texts, "val", 30, settings)[1]
    assert np.array_equal(again.reward, rated.reward) and np.array_equal(again.tokens, rated.tokens)
    settings.seed = 1
    assert texts.lines(made_ratings(bc, texts, "val", 30, settings)[0]) != given


def test_corrupted_translations():
    rng = np.random.default_rng(0)
    sources, lines = invented(200, 4)
    bad = [corrupt(y, other, x, rng) for x, y in zip(sources, lines)
           for other in (lines[0], "cats.")]
    assert all(type(x) is str for x in bad)
    good = np.repeat(lines, 2)
    assert np.mean([x == y for x, y in zip(bad, good)]) < 0.15
    # An empty output, one that is cut off, the source itself: what is never rated can get anything.
    kinds = {"empty": [x == "" for x in bad], "source": [x in sources for x in bad],
             "cut": [0 < len(x) < len(y) and y.startswith(x) for x, y in zip(bad, good)],
             "other": [x in ("cats.", lines[0]) for x in bad]}
    assert {kind: 0.06 < np.mean(found) < 0.2 for kind, found in kinds.items()} == dict.fromkeys(
        kinds, True)
    allowed = {w for y in [*sources, *lines, "cats."] for w in y.split()}
    assert {w for x in bad for w in x.split()} <= allowed
    for text in ("", "word", "two words", "   ", "a\u00a0b"):
        for other in ("", "x", "y z"):
            assert all(type(corrupt(text, other, "ta ki", rng)) is str for _ in range(60))


def test_ratings_are_split_by_source():
    rated = Pairs.of(np.repeat(np.arange(200), 3), [np.array([5, 2])] * 600,
                     reward=np.arange(600) / 600)
    train, test = split_ratings(list(range(200)), rated, seed=0)
    assert not set(train.source) & set(test.source) and len(train) + len(test) == 600
    assert 20 < len(test) < 120
    assert np.array_equal(split_ratings(list(range(200)), rated, seed=0)[1].reward, test.reward)


def test_a_few_ratings_are_enough_to_split():
    rated = Pairs.of(np.arange(5), [np.array([5, 2])] * 5, reward=np.arange(5) / 5)
    for seed in range(20):
        train, test = split_ratings(list(range(5)), rated, seed)
        assert len(train) and len(test)


def test_bleu_and_chrf():
    lines, bleu_en = invented(20, 0)[1], bleu_of(Settings())
    found = bleu_chrf(lines, lines, bleu_en)
    assert found["bleu"] == pytest.approx(100) and found["chrf"] == pytest.approx(100)
    assert all(x in found["signature"] for x in ("tok:13a", "case:mixed", sacrebleu.__version__))
    found = bleu_chrf([""] * 20, lines, bleu_en)
    assert found["bleu"] == found["chrf"] == 0


def test_quality():
    found = quality(["a b c d a b c d", "one two three"], ["a b c d", "one two four"],
                    bleu_of(Settings()))
    # four words too many and one wrong, of seven; one 4-gram of five is there already
    assert found["ter"] == pytest.approx(100 * 5 / 7)
    assert found["length"] == pytest.approx(11 / 7) and found["repetition"] == pytest.approx(20)
    assert all(name in found["signature"] for name in ("BLEU", "chrF", "TER"))
    assert quality(["", ""], ["a", "b"], bleu_of(Settings()))["repetition"] == 0


@pytest.mark.parametrize("flags, tokenizer", [
    (dict(tgt="en"), "13a"), (dict(tgt="zh"), "zh"), (dict(tgt="yy"), "13a"),
    (dict(tgt="zh", bleu_tokenize="char"), "char"), (dict(bleu_tokenize="intl"), "intl")])
def test_bleus_tokenizer_follows_the_target_language(flags, tokenizer, capfd):
    lines = ["我 爱 猫 。"]
    found = bleu_chrf(lines, lines, bleu_of(Settings(**flags)))
    assert found["bleu"] == pytest.approx(100) and f"tok:{tokenizer}|" in found["signature"]
    assert capfd.readouterr().err == ""  # sacrebleu has nothing to remark


def test_a_tokenizer_that_is_not_there_is_refused_at_once(corpus, tmp_path, monkeypatch, capsys):
    module = "sacrebleu.tokenizers.tokenizer_ja_mecab"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "MeCab", None)  # importing it now fails
    call = lambda *flags: main(tmp_path / "run", corpus, *flags)
    error = one_line(capsys, lambda: call("--tgt", "ja"))
    assert "--tgt ja" in error and "sacrebleu[ja]" in error and "--bleu-tokenize" in error
    error = one_line(capsys, lambda: call("--bleu-tokenize", "nonsense"))
    assert "--bleu-tokenize nonsense" in error
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert one_line(capsys, call).endswith('this program needs sacrebleu: pip install -e ".[mt]"')
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- test sets


def evaluated(capsys, *flags):
    """What `evaluate` prints."""
    capsys.readouterr()
    train_mt.main(["evaluate", "--device", "cpu", *map(str, flags)])
    return capsys.readouterr().out


def numbers(table, name):
    """The numbers of a row, by the keys of evaluate's columns."""
    line = next(line for line in table.split("\n") if line.startswith(name))
    cells = line.removeprefix(name).replace("%", "").split()
    return dict(zip(infra.evaluate.COLUMNS, map(float, cells)))


def test_evaluate_finds_what_training_found(finished, corpus, capsys):
    out = evaluated(capsys, "--run", finished, "--all", "--test", corpus / "test.xx",
                    corpus / "test.yy")
    assert f"{corpus / 'test.xx'}, 24 sentences" in out
    rows = results(finished)["rows"]
    for row, name in zip(rows, ["BC", "ReST (1,0)", "ReST (1,1)", "ReST (1,2)", "PPO"]):
        found = numbers(out, name)
        assert len(found) == len(infra.evaluate.COLUMNS)
        for key, value in found.items():
            scale, digits = (100, 1) if "reward" in key else (
                (1, 2) if key in ("length", "entropy", "kl_to_bc") else (1, 1))
            assert value == round(scale * row[key], digits), (name, key)
    assert [line.split("  ")[0] for line in evaluated(
        capsys, "--run", finished, "--test", corpus / "test.xx", corpus / "test.yy"
        ).splitlines()[4:-1]] == ["BC", "ReST (1,2)", "PPO"]
    assert out.endswith(rows[0]["signature"] + "\n")


def test_each_kind_of_output_has_measures_of_its_own(finished):
    policy, texts = load_run(finished, torch.device("cpu"))
    corpus = Corpus(*invented(6, 9))
    right, wrong = (Pairs.of(range(6), texts.ids(lines))
                    for lines in (corpus.targets, corpus.targets[::-1]))
    for sampled, greedy in ((right, wrong), (wrong, right)):
        row = against_references(texts, corpus, bleu_of(Settings()), 2, policy, sampled, greedy)
        assert (row["sampled_bleu"] == pytest.approx(100)) == (sampled is right)
        assert (row["bleu"] == pytest.approx(100)) == (row["ter"] == 0) == (greedy is right)
        assert row["beam_chrf"] not in (row["chrf"], row["sampled_chrf"])


def test_further_test_sets_in_training(finished, corpus, tmp_path, capsys, no_figures):
    """The run says of them what `evaluate` says of them."""
    pairs = zip(*((corpus / f"val.{x}").read_text(encoding="utf-8").splitlines()
                  for x in ("xx", "yy")))
    tsv = tmp_path / "new.tsv"
    tsv.write_text("".join(f"{x}\t{y}\n" for x, y in pairs), encoding="utf-8")
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    again = ["--resume", "--test", str(tsv), str(corpus / "test.xx"), str(corpus / "test.yy")]
    main(folder, corpus, *again)
    out = capsys.readouterr().out
    said = evaluated(capsys, "--run", folder, "--test", *again[2:])
    for name in ("BC", "ReST (1,2)"):
        for table in map(said.index, (f"{tsv}, 24", f"{corpus / 'test.xx'}, 24")):
            line = next(x for x in said[table:].split("\n") if x.startswith(name))
            assert line in out


@pytest.mark.parametrize("files, said", [
    (["test.xx"], "where is its translation"), (["test.xx", "val.zz"], "val.zz: no such file"),
    (["test.xx", "test.yy", "val.tsv"], "val.tsv: no such file")])
def test_test_sets_that_are_none(finished, corpus, tmp_path, capsys, files, said):
    files = [str(corpus / file) for file in files]
    call = lambda: train_mt.main(["evaluate", "--run", str(finished), "--test", *files])
    assert said in one_line(capsys, call)
    assert said in one_line(capsys, lambda: main(tmp_path / "run", corpus, "--test", *files))


def test_evaluate_wants_all_of_a_finished_run(finished, corpus, tmp_path, capsys):
    def error(folder):
        return one_line(capsys, lambda: train_mt.main(
            ["evaluate", "--run", str(folder), "--test", str(corpus / "test.xx"),
             str(corpus / "test.yy")]))

    assert "policy.pt is missing" in error(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.copy(folder / "steps" / "reward.pt", folder / "steps" / "bc.pt")
    assert "bc.pt: not weights" in error(folder)
    (folder / "steps" / "bc.pt").unlink()
    assert "bc.pt is missing" in error(folder)


def test_a_corpus_in_other_files_is_the_same(finished, corpus, tmp_path, capsys):
    """TSV, dev for val: the same texts, with which the run can be gone on with."""
    folder, run = tmp_path / "corpus", tmp_path / "run"
    folder.mkdir()
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        pairs = zip(*((corpus / f"{split}.{x}").read_text(encoding="utf-8").splitlines()
                      for x in ("xx", "yy")))
        text = "".join(f"{x}\t{y}\n" for x, y in pairs)
        (folder / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    shutil.copytree(finished, run)
    main(run, folder, "--resume")
    assert results(run)["rows"] == results(finished)["rows"]


def test_without_a_test_set_validation_is_reported(corpus, tmp_path, capsys, no_figures):
    folder = copied(corpus, tmp_path / "corpus")
    for x in ("xx", "yy"):
        (folder / f"test.{x}").unlink()
    main(tmp_path / "run", folder, "--grow", "0", "--no-ppo")
    assert "has no test set" in capsys.readouterr().out + "".join(
        e["text"] for e in events(tmp_path / "run") if e["event"] == "warning")
    assert {entry["policy"] for entry in results(tmp_path / "run")["best_of_n"]} == {"BC"}
    row = results(tmp_path / "run")["rows"][0]
    assert row["bleu"] == row["val_bleu"] and row["greedy_reward"] == row["val_greedy_reward"]


# ------------------------------------------------------------------------------ input that is wrong


def copied(corpus, folder):
    folder.mkdir()
    for file in corpus.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def spoil_length(folder):
    path = folder / "train.yy"
    path.write_bytes(path.read_bytes() + b"one more\n")
    return ["train.xx", "240", "train.yy", "241"]


def spoil_missing(folder):
    (folder / "val.xx").unlink()
    return ["val.xx", "no such file"]


def spoil_empty(folder):
    (folder / "test.yy").write_bytes(b"")
    return ["test.yy", "empty"]


def spoil_utf8(folder):
    lines = (folder / "train.xx").read_bytes().split(b"\n")
    lines[6] = "Grüße".encode("latin-1")
    (folder / "train.xx").write_bytes(b"\n".join(lines))
    return ["train.xx", "line 7", "UTF-8"]


def spoil_blank(folder):
    for name in ("val.xx", "val.yy"):
        (folder / name).write_bytes(b" \n\n")
    return ["val.xx", "no line has text"]


@pytest.mark.parametrize("spoil", [spoil_length, spoil_missing, spoil_empty, spoil_utf8,
                                   spoil_blank])
def test_a_spoilt_corpus_is_one_line_that_names_the_file(corpus, tmp_path, capsys, spoil):
    folder = copied(corpus, tmp_path / "spoilt")
    expected = spoil(folder)
    error = one_line(capsys, lambda: main(tmp_path / "run", folder))
    assert all(word in error for word in expected), error


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    error = one_line(capsys, lambda: main(tmp_path / "run", tmp_path / "nowhere"))
    assert "nowhere" in error


def test_sentences_that_are_all_too_long(corpus, tmp_path, capsys):
    error = one_line(capsys, lambda: main(tmp_path / "run", corpus, "--max-len", "2"))
    assert "--max-len" in error


def test_blank_and_long_pairs_are_dropped_with_a_warning(corpus, tmp_path, no_figures, capsys):
    folder = copied(corpus, tmp_path / "corpus")
    lines = [(folder / f"train.{x}").read_text(encoding="utf-8").split("\n") for x in ("xx", "yy")]
    lines[0][0], lines[1][1], lines[1][2] = "", " ", "cats " * 50
    for x, changed in zip(("xx", "yy"), lines):
        (folder / f"train.{x}").write_text("\n".join(changed), encoding="utf-8")
    run_cli(lambda: main(tmp_path / "run", folder, "--stop-after", "bc"))
    text = " ".join(e["text"] for e in events(tmp_path / "run") if e["event"] == "warning")
    assert "2 pairs with a blank side" in text and "1 pairs of 24 tokens or more" in text
    assert "237 training pairs" in capsys.readouterr().out


def test_without_data_multi30k_is_fetched_once(corpus, tmp_path, monkeypatch, no_figures, capsys):
    served, files = tmp_path / "served", {}
    served.mkdir()
    for split in ("train", "val", "test"):
        for language, ending in (("xx", "de"), ("yy", "en")):
            packed = gzip.compress((corpus / f"{split}.{language}").read_bytes())
            name = f"{split}.{ending}.gz"
            (served / name.replace("test", "test_2016_flickr")).write_bytes(packed)
            files[name] = (len(packed), hashlib.sha256(packed).hexdigest())
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(infra.text, "MULTI30K_FILES", files)
    monkeypatch.setattr(infra.corpus, "download_multi30k", partial(
        infra.text.download_multi30k, base_url=f"http://127.0.0.1:{server.server_port}"))
    flags = [*TINY, "--src", "de", "--tgt", "en", "--cache", str(tmp_path / "cache"),
             "--stop-after", "bc", "--bc-updates", "1"]
    try:
        for run in ("a", "b"):
            run_cli(lambda: train_mt.main([*flags, "--out", str(tmp_path / run)]))
            assert len(asked) == 6 and (tmp_path / run / "steps/bc.pt").exists()
        assert "240 training pairs" in capsys.readouterr().out
        (tmp_path / "cache/multi30k-de-en/val.de.gz").write_bytes(b"damaged")
        (served / "val.de.gz").write_bytes(b"something else")
        error = one_line(capsys, lambda: train_mt.main([*flags, "--out", str(tmp_path / "c")]))
        assert "val.de.gz" in error and "--data" in error
    finally:
        server.shutdown()
        server.server_close()
