"""infra/settings.py, infra/run.py, infra/cli.py: command lines, and the folder of a run.

What the folder keeps when a process fails or is resumed, and when nothing can be printed.
"""

import errno
import io
import json
import os
import shutil
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import infra.pairs as pairs_py
import infra.run as run_module
import train_toy
from infra import processes, storage
from infra.cli import choose_device, run_cli
from infra.errors import UserError
from infra.pairs import Pairs
from infra.run import InMemory, Run, Stopped, hash_of
from infra.settings import RunSettings, parse, plain_type, setting


@dataclass
class Settings(RunSettings):
    count: int = setting(3, "how many")
    share: float = setting(0.5, "how much")
    title: str = setting("none", "how called")
    sizes: tuple[int, ...] = setting((1, 2), "how big")
    limit: int = setting(0, "how far")
    kind: str = setting("a", "of which sort", choices=("a", "b"))
    dry: bool = setting(False, "without water")
    warm: bool = setting(True, "with heat")


def parsed(*argv, **kwargs):
    return parse(Settings, list(argv), **kwargs)


def refused(capsys, *argv, **kwargs):
    """The last line on standard error of a command line that must be refused."""
    with pytest.raises(SystemExit) as stop:
        parsed(*argv, **kwargs)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------------------------- command line


def test_defaults_are_the_dataclass():
    assert parsed() == Settings()


def test_types():
    s = parsed("--count", "7", "--share", "1e-3", "--title", "x y", "--limit", "9", "--kind", "b")
    assert (s.count, s.share, s.title, s.limit, s.kind) == (7, 0.001, "x y", 9, "b")
    assert type(s.count) is int and type(s.share) is float


def test_tuples():
    assert parsed("--sizes", "4", "5", "6").sizes == (4, 5, 6)
    assert parsed("--sizes", "4").sizes == (4,)
    assert parsed().sizes == (1, 2)


def test_booleans_go_both_ways():
    assert parsed("--dry").dry and not parsed("--no-dry").dry
    assert parsed("--warm").warm and not parsed("--no-warm").warm
    assert parsed("--no-dry", "--dry").dry  # the last one counts


def test_underscores_are_dashes():
    assert parsed("--stop-after", "bc").stop_after == "bc"


@pytest.mark.parametrize("argv, said", [
    (["--unknown", "1"], "--unknown"), (["--coun", "1"], "--coun"),  # no abbreviations
    (["--count", "x"], "--count"), (["--count", "1.5"], "--count"),
    (["--sizes", "1", "b"], "--sizes"), (["--sizes"], "--sizes"),
    (["--kind", "c"], "--kind"), (["stray"], "stray"),
    (["--stop_after", "bc"], "--stop_after")])
def test_refused(capsys, argv, said):
    assert said in refused(capsys, *argv)


PRESETS = {"small": {}, "large": {"count": 100, "sizes": (8, 9)}}
MANNERS = {"plain": {}, "odd": {"count": 7, "title": "odd", "warm": False}}


def test_presets_are_defaults_that_flags_override(capsys):
    assert parsed(preset=PRESETS) == Settings()
    assert parsed("--preset", "large", preset=PRESETS) == Settings(count=100, sizes=(8, 9))
    for argv in (["--preset", "large", "--count", "5"], ["--count", "5", "--preset", "large"]):
        assert parsed(*argv, preset=PRESETS) == Settings(count=5, sizes=(8, 9))
    assert "huge" in refused(capsys, "--preset", "huge", preset=PRESETS)
    assert "--preset" in refused(capsys, "--preset", "large")  # a program without presets


def test_the_first_of_a_table_is_its_default():
    table = {"large": PRESETS["large"], "small": {}}
    assert parsed(preset=table) == Settings(count=100, sizes=(8, 9))
    assert parsed("--preset", "small", preset=table) == Settings()


def test_of_two_tables_the_later_wins_and_flags_over_both():
    both, chosen = {"preset": PRESETS, "manner": MANNERS}, ["--preset", "large", "--manner", "odd"]
    swapped = {"manner": MANNERS, "preset": PRESETS}
    mixed = Settings(count=7, sizes=(8, 9), title="odd", warm=False)
    assert parsed(*chosen, **both) == parsed(*chosen[2:], *chosen[:2], **both) == mixed
    assert parsed(*chosen, **swapped) == replace(mixed, count=100)
    assert parsed(*chosen[:2], **both) == Settings(count=100, sizes=(8, 9))  # plain takes nothing
    assert parsed(*chosen, "--count", "5", "--warm", "--sizes", "3", **both) == Settings(
        count=5, sizes=(3,), title="odd")


def test_a_table_may_be_named_like_a_setting(capsys):
    """What is chosen is the setting's value, and has defaults for others."""
    tables = {"kind": {"a": {}, "b": {"count": 7, "sizes": (5,)}}, "preset": PRESETS}
    assert parsed(**tables) == Settings()
    assert parsed("--kind", "b", **tables) == Settings(kind="b", count=7, sizes=(5,))
    for argv in (["--kind", "b", "--count", "9"], ["--count", "9", "--kind", "b"]):
        assert parsed(*argv, **tables) == Settings(kind="b", count=9, sizes=(5,))
    both = Settings(kind="b", count=100, sizes=(8, 9))  # the later table wins
    assert parsed("--preset", "large", "--kind", "b", **tables) == both
    assert "--kind" in refused(capsys, "--kind", "c", **tables)
    swapped = {"kind": {"b": {}, "a": {"count": 7}}}
    assert parsed(**swapped) == Settings(kind="b")  # the first of a table is its default
    with pytest.raises(SystemExit):
        parsed("--help", **tables)
    assert capsys.readouterr().out.count("--kind") == 1


def test_help_names_the_tables_and_what_is_in_them(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help", preset=PRESETS, manner=MANNERS)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--preset {small,large}" in text and "--manner {plain,odd}" in text


@pytest.mark.parametrize("program", [None, "train_toy", "train_mt"])
def test_help_mentions_every_field(capsys, monkeypatch, program):
    monkeypatch.setenv("COLUMNS", "400")  # each flag on one line
    cls = __import__(program).Settings if program else Settings
    with pytest.raises(SystemExit) as stop:
        parse(cls, ["--help"], "what it does")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "what it does" in text
    for field in fields(cls):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.metadata["help"] in text, field.name
        assert not field.metadata["help"].endswith((".", " "))


def test_plain_type():
    assert plain_type(int) == (int, False)
    assert plain_type(tuple[float, ...]) == (float, True)


# ---------------------------------------------------------------------------------------- folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(**settings):
    return Run(Settings(**settings), "made-up")


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def step(run, name, make):
    """A step as programs make it: what is done is loaded."""
    saved = run.begin(name)
    return run.end(make()) if saved is None else saved


def pairs_of(run, name, makes, look=None):
    """A step of Pairs as programs make it, part by part."""
    for make in run.parts(name, makes, look):
        run.add(make())
    return run.pairs(name)


def nothing_to_make():
    raise AssertionError("this step is done: nothing is to be made")


PAIRS = Pairs.of([0, 1], [np.array([5, 2]), np.array([6, 7, 2])], reward=[0.25, 1.0])
PARTS = [PAIRS, Pairs.of([2], [np.array([8])], reward=[0.5]), Pairs.of([], []), PAIRS.select([1])]


def assert_same(a, b):
    for field in fields(Pairs):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert x.dtype == y.dtype and np.array_equal(x, y), field.name


def makers(made, fail_at=None, error=KeyboardInterrupt):
    """Functions that make PARTS, one each, and note which was made; one of them may fail."""
    def maker(k):
        def make():
            if k == fail_at:
                raise error("no")
            made.append(k)
            return PARTS[k]
        return make
    return [maker(k) for k in range(len(PARTS))]


def test_new_runs_are_numbered():
    assert [opened().folder for _ in range(3)] == [Path(f"runs/made-up-{n}") for n in (1, 2, 3)]
    assert Run(Settings(), "other").folder == Path("runs/other-1")
    config = json.loads(Path("runs/made-up-2/config.json").read_text())
    assert config["program"] == "made-up" and config["settings"]["count"] == 3
    around = config["environment"]
    assert around["torch"] == torch.__version__ and around["threads"] >= 1


def test_resume_without_out_takes_the_newest():
    opened(), opened()
    assert opened(resume=True).folder == Path("runs/made-up-2")
    assert opened().folder == Path("runs/made-up-3")
    shutil.rmtree("runs/made-up-1")
    assert opened(resume=True).folder == Path("runs/made-up-3")
    assert opened().folder == Path("runs/made-up-4")


def test_an_existing_run_is_refused_without_resume(tmp_path):
    step(opened(out="mine"), "a", lambda: {"x": 1})
    before = (tmp_path / "mine/config.json").read_bytes()
    with pytest.raises(UserError, match="mine.*--resume"):
        opened(out="mine", count=4)
    assert (tmp_path / "mine/config.json").read_bytes() == before


def test_a_file_is_not_a_folder():
    Path("mine").write_text("text")
    with pytest.raises(UserError, match="mine is a file"):
        opened(out="mine")
    assert Path("mine").read_text() == "text"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_an_absent_or_empty_folder_starts_afresh(there, resume):
    if there:
        Path("deep/mine").mkdir(parents=True)
    run = opened(out="deep/mine", resume=resume)
    assert (run.folder / "config.json").exists() and step(run, "a", lambda: {"x": 1}) == {"x": 1}


def test_resume_with_nothing_to_resume_starts_the_first():
    assert opened(resume=True).folder == Path("runs/made-up-1")


def test_other_settings_are_refused_by_name():
    step(opened(out="mine", count=3, sizes=(1, 2)), "a", lambda: {"x": 1})
    with pytest.raises(UserError) as refusal:
        opened(out="mine", resume=True, count=4, sizes=(1, 3))
    text = str(refusal.value)
    assert "mine" in text and "count was 3, now 4" in text
    assert "sizes was [1, 2], now [1, 3]" in text
    assert "share" not in text and "\n" not in text
    assert json.loads(Path("mine/config.json").read_text())["settings"]["count"] == 3


def test_a_run_that_ended_before_it_made_anything_is_begun_anew():
    """With --data misspelt, for instance: the same command, mended, is all that is needed."""
    opened(out="mine", count=3).warn("of that run")
    Path("mine/tokenizer.json").write_text("of other text")
    Path("mine/notes").write_text("a person's")
    run = opened(out="mine", count=4)
    assert {path.name for path in run.folder.iterdir()} == {"config.json", "notes", "steps"}
    assert json.loads(Path("mine/config.json").read_text())["settings"]["count"] == 4

def test_a_config_of_something_else_is_left_alone():
    Path("mine").mkdir()
    for name in ("config.json", "tokenizer.json", "weights.tmp"):
        (Path("mine") / name).write_text('{"model_type": "marian"}')
    with pytest.raises(UserError, match="mine"):
        opened(out="mine")
    assert len(list(Path("mine").iterdir())) == 3


def test_where_and_how_far_a_run_goes_may_differ():
    opened(out="mine", stop_after="a")
    opened(out="mine", resume=True, stop_after="b", device="cpu")


def test_a_step_is_made_once():
    run, made = opened(out="mine"), []

    def make():
        made.append(1)
        return {"weights": {"w": torch.arange(3.0)}, "row": {"name": "BC", "reward": None, "n": 2}}

    first = step(run, "bc", make)
    for again in (step(run, "bc", make), step(opened(out="mine", resume=True), "bc", make)):
        assert torch.equal(again["weights"]["w"], first["weights"]["w"])
        assert again["row"] == first["row"]
    assert made == [1]
    assert [e["step"] for e in events(run.folder) if e["event"] == "step"] == ["bc"]


def test_pairs_come_back_as_they_were():
    made = pairs_of(opened(out="mine"), "grow-1", [lambda: PAIRS])
    loaded = pairs_of(opened(out="mine", resume=True), "grow-1", [nothing_to_make])
    assert_same(made, PAIRS)
    assert_same(loaded, PAIRS)


def test_each_part_is_made_once_and_in_order():
    run, made, seen = opened(out="mine"), [], []
    first = pairs_of(run, "grow-1", makers(made), seen.append)
    again = pairs_of(opened(out="mine", resume=True), "grow-1", makers(made), seen.append)
    for pairs in (first, pairs_of(run, "grow-1", [nothing_to_make]), again, *seen):
        assert_same(pairs, Pairs.join(PARTS))
    assert made == [0, 1, 2, 3] and len(seen) == 1
    assert [e["step"] for e in events(run.folder) if e["event"] == "step"] == ["grow-1"]
    assert [path.name for path in (run.folder / "steps").iterdir()] == ["grow-1"]


def test_pairs_are_read_from_disk_not_kept_in_memory():
    pairs = pairs_of(opened(out="mine"), "grow-1", [lambda: PAIRS])
    assert not any(getattr(pairs, field.name).flags.writeable for field in fields(Pairs))
    np.array([0.75, 0.5], np.float32).tofile("mine/steps/grow-1/reward.float32")
    assert list(Pairs.load("mine/steps/grow-1").reward) == [0.75, 0.5] == list(pairs.reward)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("fail_at", range(4))
def test_pairs_go_on_after_the_last_whole_part(fail_at, error):
    run, made, seen = opened(out="mine"), [], []
    for _ in range(2):  # killed twice at the same place
        with pytest.raises(error):
            pairs_of(run, "grow-1", makers(made, fail_at, error), seen.append)
        assert made == list(range(fail_at)) and seen == []
        assert not (run.folder / "steps/grow-1").exists()
        run = opened(out="mine", resume=True)
        assert (run.seconds("grow-1") > 0) == (fail_at > 0)
    assert_same(pairs_of(run, "grow-1", makers(made), seen.append), Pairs.join(PARTS))
    assert made == [0, 1, 2, 3] and len(seen) == 1
    assert [e.get("part") for e in events(run.folder)] == [0, 1, 2, 3, None]


def test_pairs_are_there_by_name_when_they_have_been_looked_at():
    """Until then they stand under another name; a look that fails is made again, the parts not."""
    run, made, seen = opened(out="mine"), [], []

    def look(pairs):
        assert [path.name for path in (run.folder / "steps").iterdir()] == ["grow-1.unfinished"]
        seen.append(len(pairs))
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs_of(run, "grow-1", makers(made), look)
    run = opened(out="mine", resume=True)
    assert len(pairs_of(run, "grow-1", makers(made), look)) == 4
    assert made == [0, 1, 2, 3] and seen == [4, 4]
    assert [path.name for path in (run.folder / "steps").iterdir()] == ["grow-1"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failing_step_leaves_nothing(error):
    run = opened(out="mine")

    def make():
        raise error("no")

    with pytest.raises(error):
        step(run, "bc", make)
    assert not list((run.folder / "steps").iterdir())
    assert not (run.folder / "metrics.jsonl").exists()
    assert step(run, "bc", lambda: {"x": 1}) == {"x": 1}


def test_stop_after():
    run = opened(out="mine", stop_after="b")
    step(run, "a", lambda: {"x": 1})
    assert step(run, "b", lambda: {"x": 2}) == {"x": 2}
    with pytest.raises(Stopped, match="b is done; --resume --out mine"):
        step(run, "c", nothing_to_make)
    run = opened(out="mine", resume=True)
    assert step(run, "b", nothing_to_make) == {"x": 2}
    run = opened(out="mine", resume=True, stop_after="b")
    assert step(run, "b", nothing_to_make) == {"x": 2}
    with pytest.raises(Stopped):  # a step that was done before is done, too
        step(run, "c", nothing_to_make)


def test_stop_after_pairs():
    run, seen = opened(out="mine", stop_after="b"), []
    pairs_of(run, "a", [lambda: PAIRS])
    assert_same(pairs_of(run, "b", [lambda: PAIRS], seen.append), PAIRS)
    assert len(seen) == 1  # what is to be said of them has been said
    for name in ("b", "c"):
        with pytest.raises(Stopped, match="b is done; --resume --out mine"):
            pairs_of(run, name, [nothing_to_make], nothing_to_make)
    with pytest.raises(Stopped):
        step(run, "c", nothing_to_make)
    run = opened(out="mine", resume=True, stop_after="b")
    assert_same(pairs_of(run, "b", [nothing_to_make], nothing_to_make), PAIRS)
    with pytest.raises(Stopped):
        pairs_of(run, "c", [nothing_to_make])
    assert not (run.folder / "steps/c.unfinished").exists()


def test_seconds_outlive_the_process(monkeypatch):
    run, clock = opened(out="mine"), [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: clock[0])

    def make():
        clock[0] += 40
        return {"x": 1}

    run.start = clock[0]
    step(run, "a", make)
    assert run.seconds("a") == 40 and run.seconds("b") == 0 and run.elapsed() == 40
    run = opened(out="mine", resume=True)
    clock[0] += 2
    assert run.seconds("a") == 40 and run.elapsed() == 42


def test_warnings_are_shown_and_logged(capsys):
    run = opened(out="mine")
    run.warn("too short")
    run.warn("too short")
    run.logger("bc")({"update": 3})
    assert "".join(capsys.readouterr()).count("warning: too short") == 1
    assert events(run.folder) == [{"event": "warning", "text": "too short", "kind": None},
                                  {"event": "train", "step": "bc", "update": 3}]


def test_a_grow_is_one_line(capsys):
    run = opened(out="mine")
    values = {"grow": 2, "reward_samples": 0.5, "truncated": 0.01, "distinct": 0.75,
              "nll": 1.25, "tokens_per_second": 1234.4}
    for of_data, said in ((0.625, ", 62.5 of D; 75% distinct"),
                          (None, " of samples; 75% distinct")):
        run.log("grow", reward_data=of_data, **values)
        printed, = "".join(capsys.readouterr()).splitlines()
        assert printed.startswith("Grow 2: mean reward 50.0 of samples") and said in printed
        assert printed.endswith("1.0% cut off; -log π 1.25 a token; 1234 tokens/s")
    assert [e["reward_data"] for e in events(run.folder)] == [0.625, None]


def test_a_torn_last_line_of_the_log_does_not_stop_a_resume():
    run = opened(out="mine")
    step(run, "a", lambda: {"x": 1})
    with open("mine/metrics.jsonl", "a") as file:
        file.write('{"event": "train", "st')  # what a full disk or a pulled plug leaves
    run = opened(out="mine", resume=True)
    assert step(run, "a", nothing_to_make) == {"x": 1}
    run.warn("later")
    assert [e["event"] for e in events(run.folder)] == ["step", "warning"]


@pytest.mark.parametrize("new", [lambda: opened(out="mine"), lambda: InMemory()])
def test_a_run_in_memory_does_what_a_folder_does(new):
    run, seen, made = new(), [], []
    assert step(run, "bc", lambda: {"x": 1}) == {"x": 1} and run.seconds("bc") > 0
    pairs = pairs_of(run, "grow-1", makers(made), seen.append)
    for x in (pairs, *seen):
        assert_same(x, Pairs.join(PARTS))
        assert not any(array.flags.writeable for array in vars(x).values())
    assert made == [0, 1, 2, 3] and len(seen) == 1 and run.seconds("grow-2") == 0
    assert list(run.progress("Grow 1")([1, 2])) == [1, 2]


# ------------------------------------------------------------------------------- what it is made of


MADE_FROM = {"train": hash_of(["ta ki", "rul"]), "reward": [0.5, 0.25]}


def begun():
    run = opened(out="mine")
    run.bind(**MADE_FROM)
    step(run, "a", lambda: {"x": 1})


@pytest.mark.parametrize("parts, said", [
    ({"train": hash_of(["rul", "ta ki"])}, "train is not the same"),
    ({"reward": [0.5, 0.26]}, "reward is not the same"),
    ({"reward": [0.5, 0.25, 0.25]}, "reward is not the same"),
    ({"train": hash_of(["ta ki"]), "reward": [1, 0.25]}, "train, reward are not the same")])
def test_other_data_are_refused_by_name(parts, said):
    begun()
    with pytest.raises(UserError, match=f"mine was begun with other data: {said}"):
        opened(out="mine", resume=True).bind(**MADE_FROM | parts)
    with pytest.raises(UserError, match=said):
        opened(out="mine", show=1).bind(**MADE_FROM | parts)


def test_the_same_data_are_gone_on_with():
    """But for rounding of a reward; and what a run is made of may come in several parts."""
    begun()
    run = opened(out="mine", resume=True)
    run.bind(train=MADE_FROM["train"])
    run.bind(reward=[0.501, 0.25], test_sources="1234")
    config = Path("mine/config.json").read_bytes()
    assert json.loads(config)["made_from"] == MADE_FROM | {"test_sources": "1234"}
    opened(out="mine", show=1).bind(**MADE_FROM, val="5678")
    assert Path("mine/config.json").read_bytes() == config
    with pytest.raises(UserError, match="test sources is not the same"):
        opened(out="mine", resume=True).bind(test_sources="other")


def test_a_hash_is_of_the_content():
    same = ["ab", "c"], [np.array([1, 2])]
    assert hash_of(*same) == hash_of(["ab", "c"], [np.array([1, 2])])
    others = [["a", "bc"], same[1]], [["c", "ab"], same[1]], [["ab", "c"], [np.array([2, 1])]], []
    assert len({hash_of(*x) for x in (same, *others)}) == 5


# ----------------------------------------------------------------------------------- a full disk


class Full(io.BufferedWriter):
    """A file on a disk that has room for 500 bytes."""

    room = 500

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def full_at_write(monkeypatch):
    def limited(path, mode):
        return Full(io.FileIO(path, mode)) if "b" in mode else open(path, mode)
    for module in (pairs_py, storage):
        monkeypatch.setattr(module, "open", limited, raising=False)


def full_at_fsync(monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(storage.os, "fsync", fsync)


def make_tensors(run):
    return step(run, "a", lambda: {"w": torch.zeros(5000)})["w"]


def make_pairs(run):
    return pairs_of(run, "a", [partial(Pairs.of, range(n), n * [[5, 2]]) for n in (10, 4990)])


@pytest.mark.parametrize("fill", [full_at_write, full_at_fsync])
@pytest.mark.parametrize("make", [make_tensors, make_pairs])
def test_a_full_disk_is_one_line_and_no_half_file(monkeypatch, capsys, fill, make):
    run = opened(out="mine")
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda: make(run))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert {path.name for path in (run.folder / "steps").iterdir()} <= {"a.unfinished"}
    assert len(make(run)) == 5000  # once there is room again


@pytest.mark.parametrize("fill", [full_at_write, full_at_fsync])
def test_a_full_disk_keeps_the_previous_file(monkeypatch, fill):
    run = opened(out="mine")
    run.save_json("results.json", {"rows": [1]})
    fill(monkeypatch)
    with pytest.raises(UserError, match="results.json: cannot be written"):
        run.save_json("results.json", {"rows": list(range(1000))})
    assert json.loads((run.folder / "results.json").read_text()) == {"rows": [1]}


# --------------------------------------------------------------------------------------- run_cli


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize("error, said", [
    (UserError("--data nowhere: no such folder"), "error: --data nowhere: no such folder\n"),
    (OSError(errno.ENOSPC, "No space left on device"),
     "error: [Errno 28] No space left on device\n")])
def test_what_a_person_can_mend_is_one_line(capsys, error, said):
    with pytest.raises(SystemExit) as stop:
        run_cli(raising(error))
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", said)


def test_run_cli_stop_interrupt_and_bugs(capsys):
    run_cli(raising(Stopped("bc is done")))  # no error, exit code 0
    assert capsys.readouterr().out == "bc is done\n"
    run = opened(out="mine")
    with pytest.raises(SystemExit) as stop:
        run_cli(raising(KeyboardInterrupt()))
    assert stop.value.code == 130 and f"--resume --out {run.folder}" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_cli(raising(ZeroDivisionError()))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_terminal_has_no_letter_for_is_a_question_mark(monkeypatch, stream, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, stream, out)
    run_cli(lambda: print("τ = 0.5, 日本", file=getattr(sys, stream)))
    out.flush()
    assert out.buffer.getvalue() == b"? = 0.5, ??\n" and getattr(sys, stream) is out
    if stream == "stdout":
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda: train_toy.main(["--help"]))
        assert stop.value.code == 0 and b"--improve" in out.buffer.getvalue()


def nobody_reads():
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


def full():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    return open("/dev/full", "w")


def closed():
    out = nobody_reads()
    out.close()
    return out


@pytest.mark.parametrize("out", [nobody_reads, full, closed, lambda: None])
def test_a_print_that_fails_ends_nothing(monkeypatch, capfd, out):
    out, done = out(), []

    def main():
        for _ in range(3):
            print("text" * 5000, flush=True)
        done.append(1)

    monkeypatch.setattr(sys, "stdout", out)
    run_cli(main)
    assert done == [1] and sys.stdout is out and capfd.readouterr().err == ""
    if out is not None:
        out.close()  # as at a program's end: nothing is left that could fail


@pytest.mark.parametrize("main, together", [
    (lambda: None, True), (raising(Stopped("bc is done")), True),
    (raising(UserError("no")), False), (raising(ZeroDivisionError()), False)],
    ids=["done", "stopped", "refused", "bug"])
def test_processes_wait_for_each_other_at_the_end_unless_one_failed(monkeypatch, main, together):
    called = []
    monkeypatch.setattr(processes, "end", lambda: called.append(1))
    try:
        run_cli(main)
    except (SystemExit, ZeroDivisionError):
        pass
    assert called == [1] * together


def test_a_device_that_is_not_there():
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            choose_device("cuda")


def test_each_process_needs_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(processes, "rank", lambda: 5)  # the second of the third machine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("cuda").type == "cuda" and chosen == [1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes on a machine with 2"):
        choose_device("cuda")
