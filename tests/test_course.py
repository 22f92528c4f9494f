"""The course: its checks, proved by wrong answers, and its command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import rest
import train_toy
from course import figures, kit, pocket
from course.__main__ import main
from course.exercises import ORDER, bug_hunt, exercises
from course.kit import Exercise, Mistake, Questions, in_place
from helpers import some_bc, some_task
from infra.pairs import Pairs
from infra.run import InMemory
from infra.seeds import stream
from model import EOS
from rest import Settings

ROOT = Path(__file__).parent.parent
ALL = list(exercises().values())
CODE = [exercise for exercise in ALL if not isinstance(exercise, Questions)]
MISTAKES = [(exercise, mistake) for exercise in CODE for mistake in exercise.mistakes]


def names(value):
    return value.name if isinstance(value, Exercise) else None


# ---------------------------------------------------------------------------- what is proved of all


@pytest.mark.parametrize("exercise", CODE, ids=names)
def test_the_project_passes_its_own_checks(exercise):
    assert exercise.check(exercise.solution()) == (list(exercise.stages), "")


@pytest.mark.parametrize("exercise", ALL, ids=names)
def test_a_hole_fails_with_a_kind_word(exercise):
    passed, wrong = exercise.check(exercise.starter(), "gold.py")
    assert passed == [] and wrong.endswith("still a hole, to be filled in gold.py")


@pytest.mark.filterwarnings("ignore:Mean of empty", "ignore:invalid value")  # one divides 0 by 0
@pytest.mark.parametrize("exercise, mistake", MISTAKES, ids=names)
def test_each_wrong_answer_is_told_its_mistake(exercise, mistake):
    passed, wrong = exercise.check(exercise.wrong(mistake))
    assert wrong == mistake.says and len(passed) < len(exercise.stages)


@pytest.mark.parametrize("exercise", ALL, ids=names)
def test_each_exercise_has_all_that_a_course_needs(exercise):
    assert len(exercise.mistakes) >= 5 and exercise.hints and exercise.goal.endswith(".")
    assert exercise.minutes and exercise.points and exercise.difficulty in (1, 2, 3)
    assert len({m.says for m in exercise.mistakes}) == len(exercise.mistakes)
    earlier = [name.replace("_", "-") for name in ORDER[: ALL.index(exercise)]]
    assert set(exercise.after) <= set(earlier)
    assert exercise.name == ORDER[ALL.index(exercise)].replace("_", "-")
    assert max(map(len, exercise.starter().splitlines())) <= 100


def test_every_file_of_an_exercise_is_in_the_course():
    files = {path.stem for path in (ROOT / "course" / "exercises").glob("*.py")}
    assert files == {*ORDER, "__init__"}


@pytest.mark.parametrize("exercise", CODE, ids=names)
def test_a_starter_does_not_hold_the_solution(exercise):
    """No line of a body, but for what it is given."""
    text = exercise.starter()
    for function in exercise.functions:
        given = kit.hole(kit.source(function), exercise.given)
        for line in kit.source(function).splitlines():
            code = line.partition("#")[0].strip()
            if len(code) > 12 and line not in given.splitlines():
                assert code not in text.splitlines()


def test_a_check_leaves_the_project_as_it_was():
    import losses
    before = losses.gold
    exercise = exercises()["gold"]
    exercise.check(exercise.solution())
    exercise.check("def gold(*args, **kwargs):\n    raise SystemError\n")
    assert losses.gold is before


# ------------------------------------------------------------------------------------- what is said


def test_what_no_known_mistake_explains_is_said_in_numbers():
    exercise = exercises()["oac"]
    text = exercise.solution().replace("(advantages * logprobs * mask).sum()",
                                       "(advantages * logprobs * mask).sum() + 1")
    passed, wrong = exercise.check(text)
    assert passed == [] and re.fullmatch(r"the loss is \S+; it should be \S+", wrong)


@pytest.mark.parametrize("body, said", [
    ("    return None", "nothing came back"),
    ("    return logits", "of shape (1, 5, 9); it should be of shape ()"),
    ("    return 'a lot'", "no number"),
    ("    return lgits.sum()", "line 2, in bc: NameError: name 'lgits' is not defined"),
    ("    return (", "line 2: SyntaxError"),
])
def test_other_wrong_answers_are_told_where_they_fail(body, said):
    text = f"def bc(logits, targets, label_smoothing=0.0):\n{body}\n"
    passed, wrong = exercises()["bc-loss"].check(text, "bc_loss.py")
    assert passed == [] and said in wrong


def test_a_function_that_is_not_there_is_missed():
    assert "there is no oac in it" in exercises()["oac"].check("def ocean():\n    pass\n")[1]


def test_a_mistake_that_does_not_fit_the_source_is_an_error():
    exercise = exercises()["oac"]
    with pytest.raises(ValueError, match="0 times"):
        exercise.wrong(Mistake("not there", "", ""))


def test_other_ways_to_be_right_pass():
    """As a student may write it, with loops."""
    text = '''
import numpy as np

def above(reward, tau, inclusive=False):
    return (reward - tau >= 0) if inclusive else (reward - tau > 0)

def percentile(source, reward, p):
    tau = np.zeros(len(source))
    for s in set(source):
        tau[source == s] = np.percentile(reward[source == s], p)
    return tau

def gamma(source, reward, weight):
    tau = []
    for s in source:
        own = [r for t, r in zip(source, reward) if t == s]
        tau.append(weight * max(own) + (1 - weight) * sum(own) / len(own))
    return np.array(tau)
'''
    assert exercises()["filters"].check(text)[1] == ""
    text = '''
import torch

def sample_token(logits, u, temperature, top_k=0, top_p=1.0):
    own = logits.log_softmax(-1)
    allowed = logits.clone()
    allowed[..., :2] = -torch.inf
    if temperature == 0:
        ids = allowed.argmax(-1)
    else:
        p = (allowed / temperature).softmax(-1)
        if top_k:
            p = torch.where(p >= p.topk(top_k).values[..., -1:], p, 0.0)
            p = p / p.sum(-1, keepdim=True)
        if top_p < 1:
            best, order = p.sort(descending=True)
            gone = best.cumsum(-1) - best >= top_p
            p = p.scatter(-1, order, best.masked_fill(gone, 0.0))
        c = p.cumsum(-1)
        ids = (c <= (u * c[..., -1])[..., None]).sum(-1)
    return ids, own.gather(-1, ids[..., None])[..., 0]
'''
    assert exercises()["sample-token"].check(text)[1] == ""


# ------------------------------------------------------------------------ runs that are asked about


@pytest.mark.parametrize("name", bug_hunt.BUGS)
def test_each_bug_can_be_put_in_place(name):
    bug = bug_hunt.BUGS[name]
    function = bug.function.rpartition(".")[2]
    assert callable(bug_hunt.buggy(bug)[function])


def test_the_bug_hunt_knows_its_answers_and_gives_clues():
    exercise = exercises()["bug-hunt"]
    assert exercise.check(exercise.solution()) == (list(exercise.stages), "")
    for mistake in exercise.mistakes:
        assert exercise.check(exercise.wrong(mistake))[1] == mistake.says
    nonsense = re.sub(r"'A': '[^']*'", "'A': 'a bug'", exercise.solution())
    assert "is none of" in exercise.check(nonsense)[1]


def hacked(folder, name, rows, **settings):
    """A run's folder, as reward-hacking reads it."""
    folder = folder / "reward-hacking" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"name": "PPO" if k else "BC", "reward": r / 100, "oracle": o / 100}
            for k, (r, o) in enumerate(rows)]
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    usual = {"rated_sources": 20, "ppo_kl": 0.0, "ppo_lr": 4e-4, "ppo_samples": 24000, "out": name}
    (folder / "config.json").write_text(json.dumps({"settings": usual | settings}))


BEFORE = [(51, 48.7), (59, 52.3), (62, 49.5), (64, 48.8), (65, 44.8), (67, 41), (68, 37.5)]
HELD = [(51, 48.7), (56, 50.9), (57, 50.2), (58, 51.8), (58, 52.2), (58, 51.6), (57.6, 51.5)]
LATER = [(51, 48.7), (59, 58.1), (61, 59.5), (63, 57.5), (65, 55), (65, 51.4), (65, 50.5)]
STILL = [(51, 48.7)] * 7
AFTER = {"": (HELD, {"ppo_kl": 0.3}),
         "--rated-sources 400": (LATER, {"rated_sources": 400}),
         "--ppo-lr 1e-6": (STILL, {"ppo_lr": 1e-6}),
         "--ppo-samples 4000": (HELD, {"ppo_samples": 4000}), "--ppo-kl 0": (BEFORE, {})}


def test_reward_hacking_tells_a_mended_run_from_one_that_is_not(tmp_path):
    exercise = exercises()["reward-hacking"]
    hacked(tmp_path, "before", BEFORE)
    hacked(tmp_path, "after", *AFTER[""][:1], **AFTER[""][1])
    check = lambda text: exercise.check(text, str(tmp_path / "reward_hacking.py"))
    assert check(exercise.solution()) == (list(exercise.stages), "")
    for mistake in exercise.mistakes:
        mend = re.search(r'mend = "(.*)"', mistake.new)
        rows, settings = AFTER[mend[1] if mend else ""]
        hacked(tmp_path, "after", rows, **settings)
        assert check(exercise.wrong(mistake))[1] == mistake.says
    hacked(tmp_path, "after", [(51, 48.7), *[(56, 48.9)] * 6], ppo_kl=0.3)
    assert "does not rise either" in check(exercise.solution())[1]


def test_own_task_knows_what_cannot_be_trained_on(tmp_path):
    exercise = exercises()["own-task"]
    check = lambda: exercise.check(exercise.solution(), str(tmp_path / "own_task.py"))
    results = tmp_path / "own-task" / "results.json"
    results.parent.mkdir()
    assert "no run yet" in check()[1]
    rows = [{"name": "BC", "reward": 0.4}, {"name": "ReST", "reward": 0.41}]
    results.write_text(json.dumps({"rows": rows}))
    assert "it should gain three points" in check()[1]
    rows[1]["reward"] = 0.8
    results.write_text(json.dumps({"rows": rows}))
    assert check() == (list(exercise.stages), "")
    for mistake in exercise.mistakes:
        assert mistake.says in exercise.check(exercise.wrong(mistake))[1]


plain_pairs = InMemory.pairs


def test_a_class_can_have_its_own_order_of_letters():
    def letters(seed):
        return subprocess.run([sys.executable, "-c", "from course.exercises import bug_hunt; "
                               "print(bug_hunt.LETTERS)"], cwd=ROOT, text=True, check=True,
                              env=os.environ | {"COURSE_SEED": seed}, capture_output=True).stdout

    assert letters("2026") != letters("") and sorted(letters("2026")) == sorted(letters(""))


def run_with(bug, monkeypatch):
    """Two Grows of ReST in memory with a bug in them -> rows, D_g's, and D_eval's scores."""
    D_gs, scores, run, task = [], [], InMemory(), some_task()
    known = {}  # in memory, a run knows the step before alone
    settings = Settings(grow=2, improve=(1,), samples=3, updates=4, evaluate_every=2, seed=3)
    with in_place((bug.function,), bug_hunt.buggy(bug)), monkeypatch.context() as patch:
        held_out, rows = rest.mean_reward, []
        patch.setattr(rest, "mean_reward",
                      lambda *args: scores.append(held_out(*args)) or scores[-1])
        patch.setattr(InMemory, "pairs", lambda self, name: known.setdefault(
            name, plain_pairs(self, name)))
        for row, _, D_g in rest.rest(some_bc(), task, settings, run):
            rows.append(row)
            D_gs.append(D_g)
    return rows, D_gs, scores


def test_each_bug_does_what_its_name_says(monkeypatch):
    done = {name: run_with(bug, monkeypatch) for name, bug in bug_hunt.BUGS.items()}
    D_gs, settings = done["none"][1], Settings()
    assert D_gs[1].human.any() and not done["D dropped"][1][1].human.any()
    stale = done["stale reward"][1]
    assert np.array_equal(stale[2].reward, stale[0].reward)
    assert not np.array_equal(D_gs[2].reward, D_gs[0].reward)
    with in_place(("rest.above",), bug_hunt.buggy(bug_hunt.BUGS["filter turned round"])):
        turned, tau = rest.select(D_gs[1], settings, 1)
    assert D_gs[1].reward[turned].max() < tau
    same = {name: all(row["reward"] in scores for row in rows)
            for name, (rows, _, scores) in done.items()}
    assert same["chosen on test"] and not same["none"]


@pytest.mark.slow
def test_the_hacked_reward_is_hacked_and_its_key_mends_it(tmp_path):
    exercise = exercises()["reward-hacking"]
    exercise.run(tmp_path / "reward-hacking", exercise.solution())
    rows = json.loads((tmp_path / "reward-hacking" / "before" / "results.json").read_text())["rows"]
    parts = [k for k in range(1, 7) if rows[k]["reward"] > rows[k - 1]["reward"]
             and rows[k]["oracle"] < rows[k - 1]["oracle"]]
    assert rows[6]["oracle"] < rows[0]["oracle"] - 0.05  # on any machine
    key = exercise.solution().replace("seen = 2", f"seen = {parts[0]}")  # which row may differ
    passed = exercise.check(key, str(tmp_path / "reward_hacking.py"))
    assert passed == (list(exercise.stages), "")


# ------------------------------------------------------------------------------------- command line


@pytest.fixture
def course(capsys):
    """python -m course, in this process: what it prints, and says at its end."""

    def course(*args, code=0):
        try:
            main(list(map(str, args)))
            end = 0
        except SystemExit as stopped:
            end = stopped.code
        assert bool(end) == bool(code)
        return capsys.readouterr().out + str(end)

    return course


def test_the_program_runs_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, "-m", "course", "--work", tmp_path], text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                          capture_output=True)
    assert done.returncode == 0 and "next: You can clone" in done.stdout


def test_a_students_way_through_an_exercise(course, tmp_path):
    work = "--work", tmp_path
    assert "next: You can clone" in course(*work)
    assert "bc_loss.py" in course("start", "bc-loss", *work)
    assert "is there already" in course("start", "bc-loss", *work, code=1)
    assert "still a hole" in course("check", "bc-loss", *work, code=1)
    assert "1. log_softmax" in course("hint", "bc-loss", *work)
    assert "2. targets[..., None]" in course("hint", "bc-loss", *work)
    file, exercise = tmp_path / "bc_loss.py", exercises()["bc-loss"]
    file.write_text(exercise.wrong(exercise.mistakes[0]), encoding="utf-8")
    said = course("check", "bc-loss", *work, code=1)
    assert "right   one sentence" in said and "padding is counted" in said and "0.5 of 2" in said
    assert "+    return (loss).sum()" in course("solution", "bc-loss", *work)
    file.write_text(exercise.solution(), encoding="utf-8")
    assert "All right: 2 points" in course("check", "bc-loss", *work)
    listed = course(*work)
    assert re.search(r"bc-loss .*done", listed) and "start filters" in listed
    assert "Did you mean gold?" in course("start", "golf", *work, code=1)
    assert "There are bc-loss, filters" in course("start", "xyz", *work, code=1)
    assert "is about no runs" in course("run", "bc-loss", *work, code=1)


def test_watching_checks_again_after_each_change(tmp_path):
    file, exercise = tmp_path / "oac.py", exercises()["oac"]
    file.write_text(exercise.starter(), encoding="utf-8")
    watching = subprocess.Popen([sys.executable, "-u", "-m", "course", "check", "oac", "--watch",
                                 "--work", tmp_path], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        assert any("still a hole" in line for line in iter(watching.stdout.readline, ""))
        file.write_text(exercise.solution(), encoding="utf-8")
        assert any("All right" in line for line in iter(watching.stdout.readline, ""))
    finally:
        watching.kill()


def test_a_class_is_graded_though_some_answers_never_end(course, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_SECONDS", "3")
    bc, oac = exercises()["bc-loss"], exercises()["oac"]
    answers = {"ada": {"bc_loss.py": bc.solution(), "oac.py": oac.wrong(oac.mistakes[0])},
               "bob": {"bc_loss.py": "def bc(*args, **kwargs):\n    while True:\n        pass\n",
                       "oac.py": "import os\nos._exit(3)\n",
                       "filters.py": exercises()["filters"].solution()}}
    for name, files in answers.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text, encoding="utf-8")
    said = course("check", "all", "--work", tmp_path / "ada", tmp_path / "bob", "--junit",
                  tmp_path / "out.xml")
    total = sum(exercise.points for exercise in ALL)
    assert dict(re.findall(rf"(\w+) +(\d+) of {total} points", said)) == {"ada": "2", "bob": "3"}
    suites = ElementTree.parse(tmp_path / "out.xml").getroot()
    failures = {(suite.get("name"), case.get("name")): case.find("failure").get("message")
                for suite in suites for case in suite if case.find("failure") is not None}
    assert failures["bob", "oac"] == "the check ended without a result"
    assert "loop without end" in failures["bob", "bc-loss"]
    assert failures["ada", "oac"] == oac.mistakes[0].says
    assert failures["ada", "gold"] == "not begun" and ("ada", "bc-loss") not in failures


# ------------------------------------------------------------------------------------------ figures


def test_every_figure_of_the_lecturers_page_comes_from_the_command(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    run, problem = tmp_path / "run", train_toy.Language(train_toy.Settings())
    sources = problem.sources(4000, stream("toy sources", 0, 0))
    k, rng = next(i for i, x in enumerate(sources) if len(x) == 9), np.random.default_rng(0)
    outputs = [problem.answer(sources[k])] * 8
    outputs = [np.append(rng.permutation(y[:-1]), EOS) for y in outputs]
    assert len({tuple(y) for y in outputs}) == 8
    D_g = Pairs.of([k] * 8, outputs, reward=np.arange(8) / 8)
    D_g.append_to(run / "steps" / "score-1")
    shutil.copy(ROOT / "docs" / "results" / "toy-0" / "results.json", run)
    monkeypatch.setattr(figures, "demo", lambda folder: run)
    figures.draw(tmp_path / "out", tmp_path)
    made = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert made == {path.stem for path in (tmp_path / "out").glob("*.svg")}
    page = (ROOT / "course" / "README.md").read_text(encoding="utf-8")
    lectures = page[page.index("## Lecture 1") : page.index("## The lab")]
    shown = {name for line in lectures.splitlines() if line.startswith("|")
             for name in re.findall(r"`(\w+)`", line.split("|")[2])} - {"run"}
    assert {"loop", "D_g", "pairs", *figures.MEASURED} <= shown <= made


# ----------------------------------------------------------------------------------- pocket edition


def test_the_pocket_edition_imports_torch_alone_and_fits_on_slides():
    text = (ROOT / "course" / "pocket.py").read_text(encoding="utf-8")
    assert 120 <= len(text.splitlines()) <= 150
    imported = re.findall(r"^(?:import|from) (\w+)", text, flags=re.M)
    assert set(imported) == {"torch"}


@pytest.mark.slow
def test_the_pocket_editions_rewards_rise_step_by_step(capsys):
    rows = pocket.main()
    sampled = np.array([row[1] for row in rows])  # BC, (1,0), (1,1), ...
    assert len(rows) == 8 and (np.diff(sampled[1:]) > 0.01).all()
    assert sampled[-1] > sampled[0] + 0.15
    assert capsys.readouterr().out.count("ReST") == 7
