"""A bug hunt: five runs of ReST, four of them silently wrong.

Nothing fails, no warning is printed. A bug is an edit of the project's source, put in its place for
one run.

    python -m course.exercises.bug_hunt A FOLDER --resume    # goes on from a run whose BC is done
    python -m course.exercises.bug_hunt A FOLDER --show 3    # pairs, as the run's own filter chose
"""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from course.kit import Mistake, Questions, Wrong, in_place, imports, load, source

FLAGS = "--preset quick --no-ppo --grow 2 --improve 3 2 --best-of 1".split()


@dataclass
class Bug:
    function: str
    old: str
    new: str
    clue: str


BUGS = {
    "none": Bug("rest.above", "", "",
                "compare its kept pairs, its rewards and its evaluations with what Algorithm 1 "
                "says, step by step."),
    "filter turned round": Bug(
        "rest.above", "else reward > tau", "else reward < tau",
        "look at which pairs an Improve keeps (--show 3), and at the reward after it."),
    "D dropped": Bug(
        "rest.grow", '([] if settings.human_data == "out" else [task.data])', "[]",
        "look at what D_g is made of: the column D kept, and human and sample in --show 3."),
    "stale reward": Bug(
        "rest.grow", "run.add(score(part, task.sources, task.reward))",
        "old = None if g == 1 else run.pairs('score-1')\n"
        "        run.add(score(part, task.sources, task.reward) if g == 1 else\n"
        "                replace(part, reward=old.reward[old.human == part.human[0]]))",
        "compare the two Grows: does a pair's reward in Grow 2 (--show 3) say how good it is?"),
    "chosen on test": Bug(
        "rest.mean_reward", 'policy, task.eval_sources, 1, ("D_eval",',
        'policy, (task := replace(task, eval_sources=task.test_sources)).eval_sources, 1, ("test",',
        "compare the evaluations in metrics.jsonl with the reward in the table, digit for digit."),
}
SEED = os.environ.get("COURSE_SEED", "")  # a class may have its own order
# which letter is which bug, not to be seen at a glance
LETTERS = dict(zip("ABCDE", sorted(
    BUGS, key=lambda name: hashlib.sha256((name + SEED).encode()).digest())))


def buggy(bug):
    """The function with the bug in it, by name, for `in_place`."""
    text = imports((bug.function,)) + "\nfrom dataclasses import replace\n" + source(bug.function)
    if bug.old and text.count(bug.old) != 1:
        raise ValueError(f"{bug.function} does not have {bug.old!r} once")
    return load(text.replace(bug.old, bug.new), bug.function)


def run_one(letter, folder, *flags):
    """The run of a letter, from the run in `folder` on, in this process."""
    import train_toy
    bug = BUGS[LETTERS[letter]]
    with in_place((bug.function,), buggy(bug)):
        train_toy.main([*FLAGS, "--out", str(folder), *flags])


def run_all(folder, answer=""):
    """The five runs, in folder/A to folder/E, from one BC policy."""
    root, base = Path(__file__).parents[2], folder / "start"
    train = [sys.executable, root / "train_toy.py", *FLAGS, "--out", base, "--resume",
             "--stop-after", "evaluate-bc"]
    subprocess.run(train, check=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"},
                   stdout=subprocess.DEVNULL)
    print("BC and the reward model, which all runs share, are done; now five runs")
    for letter in LETTERS:
        if not (folder / letter / "results.json").exists():
            shutil.copytree(base, folder / letter, dirs_exist_ok=True)
            with open(folder / f"{letter}.txt", "w", encoding="utf-8") as file:
                one = [sys.executable, "-m", "course.exercises.bug_hunt", letter, folder / letter]
                subprocess.run([*one, "--resume"], cwd=root, check=True, stdout=file,
                               stderr=subprocess.STDOUT)
        print(f"run {letter}: {os.path.relpath(folder / letter)}.txt has its table", flush=True)
    print("Look, then fill in the answers, and: python -m course check bug-hunt")


def guess(letter, answer):
    """A stage: the answer to one letter."""
    given = answer.get("answers", {}).get(letter)
    if not given:
        raise NotImplementedError
    if given not in BUGS:
        raise Wrong(f"{letter}: {given!r} is none of {', '.join(BUGS)}")
    if given != LETTERS[letter]:
        raise Wrong(f"{letter} is not {given!r}: {BUGS[LETTERS[letter]].clue}")
    return {letter: given}


FORM = f'''"""Five runs of ReST, of one BC policy. One is right, and four are silently wrong.

    python -m course run bug-hunt     # makes them, in about two minutes, beside this file

bug-hunt/A.txt has the table of run A, its rewards on test sources. Its kept and dropped pairs:

    python -m course.exercises.bug_hunt A course/work/bug-hunt/A --show 3

bug-hunt/A/metrics.jsonl has a line for each event. Those of a training are evaluations: "score" is
the mean reward on D_eval, by which the best checkpoint of an Improve is chosen; a "row" is a line
of the table. Fill in, for each run, one of
{', '.join(map(repr, BUGS))}.
"""

answers = {{"A": "", "B": "", "C": "", "D": "", "E": ""}}
'''


def filled_in(names):
    return f"answers = {dict(zip('ABCDE', names))}\n"


def exchanged():
    """Mistakes: for each bug, its letter's answer changed to the one after it."""
    names = list(LETTERS.values())
    for k, letter in enumerate(LETTERS):
        other = names[(k + 1) % len(names)]
        yield Mistake(f"'{letter}': '{names[k]}'", f"'{letter}': '{other}'",
                      f"{letter} is not {other!r}: {BUGS[names[k]].clue}")


EXERCISE = Questions(
    name="bug-hunt",
    goal="You can tell from its curves and its pairs when ReST is silently wrong.",
    functions=(),
    stages={f"run {letter}": partial(guess, letter) for letter in LETTERS},
    mistakes=tuple(exchanged()),
    hints=("Compare the tables first: which run has what no other has?",
           "Then --show 3: what is kept, what is dropped, and which of them are human?",
           "Then metrics.jsonl: the evaluations on which each best checkpoint is chosen."),
    minutes=40, difficulty=2, points=5, after=("algorithm-1",), run=run_all,
    form=FORM, key=filled_in(LETTERS.values()))

if __name__ == "__main__":
    run_one(sys.argv[1], *sys.argv[2:])
