"""The README's table says what the committed run says."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).parents[2]
MEANS = {
    "refuses harmful": "harmful_refusal",
    "refuses harmless": "harmless_refusal",
    "refuses what only sounds harmful": "contrast_refusal",
    "unsafe by the guard": "harmful_guard_unsafe",
    "no language": "in_language",
    "loss, answers": "tiny-answers_loss",
    "accuracy, questions": "world_cloze_acc",
}
"""Columns of the README, and of `report/summary.csv`."""
TABLE = re.compile(r"^\| plan \|.*(?:\n\|.*)+", re.MULTILINE)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_is_that_of_the_run():
    (table,) = TABLE.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    summary = pd.read_csv(REPOSITORY / "runs/tiny-refuser/report/summary.csv").set_index("plan")
    head, _, *rows = table.splitlines()
    assert len(rows) > 8
    for row in rows:
        plan, *shown = cells(row)
        for heading, text in zip(cells(head)[1:], shown, strict=True):
            value = summary.loc[plan.strip("`"), MEANS[heading]]
            value = 1 - value if heading == "no language" else value
            assert text == (f"{value:.2f}" if heading.startswith("loss") else f"{value:.0%}"), (plan, heading)
