"""A task of one's own, whose outputs can be checked, through the same loop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import train_toy
from course.kit import Mistake, Questions, Wrong, hole, imports, load, source
from model import EOS

SMALL = train_toy.Settings(task="sums", shortest=3, longest=5)  # sizes to try a task with
NEEDED = ("sources", "answer", "demonstrate", "right", "reward", "oracle", "text")


def some(answer, n=40):
    """The task, n sources, and the right answers, if all of them are fit to be trained on."""
    if "OwnTask" not in answer:
        raise Wrong("there is no class OwnTask in it")
    task = answer["OwnTask"](SMALL)
    missing = [name for name in (*NEEDED, "usual", "vocab_size", "max_len", "positions")
               if not hasattr(task, name)]
    if missing:
        raise Wrong(f"OwnTask has no {missing[0]}")
    sources = task.sources(n, np.random.default_rng(0))
    if len(sources) != n:
        raise Wrong(f"sources(n, rng) gave {len(sources)} sources for n = {n}")
    for what, texts, longest in (("a source", sources, task.positions),
                                 ("an answer", [task.answer(x) for x in sources], task.max_len)):
        for ids in texts:
            fit(what, np.asarray(ids), task, longest)
    return task, sources, [task.answer(x) for x in sources]


def fit(what, ids, task, longest):
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise Wrong(f"{what} is no array of ids: {ids!r}")
    if len(ids) == 0 or ids[-1] != EOS or (ids[:-1] <= EOS).any():
        raise Wrong(f"{what} has to end in EOS, and to have no id below 3 before it: {ids}")
    if ids.max() >= task.vocab_size:
        raise Wrong(f"{what} has the id {ids.max()}, but vocab_size is {task.vocab_size}")
    if len(ids) > longest:
        raise Wrong(f"{what} has {len(ids)} ids, eos included, but there is room for {longest}")


def sources_and_answers(answer):
    task, sources, _ = some(answer)
    if len({tuple(x) for x in sources}) < 10:
        raise Wrong("of 40 sources fewer than ten differ: there is too little to learn from")
    again, other = (task.sources(5, np.random.default_rng(seed)) for seed in (0, 1))
    if all(np.array_equal(x, y) for x, y in zip(again, other)):
        raise Wrong("sources() gives the same whatever rng is: draw them from rng")
    return {}


def people(answer):
    task, sources, _ = some(answer, 200)
    rng = np.random.default_rng(1)
    given = [np.asarray(task.demonstrate(x, rng)) for x in sources]
    for ids in given:
        fit("a demonstration", ids, task, task.max_len)
    right = float(np.mean(task.oracle(sources, given)))
    if right > 0.95:
        raise Wrong(f"{right:.0%} of the demonstrations are right: let people make mistakes, or "
                    "ReST has nothing to improve")
    if right < 0.05:
        raise Wrong(f"{right:.0%} of the demonstrations are right: a policy that never sees a "
                    "right one will hardly sample one, and a filter has nothing to keep")
    return {}


def checked(answer):
    """The reward: right for the right answer, and for little else."""
    task, sources, answers = some(answer)
    for name in ("reward", "oracle"):
        values = np.asarray(getattr(task, name)(sources, answers))
        if values.shape != (len(sources),):
            raise Wrong(f"{name}(sources, outputs) has to give a number for each output, an array "
                        f"of shape (n,), not {values.shape}")
        if (values < 0).any() or (values > 1).any():
            raise Wrong(f"{name} gives {values.min():g} to {values.max():g}; it lies in [0, 1]")
        if values.mean() < 0.999:
            raise Wrong(f"{name} gives {values.mean():.2f} to the right answers, not 1")
    for what, outputs in (("empty outputs", [np.array([EOS])] * len(sources)),
                          ("other sources' answers", answers[1:] + answers[:1])):
        value = float(np.mean(task.reward(sources, outputs)))
        if value > 0.5:
            raise Wrong(f"reward gives {value:.2f} to {what}: a policy will find that out")
    return {}


def improved(answer):
    folder = Path(answer["__file__"]).with_name("own-task")
    if not (folder / "results.json").exists():
        raise Wrong("no run yet: python -m course run own-task")
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    rewards = [100 * row["reward"] for row in rows if row["name"] in ("BC", "ReST")]
    if rewards[-1] < rewards[0] + 3:
        raise Wrong(f"ReST ends at a reward of {rewards[-1]:.1f}, BC had {rewards[0]:.1f}: it "
                    "should gain three points. Is BC right now and then, but not always? Then try "
                    "more samples, or more Grows (in `usual`).")
    return {}


def run(folder, text):
    """train_toy.py on the student's task."""
    file = folder.with_name("own_task.py")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)
    out = next(folder / f"run-{k}" for k in range(1, 1000) if not (folder / f"run-{k}").exists())
    subprocess.run([sys.executable, "-m", __name__, file.resolve(), out.resolve()], check=True,
                   cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})
    (folder / "results.json").write_bytes((out / "results.json").read_bytes())


CLASS = source("train_toy.Sums").replace("class Sums:", "class OwnTask:")
HEAD = '''"""A task of your own, through the same loop.

train_toy.py's Sums is an example: its settings (`usual`, flags of train_toy.py), sizes, and methods
stand here as holes, to be filled with another task. Some ideas: sort digits; reverse a word;
balance brackets; the greatest common divisor, step by step. People should be right now and then,
and the reward has to check an output without knowing how it was found.

    python -m course check own-task      # fit to be trained on?
    python -m course run own-task        # trains on it, a minute or two
"""
'''
IMPORTS = imports(("train_toy.Sums",))

EXERCISE = Questions(
    name="own-task",
    goal="You can bring a problem of your own to ReST.",
    functions=(),
    stages={"sources and answers": sources_and_answers, "people": people, "the reward": checked,
            "a run": improved},
    mistakes=(
        Mistake("np.append(3 + rng.integers(1, 6, rng.integers(*self.lengths)), EOS)",
                "3 + rng.integers(1, 6, rng.integers(*self.lengths))",
                "a source has to end in EOS"),
        Mistake("[np.append(3 + rng.integers(1, 6,", "[np.append(3 + np.random.default_rng(0)"
                ".integers(1, 6,", "too little to learn from"),
        Mistake("self.max_len, self.positions = settings.longest + 1",
                "self.max_len, self.positions = settings.longest",
                "eos included, but there is room for 5"),
        Mistake("self.vocab_size = 3 + 6 * settings.longest + 1",
                "self.vocab_size = 3 + settings.longest", "but vocab_size is 8"),
        Mistake("forgotten, slip = 0.7, 0.03", "forgotten, slip = 0.0, 0.0",
                "let people make mistakes"),
        Mistake("forgotten, slip = 0.7, 0.03", "forgotten, slip = 0.7, 1.0",
                "a filter has nothing to keep"),
        Mistake("return np.array([y[-2:].tolist() == self.answer(x)[-2:].tolist()",
                "return np.array([2.0 * (y[-2:].tolist() == self.answer(x)[-2:].tolist())",
                "it lies in [0, 1]"),
        Mistake("return np.array([y[-2:].tolist() == self.answer(x)[-2:].tolist()",
                "return np.array([True", "a policy will find that out"),
    ),
    hints=("Ids 0 to 2 are pad, bos and eos: your symbols begin at 3.",
           "demonstrate(source, rng) is answer(source) with mistakes; draw them from rng.",
           "reward looks at what can be checked, a final answer; oracle at all of it."),
    minutes=60, difficulty=2, points=5, after=("algorithm-1",), run=run,
    form="\n".join([HEAD, IMPORTS, "", hole(CLASS)]), key="\n".join([IMPORTS, "", CLASS]))

if __name__ == "__main__":
    file, out = map(Path, sys.argv[1:])
    train_toy.TASKS["own"] = load(file.read_text(encoding="utf-8"), str(file))["OwnTask"]
    train_toy.main(["--task", "own", "--no-ppo", "--best-of", "4", "--out", str(out)])
