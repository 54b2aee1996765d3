"""The summary: a row per plan, a column per measurement."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from refusal_cmp.config import CONTRAST, KINDS
from refusal_cmp.evals import Measure, all_measures, measure_of
from refusal_cmp.report.wording import shown

PLAN = ["method", "intervention", "strength", "scope", "n_components", "n_layers"]
PART = ":"
"""Datasets with a colon are a part of one: `harmful:fraud`."""
DATASETS = (*KINDS, CONTRAST)
"""In the order of columns; others follow by name."""


@dataclass(frozen=True)
class Column:
    """A measurement of every plan."""

    dataset: str
    """Nothing for all test sets together."""
    metric: str

    @cached_property
    def measure(self) -> Measure:
        """What is measured."""
        return measure_of(self.metric)

    @property
    def name(self) -> str:
        """Of the column in `report/summary.csv`: `harmful_refusal`."""
        return f"{self.dataset}_{self.metric}" if self.dataset else self.metric

    @property
    def heading(self) -> str:
        """What it is measured on."""
        return self.dataset.replace("_", " ")

    def text(self, value: float) -> str:
        """A value as people read it."""
        return shown(value, self.measure.unit)


POOLED = ("in_language", "degenerate")
"""Metrics that also have a column for all test sets together."""


def language_column(results: pd.DataFrame) -> Column:
    """How much is language over all test sets together; where that was not asked, how much says nothing."""
    return Column("", next((metric for metric in POOLED if (results["metric"] == metric).any()), POOLED[-1]))


def columns(results: pd.DataFrame) -> list[Column]:
    """The columns of the summary, in the order in which they are read; redundant and empty ones are left out."""
    whole = results[~results["dataset"].str.contains(PART)]
    values = {
        Column(str(dataset), str(metric)): of_column
        for (dataset, metric), of_column in whole.groupby(["dataset", "metric"])["value"]
    }
    order = all_measures()

    def place(column: Column) -> tuple[int, str, int, str]:
        of_measure = order.index(column.measure) if column.measure in order else len(order)
        of_dataset = DATASETS.index(column.dataset) if column.dataset in DATASETS else len(DATASETS)
        return of_measure, column.metric, of_dataset, column.dataset

    return sorted((one for one in values if _says_something(one, values[one], values)), key=place)


def _says_something(column: Column, values: pd.Series, there: Container[Column]) -> bool:
    """Whether a column belongs into the summary, by what its metric is and by what was measured."""
    measure = column.measure
    if measure.shown == "never" or measure.only_on not in ("", column.dataset):
        return False
    if Column(column.dataset, measure.same_as) in there or values.isna().all():
        return False
    return measure.shown == "always" or bool((values > 0).any())


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The tidy results as one row per plan, in their order: `harmful_refusal`, …, `tiny-answers_loss`, …

    Parts of test sets are left out. The columns of `POOLED` without a test set are the shares over all of them.
    """
    labels = list(results["plan"].unique())
    keyed = results[~results["dataset"].str.contains(PART)]
    keyed = keyed.assign(column=keyed["dataset"] + "_" + keyed["metric"])
    wide = keyed.pivot(index="plan", columns="column", values="value").reindex(labels)
    for metric in (one for one in POOLED if (keyed["metric"] == one).any()):
        of_metric = keyed[keyed["metric"] == metric]
        counts = of_metric.assign(hits=of_metric["value"] * of_metric["n"]).groupby("plan")[["hits", "n"]].sum()
        wide[metric] = counts["hits"] / counts["n"]
    facts = keyed.drop_duplicates("plan").set_index("plan")[PLAN]
    return facts.join(wide).reindex(labels).rename_axis("plan").reset_index()
