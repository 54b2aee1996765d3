"""Run the notebooks from top to bottom and keep their outputs: `python scripts/run_notebooks.py [--solutions]`.

A notebook is committed with the outputs of its last run, so that figures show where it is read. With `--solutions`
the folded solutions of the exercises run too, each where it stands, and nothing is written: the tests do that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
SOLUTION = re.compile(r"<details>.*?</details>", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the outputs of a fresh kernel; CellExecutionError where a cell fails."""
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}, record_timing=False)
    return client.execute()


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a cell for the code of each folded solution, behind the text that it stands in."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            code = [block for text in SOLUTION.findall(cell.source) for block in PYTHON.findall(text)]
            cells += [nbformat.v4.new_code_cell(block) for block in code]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def main() -> None:
    solutions = "--solutions" in sys.argv
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if solutions:
            run(with_solutions(notebook))
        else:
            nbformat.write(run(notebook), path)
        print(f"{path.name} runs")


if __name__ == "__main__":
    main()
