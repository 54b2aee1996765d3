"""The README's table tables say what the committed runs say."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]
RUNS = ("tiny-refuser", "smol-refuser")
"""The committed runs, in the order of the README's tables."""
MEANS = {
    "refuses harmful": "harmful_refusal",
    "refuses harmless": "harmless_refusal",
    "refuses what only sounds harmful": "contrast_refusal",
    "unsafe by the guard": "harmful_guard_unsafe",
    "no language": "in_language",
    "loss, answers": ("tiny-answers_loss", "everyday-answers_loss"),
    "accuracy, questions": ("world_cloze_acc", "everyday_questions_acc"),
}
"""Columns of the README, and of `report/summary.csv`: one name, or one for each run."""
TABLE = re.compile(r"^\| plan \|.*(?:\n\|.*)+", re.MULTILINE)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("run", RUNS)
def test_every_number_is_that_of_the_run(run):
    tables = TABLE.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(tables) == len(RUNS)
    summary = pd.read_csv(REPOSITORY / "runs" / run / "report/summary.csv").set_index("plan")
    head, _, *rows = tables[RUNS.index(run)].splitlines()
    assert len(rows) > 8
    for row in rows:
        plan, *shown = cells(row)
        for heading, text in zip(cells(head)[1:], shown, strict=True):
            column = MEANS[heading]
            value = summary.loc[plan.strip("`"), column if isinstance(column, str) else column[RUNS.index(run)]]
            value = 1 - value if heading == "no language" else value
            assert text == (f"{value:.2f}" if heading.startswith("loss") else f"{value:.0%}"), (plan, heading)
