"""The notebooks run from top to bottom, the solutions of their exercises too, and are committed with their figures."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import run_notebooks  # noqa: E402

NOTEBOOKS = {"tutorial": 8, "magnitude": 3}
"""Figures of each."""


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    return request.param


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def figures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_it_runs_and_so_does_every_solution(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = run_notebooks.run(run_notebooks.with_solutions(read(name)))
    assert figures(notebook) == NOTEBOOKS[name]
    noise = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert noise == [], "a reader would see warnings"


def test_every_exercise_has_one_solution_with_code(name):
    texts = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    exercises = [text for text in texts if "**Exercise " in text]
    assert len(exercises) >= 3
    for text in exercises:
        assert text.count("**Exercise ") == len(run_notebooks.SOLUTION.findall(text)) == text.count("```python")


def test_it_is_committed_as_it_ran_last(name):
    notebook = read(name)
    assert figures(notebook) == NOTEBOOKS[name]
    assert [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"] == []
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "cells were run out of order"
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 300_000
