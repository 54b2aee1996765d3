"""What a study says: one table of all results, numbers over seeds, what holds in how many cells, LaTeX and a page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.files import replacing, writing
from refusal_cmp.study.receipts import Receipt, read_receipt
from refusal_cmp.study.spec import Cell, Study

PAGE, LATEX, MADE = "report/index.html", "report/tables.tex", "report/made.json"
"""The page, the tables for a paper, and what both were made from."""


def write_report(study: Study, home: Path) -> Path:
    """Write everything that the finished cells say, unless it is there for just these; the page.

    Raises
    ------
    RefusalCmpError
        If no cell is finished, or the results of one are not what it wrote.
    """
    cells, receipts = _finished(study, home)
    if not cells:
        raise RefusalCmpError(f"No cell of {home} is finished; run the study first.")
    made = _made_from(study, cells, receipts)
    if _is_fresh(home, made):
        return home / PAGE
    from refusal_cmp.study.report.collect import POOLED
    from refusal_cmp.study.report.latex import latex
    from refusal_cmp.study.report.page import page
    from refusal_cmp.study.report.tables import read_tables

    with writing(home / PAGE):
        (home / PAGE).parent.mkdir(parents=True, exist_ok=True)
    found = read_tables(study, home, cells, receipts, home / POOLED)
    for name, text in ((LATEX, latex(found)), (PAGE, page(found)), (MADE, json.dumps(made) + "\n")):
        with writing(home / name), replacing(home / name) as file:
            file.write(text.encode())
    return home / PAGE


def _finished(study: Study, home: Path) -> tuple[list[Cell], dict[str, Receipt]]:
    """The cells that are done, in the order of the file, with their receipts, which are kept without the standings."""
    cells, receipts = [], {}
    for cell in study.cells:
        receipt = read_receipt(home / cell.label, standings=False)
        if receipt is not None and receipt.stands(cell, study.until, home / cell.label):
            cells.append(cell)
            receipts[cell.label] = receipt
    return cells, receipts


def _made_from(study: Study, cells: Sequence[Cell], receipts: dict[str, Receipt]) -> dict[str, str | int]:
    """All that the report depends on, as a hash."""
    content: list[object] = [study.name, study.until, len(study.cells), version("refusal-cmp")]
    content += [[cell.label, receipts[cell.label].results[1]] for cell in cells]
    return {"from": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24], "cells": len(cells)}


def _is_fresh(home: Path, made: dict[str, str | int]) -> bool:
    try:
        before = json.loads((home / MADE).read_bytes())
    except (OSError, ValueError):
        return False
    return before == made and all((home / name).is_file() for name in (PAGE, LATEX, "study.csv"))
