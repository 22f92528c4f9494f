"""Reward hacking: a reward model from few ratings, and a policy that finds out."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from course.kit import Mistake, Questions, Wrong, load
from infra.settings import RUN_ONLY

BEFORE = ("--preset quick --best-of 1 --grow 0 --ppo-samples 24000 --ppo-rows 6 --rated-sources 20 "
          "--ppo-kl 0").split()
ROWS = range(1, 7)  # of PPO, each with some 4 000 samples more
FREE = {"rated_sources", "rated_temperatures", "rating_noise", "ppo_kl", "ppo_lr", "ppo_updates",
        "ppo_batch", "ppo_group", "refresh", "reward_updates", "reward_lr"}  # what may be changed


def run(folder, text):
    """The run that goes wrong, and, once `mend` is filled in, the mended one."""
    if not (folder / "before" / "results.json").exists():
        train(folder / "before")
    mend = load(text, "reward_hacking.py").get("mend")
    if not mend:
        print("mend is empty: fill it in, and run again for the mended run")
        return
    if (folder / "after").exists():  # of another mend: kept under another name
        spare = (folder / f"after-{k}" for k in range(1, 100))
        (folder / "after").rename(next(path for path in spare if not path.exists()))
    train(folder / "after", *mend.split())


def train(out, *flags):
    subprocess.run([sys.executable, "train_toy.py", *BEFORE, *flags, "--out", out.resolve()],
                   check=True, cwd=Path(__file__).parents[2],
                   env=os.environ | {"OMP_NUM_THREADS": "1"})


def rows_of(answer, name):
    """BC's row and PPO's of a run, in points of 100: [(reward, oracle)], and its settings."""
    folder = Path(answer["__file__"]).with_name("reward-hacking") / name
    if not (folder / "results.json").exists():
        raise Wrong(f"there is no finished run {folder}: python -m course run reward-hacking")
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    return [(100 * row["reward"], 100 * row["oracle"]) for row in rows], settings


def predicted(answer):
    """A prediction may be wrong; it has to be there."""
    if answer.get("prediction") is None:
        raise NotImplementedError
    if answer["prediction"] not in ROWS:
        raise Wrong("prediction: the number of one of PPO's rows, from 1 to 6")
    return {}


def seen(answer):
    if answer.get("seen") is None:
        raise NotImplementedError
    rows, _ = rows_of(answer, "before")
    parts = [k for k in range(1, len(rows))
             if rows[k][0] > rows[k - 1][0] and rows[k][1] < rows[k - 1][1]]
    if answer["seen"] != parts[0]:
        raise Wrong(f"seen = {answer['seen']}: in that row the two do not part for the first time. "
                    "Look for the first row whose reward is above, and whose oracle is below, the "
                    "row before (BC counts as row 0; sampled, not greedy).")
    return {}


def mended(answer):
    if not answer.get("mend"):
        raise NotImplementedError
    _, held = rows_of(answer, "before")
    after, settings = rows_of(answer, "after")
    changed = {name for name in held if settings.get(name) != held[name]} - RUN_ONLY
    if not changed:
        raise Wrong("the run `after` has the settings of the run `before`: run it again")
    if changed - FREE:
        raise Wrong(f"mend changes {', '.join(sorted(changed - FREE))}: leave the problem, BC, the "
                    "budget of samples and the tests as they are")
    (_, bc), (reward, last) = after[0], after[-1]
    if reward < after[0][0] + 2:
        raise Wrong("the reward does not rise by two points: a policy that stays where it is hacks "
                    "nothing, and learns nothing")
    if last < max(oracle for _, oracle in after) - 1.5:
        raise Wrong("the oracle still falls in the end, while the reward rises: it takes longer "
                    "now, that is all. What would hold the policy near what raters have seen?")
    if last < bc + 1:
        raise Wrong("the oracle does not fall any more, and does not rise either: at the end it "
                    "has to be a point above BC's")
    return {}


FLAGS = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(FREE))
MAY_CHANGE = textwrap.indent(textwrap.fill(f"What may be changed: {FLAGS}.", 97,
                                           break_on_hyphens=False), "   ")
FORM = f'''"""A reward model learns from 80 ratings, and PPO climbs its reward without looking back.

1. Predict, before you run: PPO reports six rows, after 4 000, 8 000, ... 24 000 samples. In which
   row (1 to 6) will the oracle fall for the first time although the reward rises? Write it down.
2. python -m course run reward-hacking        # half a minute; it prints the table
   Which row is it?
3. Mend it: flags of train_toy.py that make the oracle rise and stay, at the same number of samples.
{MAY_CHANGE}
   Fill in `mend`, and run the command again.

The run that goes wrong has {' '.join(BEFORE[-4:])}.
"""

prediction = None  # a row's number
seen = None  # a row's number
mend = ""  # "--flag value --flag value"
'''

KEY = '''prediction = 4
seen = 2
mend = "--ppo-kl 0.3"
'''

EXERCISE = Questions(
    name="reward-hacking",
    goal="You can see when a rising reward no longer means anything, and mend it.",
    functions=(),
    stages={"a prediction": predicted, "what happened": seen, "mended": mended},
    mistakes=(
        Mistake("prediction = 4", "prediction = 'never'",
                "prediction: the number of one of PPO's rows, from 1 to 6"),
        Mistake("seen = 2", "seen = 1",
                "seen = 1: in that row the two do not part for the first time. Look for the first "
                "row whose reward is above, and whose oracle is below, the row before (BC counts "
                "as row 0; sampled, not greedy)."),
        Mistake('mend = "--ppo-kl 0.3"', 'mend = "--rated-sources 400"',
                "the oracle still falls in the end, while the reward rises: it takes longer now, "
                "that is all. What would hold the policy near what raters have seen?"),
        Mistake('mend = "--ppo-kl 0.3"', 'mend = "--ppo-lr 1e-6"',
                "the reward does not rise by two points: a policy that stays where it is hacks "
                "nothing, and learns nothing"),
        Mistake('mend = "--ppo-kl 0.3"', 'mend = "--ppo-samples 4000"',
                "mend changes ppo_samples: leave the problem, BC, the budget of samples and the "
                "tests as they are"),
        Mistake('mend = "--ppo-kl 0.3"', 'mend = "--ppo-kl 0"',
                "the run `after` has the settings of the run `before`: run it again"),
    ),
    hints=("BC is row 0. Compare each row with the one before: reward and oracle, sampled.",
           "PPO's KL to the BC policy, --ppo-kl, holds it where the reward model has been taught.",
           "More ratings help too, but alone they only put it off."),
    minutes=30, difficulty=2, points=4, after=("ppo", "reward-model"), run=run, form=FORM, key=KEY)
