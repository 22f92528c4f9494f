"""Where things stand: six files that are ReST, and infra/, which knows nothing of them."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIX = {"rest", "model", "losses", "reward", "train_toy", "train_mt"}
OURS = sorted([*ROOT.glob("*.py"), *ROOT.glob("infra/*.py")])
EVERY = sorted(path for kind in ("*.py", "*/*.py", "course/exercises/*.py")
               for path in ROOT.glob(kind))


def imported(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_six_files_stand_at_the_top_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == SIX


@pytest.mark.parametrize("path", sorted(ROOT.glob("infra/*.py")), ids=lambda path: path.name)
def test_infra_knows_neither_the_algorithm_nor_a_program(path):
    known = {name.partition(".")[0] for name in imported(path)}
    assert not known & {"rest", "losses", "train_toy", "train_mt", "experiments", "benchmarks",
                        "course"}


def test_each_concept_knows_only_what_lies_below_it():
    allowed = {"model": set(), "losses": {"model"}, "reward": {"model"},
               "rest": {"model", "losses", "reward"}}
    for name, below in allowed.items():
        known = {module.partition(".")[0] for module in imported(ROOT / f"{name}.py")}
        assert known & SIX <= below, name


def test_only_the_four_packages_are_needed():
    needed = {module.partition(".")[0] for path in OURS for module in imported(path)}
    extras = {"matplotlib", "PIL"}  # imported where they are used, by infra/figures.py
    assert needed - set(sys.stdlib_module_names) - SIX - {"infra"} - extras == {
        "torch", "numpy", "tqdm", "tiktoken"}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_file_says_what_it_is_and_fits_the_page(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert max(map(len, text.split("\n"))) <= 100


def test_the_package_holds_what_the_programs_need():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.search(r"py-modules = \[(.*?)\]", project, flags=re.S)[1]
    assert set(re.findall(r'"(\w+)"', named)) == SIX and '"infra"' in project
