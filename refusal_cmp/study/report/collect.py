"""The results of every cell, read once and in order: one table of all, and the numbers of every subject over its seeds.

A *subject* is what seeds are repetitions of: the cells that differ in nothing but the seed. One is in memory at a time.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Measure, measure_of
from refusal_cmp.run.files import replacing, writing
from refusal_cmp.statistics import Estimate, over_seeds_many
from refusal_cmp.study.receipts import RESULTS, Receipt
from refusal_cmp.study.spec import Cell, Study

TABLE, POOLED = "study.csv", "report/over_seeds.csv"
"""All results with the keys of their cells; and every number of every subject over its seeds."""
FACTS = ("model", "plan", "method", "k", "intervention", "strength", "scope", "n_components", "n_layers", "direction")
NUMBERS = ("value", "ci_low", "ci_high")
Array = np.ndarray
Key = tuple[str, str, str]
"""Plan, dataset, metric."""


@dataclass(frozen=True)
class Subject:
    """A model under some settings, over seeds."""

    label: str
    cell: Cell
    """One of its cells."""
    seeds: int
    facts: Sequence[tuple[str, ...]]
    """By row: `FACTS` as results have them; what differs from seed to seed is left out."""
    keys: Sequence[Key]
    mean: Float[Array, " rows"]
    low: Float[Array, " rows"]
    high: Float[Array, " rows"]
    sd: Float[Array, " rows"]
    n: Int[Array, " rows"]
    n_seeds: Int[Array, " rows"]
    """Seeds that have the number."""

    def estimate(self, row: int) -> Estimate:
        """A row's number with its interval."""
        return Estimate(float(self.mean[row]), float(self.low[row]), float(self.high[row]), int(self.n[row]))


@dataclass(frozen=True)
class _Results:
    header: list[str]
    lines: list[str]
    """As the run has them."""
    rows: list[list[str]]
    """With calibrated plans called by their budget: strengths differ from seed to seed."""


def subjects(study: Study, home: Path, done: Sequence[Cell], receipts: Mapping[str, Receipt]) -> Iterator[Subject]:
    """Every subject in the order of the file; meanwhile `study.csv` is written, which takes its place at the end."""
    families: dict[str, list[Cell]] = {}
    for cell in done:
        families.setdefault(cell.subject, []).append(cell)
    axes, named = study.axes, study.is_named
    head = ["cell", *(["cell_name"] if named else []), *(f"cell_{axis}" for axis in axes)]
    header: list[str] | None = None
    with writing(home / TABLE), replacing(home / TABLE) as table:
        for label, cells in families.items():
            results = []
            for cell in cells:
                one = _read(home / cell.label, receipts[cell.label])
                if header is None:
                    header = one.header
                    table.write((",".join([*head, *header]) + "\n").encode())
                if one.header != header:
                    raise RefusalCmpError(
                        f"{home / cell.label / RESULTS} has other columns than the other cells' results: it is of "
                        "another version; run that cell again, in a new folder."
                    )
                start = line([cell.label, *([cell.name] if named else []), *(cell.keys.get(axis) for axis in axes)])
                table.write("".join(f"{start},{row}\n" for row in one.lines).encode())
                results.append(one)
            yield _pooled(label, cells[0], results)


def line(cells: Sequence[object]) -> str:
    """Cells of a CSV file; what is no text and no number as JSON."""
    return ",".join(map(_cell, cells))


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = json.dumps(value) if isinstance(value, bool | list | dict) else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


def _read(path: Path, receipt: Receipt) -> _Results:
    try:
        content = (path / RESULTS).read_bytes()
    except OSError as error:
        raise RefusalCmpError(f"Cannot read {path / RESULTS}: {error.strerror}; run the study again.") from None
    if hashlib.sha256(content).hexdigest()[:16] != receipt.results[1]:
        raise RefusalCmpError(
            f"{path / RESULTS} is not what the cell wrote there: it is damaged or was made again; delete the "
            f"{path / 'cell.json'} beside it and run the study again."
        )
    head, *lines = content.decode().splitlines()
    header, rows = head.split(","), list(csv.reader(lines))
    plan = header.index("plan")
    for row in rows:
        row[plan] = receipt.called.get(row[plan], row[plan])
    return _Results(header, lines, rows)


@cache
def measure(metric: str) -> Measure:
    """What a metric is."""
    return measure_of(metric)


def _pooled(label: str, cell: Cell, results: Sequence[_Results]) -> Subject:
    """The numbers over seeds, with the hierarchical interval: prompts within seeds."""
    header = results[0].header
    at = {name: header.index(name) for name in (*FACTS, "dataset", "metric", *NUMBERS, "n")}
    tables = [{(row[at["plan"]], row[at["dataset"]], row[at["metric"]]): row for row in one.rows} for one in results]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    present = np.array([[key in table for key in keys] for table in tables])
    columns = np.full((4, len(tables), len(keys)), np.nan)
    for seed, table in enumerate(tables):
        for index, name in enumerate((*NUMBERS, "n")):
            columns[index, seed] = [float(table[key][at[name]] or "nan") if key in table else np.nan for key in keys]
    facts = []
    for key in keys:
        found = [tuple(table[key][at[name]] for name in FACTS) for table in tables if key in table]
        facts.append(tuple(values[0] if len(set(values)) == 1 else "" for values in zip(*found, strict=True)))
    measures = [measure(metric) for *_, metric in keys]
    share = np.array([one.unit == "share" for one in measures])
    positive = np.array([one.positive for one in measures])
    mean, low, high, sd = _over(columns[:3], present, positive)
    for row in np.flatnonzero(share | np.array([one.limits != (-np.inf, np.inf) or one.positive for one in measures])):
        one = measures[row].within(Estimate(mean[row], low[row], high[row], 0))
        low[row], high[row] = one.low, one.high
    n = np.where(present, columns[3], np.inf).min(0)
    n = np.where(np.isfinite(n), n, 0).astype(int)
    return Subject(label, cell, len(results), facts, keys, mean, low, high, sd, n, present.sum(0))


def _over(
    columns: Float[Array, "3 seeds rows"], present: Bool[Array, "seeds rows"], positive: Bool[Array, " rows"]
) -> tuple[Array, Array, Array, Array]:
    """The mean, the ends and the spread of every row, over the seeds that have it."""
    found = np.full((4, columns.shape[2]), np.nan)
    patterns = np.unique(present, axis=1).T
    for pattern in patterns:
        rows = (present == pattern[:, None]).all(0)
        some = columns[:, pattern][:, :, rows]
        if pattern.sum() == 1:  # one seed: its own interval
            found[:3, rows] = some[:, 0]
            continue
        none = np.zeros(int(rows.sum()), dtype=bool)
        found[:, rows] = over_seeds_many(some[0], some[1], some[2], none, positive[rows])
    return found[0], found[1], found[2], found[3]
