"""The code of README.md and docs/own.md, run as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_train_mt import ENVIRONMENT
from test_train_toy import TINY

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")


def blocks(kind, text=README):
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.S)


def test_the_example_prints_what_the_readme_says(capsys):
    code, = blocks("python")
    assert len(code.splitlines()) < 36
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.strip().splitlines()
    promised = README.split(code)[1].removeprefix("```").strip("\n").split("\n\n")[0].splitlines()
    assert len(printed) == 5 and printed[4] == promised[4].strip()
    number = re.compile(r"\d+(?:\.\d+)?")
    for line, other in zip(printed[:4], promised):  # another machine rounds otherwise
        assert number.sub("", line) == number.sub("", other.strip())
        for a, b in zip(map(float, number.findall(line)), map(float, number.findall(other))):
            assert abs(a - b) <= max(0.12 * b, 0.03), (line, other)
    rewards = [float(line.rpartition(" ")[2]) for line in printed[:3]]
    assert rewards[0] + 0.05 < rewards[1] and rewards[1] + 0.03 < rewards[2]


def patch(folder, diff):
    """Apply a diff whose hunks have no line numbers: each line that is not new is found by itself.
    """
    name, *lines = diff.splitlines()
    path = folder / name.removeprefix("--- a/")
    text, added, at = path.read_text(encoding="utf-8").splitlines(), [], None
    for line in lines:
        mark, line = line[:1], line[1:]
        if mark == "+" and at is None:
            added.append(line)
        elif mark == "+":
            text.insert(at, line)
            at += 1
        else:
            assert text.count(line) == 1, line
            at = text.index(line)
            text[at : at + (mark == "-")] = added
            at += len(added) + (mark != "-")
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_a_loss_a_filter_and_a_task_of_ones_own_are_a_few_lines_each(tmp_path):
    diffs = blocks("diff", OWN)
    assert len(diffs) == 3
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("__*__"))
    for diff in diffs:
        assert len(diff.splitlines()) <= 11  # ten, and the file's name
        patch(tmp_path, diff)

    done = subprocess.run([sys.executable, "train_toy.py", *TINY, "--no-ppo", "--loss", "weighted",
                           "--filter", "zscore", "--task", "reversed", "--grow", "1", "--improve",
                           "1", "--best-of", "1", "--out", "run"],
                          cwd=tmp_path, text=True, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "WEIGHTED (1,1)" in done.stdout
