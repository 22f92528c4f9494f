"""The course's notebook: it is what course/notebook.py makes, and its story holds."""

import ast
import json
import re
from pathlib import Path

import pytest

from course.make_notebook import NOTEBOOK, SOURCE

ROOT = Path(__file__).parent.parent
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]
PRINTED = "\n".join("".join(output["text"]) for output in OUTPUTS if "text" in output)


def test_its_cells_are_those_of_the_source():
    pytest.importorskip("jupytext")
    from course.make_notebook import read
    assert ([(cell.cell_type, cell.source, cell.id) for cell in read().cells]
            == [(cell["cell_type"], "".join(cell["source"]), cell["id"]) for cell in CELLS])


def test_all_of_it_was_run_from_top_to_bottom_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output["output_type"] for output in OUTPUTS} <= {"stream", "display_data"}
    assert {output["name"] for output in OUTPUTS if "name" in output} == {"stdout"}


def test_nothing_of_a_machine_is_in_it():
    text = json.dumps([{**cell, "outputs": [o for o in cell.get("outputs", []) if "text" in o]}
                       for cell in CELLS])
    assert not re.search("warning|Error|/home|/root|/tmp|site-packages", text)
    assert all(cell["metadata"] == {} for cell in CELLS)


def test_it_is_small():
    assert NOTEBOOK.stat().st_size < 600_000
    for cell in CODE:
        lines = [line for output in cell["outputs"] for line in "".join(
            output.get("text", "")).splitlines()]
        assert len(lines) <= 25 and max(map(len, lines), default=0) <= 100
        assert len(json.dumps(cell)) < 80_000  # a picture and its code


def test_its_cells_are_short():
    for cell in CODE:
        assert 3 <= len([line for line in cell["source"] if line.strip()]) <= 12, cell["source"][0]
    for line in SOURCE.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 100


def test_each_section_asks_before_it_shows():
    sections = re.split(r"(?m)^## ", "\n".join(TEXT))[1:]
    numbered = [section for section in sections if section[0].isdigit()]
    assert [int(section.partition(".")[0]) for section in numbered] == list(range(1, 11))
    for section in numbered:
        assert "> Before you run this:" in section, section.partition("\n")[0]


def test_its_text_states_no_number_that_it_does_not_print():
    code = "\n".join("".join(cell["source"]) for cell in CODE)
    for number in re.findall(r"\d+\.\d+|\d+(?= ?%)|\d{3,}", "\n".join(TEXT)):
        assert number in PRINTED or number in code, number


def test_its_story_is_held_by_asserts():
    code = "\n".join("".join(cell["source"]) for cell in CODE)
    asserts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    assert len(asserts) >= 15


@pytest.mark.slow
def test_it_runs_from_empty():
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from course.make_notebook import execute, read
    notebook = execute(read())  # a cell that fails raises
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    kinds = [[output.output_type for output in cell.outputs] for cell in notebook.cells
             if cell.cell_type == "code"]
    assert kinds == [[output["output_type"] for output in cell["outputs"]] for cell in CODE]
