"""The tables of a study, from one pass over its cells: plans × subjects by measurement, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from refusal_cmp.report.latex import METRICS
from refusal_cmp.report.table import PART, Column, columns
from refusal_cmp.run.files import replacing, writing
from refusal_cmp.statistics import Estimate
from refusal_cmp.study.receipts import Receipt, read_receipt
from refusal_cmp.study.report.collect import FACTS, Subject, line, subjects
from refusal_cmp.study.report.conclusions import Conclusions
from refusal_cmp.study.spec import Cell, Study

WIDEST = 12
"""Subjects that stand in columns of their own; of more, tables have the mean over all of them and the ends."""


@dataclass
class OverSubjects:
    """A number of a plan over all subjects."""

    total: float = 0.0
    n: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """One more subject."""
        self.total, self.n = self.total + value, self.n + 1
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def mean(self) -> float:
        """The plain mean: subjects were chosen, and are no sample."""
        return self.total / self.n


@dataclass
class Tables:
    """All that the page and the LaTeX say."""

    study: Study
    cells: Sequence[Cell]
    """Those that are done."""
    conclusions: Conclusions = field(default_factory=Conclusions)
    subjects: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """How many each subject has."""
    plans: dict[str, None] = field(default_factory=dict)
    """In the order of the results."""
    numbers: dict[tuple[Column, str], dict[str, Estimate]] = field(default_factory=dict)
    """By column and plan: those of the first subjects, by subject."""
    over: dict[tuple[Column, str], OverSubjects] = field(default_factory=dict)

    @property
    def is_wide(self) -> bool:
        """Whether there are more subjects than a table has columns for."""
        return len(self.subjects) > WIDEST

    def columns(self) -> list[Column]:
        """The measurements that have a table, in the order in which they are read."""
        found: dict[Column, float] = {}
        for (column, _), one in self.over.items():
            found[column] = max(found.get(column, -math.inf), one.high)
        rows = [{"dataset": column.dataset, "metric": column.metric, "value": value} for column, value in found.items()]
        return columns(pd.DataFrame(rows, columns=["dataset", "metric", "value"]))

    def add(self, subject: Subject) -> None:
        """Keep what tables show of a subject."""
        self.subjects.append(subject.label)
        self.seeds.append(subject.seeds)
        for row, (plan, dataset, metric) in enumerate(subject.keys):
            self.plans.setdefault(plan)
            value = float(subject.mean[row])
            if metric.partition(":")[0] not in METRICS or PART in dataset or math.isnan(value):
                continue
            key = (Column(dataset, metric), plan)
            self.over.setdefault(key, OverSubjects()).add(value)
            if len(self.subjects) <= WIDEST:
                self.numbers.setdefault(key, {})[subject.label] = subject.estimate(row)


def read_tables(
    study: Study, home: Path, cells: Sequence[Cell], receipts: Mapping[str, Receipt], pooled: Path
) -> Tables:
    """One pass over all cells; `study.csv` and the numbers over seeds are written on the way."""
    found = Tables(study, cells)
    for cell in cells:
        receipt = read_receipt(home / cell.label)
        if receipt is not None:
            found.conclusions.add(cell.config.model, cell.subject, receipt.standings)
    axes = [axis for axis in study.axes if axis != "seed"]
    named = study.is_named
    head = ["subject", *(["cell_name"] if named else []), *(f"cell_{axis}" for axis in axes)]
    head += [*FACTS, "n_seeds", "dataset", "metric", "value", "sd", "ci_low", "ci_high", "n"]
    with writing(pooled), replacing(pooled) as table:
        table.write((",".join(head) + "\n").encode())
        for subject in subjects(study, home, cells, receipts):
            found.add(subject)
            _write(table, subject, axes, named)
    return found


def _write(table: BinaryIO, subject: Subject, axes: Sequence[str], named: bool) -> None:
    cell = subject.cell
    start = line([subject.label, *([cell.name] if named else []), *(cell.keys.get(axis) for axis in axes)])
    for row, (_, dataset, metric) in enumerate(subject.keys):
        one = [subject.mean[row], subject.sd[row], subject.low[row], subject.high[row]]
        numbers = ["" if math.isnan(value) else f"{value:.12g}" for value in one]
        rest = line([*subject.facts[row], subject.n_seeds[row], dataset, metric, *numbers, subject.n[row]])
        table.write(f"{start},{rest}\n".encode())
