"""Executes course/notebook.py from empty, and writes course/rest.ipynb with what came out.

    python -m course notebook        # one to two minutes on an idle core; needs the extra `course`

What differs from run to run, or from machine to machine, is left out: ids, times, versions, and
all that went to stderr (bars). A cell that fails, an assert among them, ends it, and nothing is
written.
"""

from pathlib import Path

HERE = Path(__file__).parent
SOURCE, NOTEBOOK = HERE / "notebook.py", HERE / "rest.ipynb"
SECONDS = 600  # that a cell may take


def read():
    """The notebook as notebook.py has it, without outputs."""
    import jupytext
    notebook = jupytext.read(SOURCE)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                        "language": "python"}, "language_info": {"name": "python"}}
    for k, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"cell-{k}", {}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook):
    """Run all cells, in this repository whether it is installed or not, and tidy what came out."""
    from nbclient import NotebookClient
    resources = {"metadata": {"path": str(HERE.parent)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources,
                   record_timing=False, coalesce_streams=True,
                   extra_arguments=["--log-level=ERROR"]).execute()  # the kernel's own
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def build():
    import nbformat
    notebook = execute(read())
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {len(notebook.cells)} cells, {NOTEBOOK.stat().st_size // 1000} kB")


if __name__ == "__main__":
    build()
