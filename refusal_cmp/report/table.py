"""The summary: a row per plan, a column per measurement, and what each column is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

PLAN = ["method", "intervention", "strength", "scope", "n_components", "n_layers"]
PART = ":"
"""Datasets with a colon are a part of one: `harmful:fraud`."""

Unit = Literal["share", "nats", "number"]

MEASURES: dict[str, tuple[str, Unit]] = {
    "refusal": ("Refuses", "share"),
    "effective_compliance": ("Answers in language", "share"),
    "degenerate": ("No language", "share"),
    "non_finite": ("Broken numbers", "share"),
    "guard_unsafe": ("Guard: unsafe", "share"),
    "guard_unparsed": ("Guard: no verdict", "share"),
    "attack_success": ("Attack success", "share"),
    "acc": ("Accuracy", "share"),
    "acc_norm": ("Accuracy, normalised", "share"),
    "loss": ("Loss, nats a token", "nats"),
    "perplexity": ("Perplexity", "number"),
    "kl": ("KL to the baseline, nats", "nats"),
    "unedited_loss": ("Loss of its completions under the unedited model, nats a token", "nats"),
    "distinct_trigrams": ("Distinct trigrams", "share"),
    "compression": ("Compressed size", "share"),
    "empty": ("Empty", "share"),
}
"""What a metric is called and measured in, in the order of columns; other metrics go by their own names."""

SAME_AS = {"perplexity": "loss"}
"""Metrics that say nothing that the other does not: its exponential."""
OF_BASELINE = "magnitude_"
"""Metrics of the unedited model alone, which no plan can be compared by."""
ONLY_IF_ANY = ("non_finite", "guard_unparsed", "empty")
ONLY_ON = {"attack_success": "harmful"}
"""Metrics that mean something on one test set alone."""
DATASETS = {"harmful": 0, "harmless": 1, "contrast": 2}


@dataclass(frozen=True)
class Column:
    """A measurement of every plan."""

    dataset: str
    metric: str

    @property
    def group(self) -> str:
        """What is measured: the heading over the columns of one metric."""
        return MEASURES.get(self.metric, (self.metric.replace("_", " "), "number"))[0]

    @property
    def heading(self) -> str:
        """What it is measured on."""
        return self.dataset.replace("_", " ")

    @property
    def unit(self) -> Unit:
        """What it is measured in."""
        return MEASURES.get(self.metric, ("", "number"))[1]

    def text(self, value: float) -> str:
        """A value as people read it; an en dash where there is none."""
        return shown(value, self.unit)


def percent(value: float) -> str:
    """A share as people read it, with a narrow space before the sign."""
    return f"{100 * value:.0f}\u202f%"


def shown(value: float, unit: Unit) -> str:
    """A value as people read it; an en dash where there is none."""
    if pd.isna(value):
        return "–"
    if unit == "share":
        return percent(value)
    return f"{value:.2f}" if unit == "nats" and abs(value) < 1000 else f"{value:.3g}"


def columns(results: pd.DataFrame) -> list[Column]:
    """The columns of the summary, in the order in which they are read; redundant and empty ones are left out."""
    whole = results[~results["dataset"].str.contains(PART) & ~results["metric"].str.startswith(OF_BASELINE)]
    present = set(zip(whole["dataset"], whole["metric"], strict=True))
    order = {metric: index for index, metric in enumerate(MEASURES)}
    found = []
    for dataset, metric in present:
        if (dataset, SAME_AS.get(metric, "")) in present or ONLY_ON.get(metric, dataset) != dataset:
            continue
        values = whole.loc[(whole["dataset"] == dataset) & (whole["metric"] == metric), "value"]
        if values.isna().all() or (metric in ONLY_IF_ANY and not (values > 0).any()):
            continue
        found.append(Column(dataset, metric))
    return sorted(
        found,
        key=lambda one: (order.get(one.metric, len(order)), one.metric, DATASETS.get(one.dataset, 3), one.dataset),
    )


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The tidy results as one row per plan, in their order: `harmful_refusal`, …, `tiny-answers_loss`, …

    Parts of test sets are left out. The column `degenerate` is the share over all test sets together.
    """
    labels = list(results["plan"].unique())
    keyed = results[~results["dataset"].str.contains(PART)]
    keyed = keyed.assign(column=keyed["dataset"] + "_" + keyed["metric"])
    wide = keyed.pivot(index="plan", columns="column", values="value").reindex(labels)
    of_degenerate = keyed[keyed["metric"] == "degenerate"]
    counts = of_degenerate.assign(hits=of_degenerate["value"] * of_degenerate["n"]).groupby("plan")[["hits", "n"]].sum()
    wide["degenerate"] = counts["hits"] / counts["n"]
    facts = keyed.drop_duplicates("plan").set_index("plan")[PLAN]
    return facts.join(wide).reindex(labels).rename_axis("plan").reset_index()
