"""Tables for papers, in LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from refusal_cmp.report.data import RunData
from refusal_cmp.report.table import columns
from refusal_cmp.report.wording import bracketed, decimal, minus, with_bounds

METRICS = ("refusal", "in_language", "guard_unsafe", "loss", "acc")
"""What the table of plans has of the summary: refusal, language, safety, and what is lost."""
SIGNS = str.maketrans({"\u202f": r"\,", "–": "--", "−": "$-$"})
"""Characters of ours that LaTeX has commands for."""


def tables(data: RunData) -> dict[str, str]:
    """LaTeX source by name: every plan, the selected components, and (if it was studied) the rank agreement."""
    found = {"plans": tabular(_plans(data)), "selection": tabular(_selection(data))}
    if data.rankings is not None:
        found["rankings"] = tabular(_rankings(data), text_columns=2)
    return found


def tabular(table: pd.DataFrame, text_columns: int = 1) -> str:
    """A booktabs table; the first columns hold text, the others numbers. Cells are escaped."""
    style = table.style.hide(axis="index").format(escape="latex").format_index(axis="columns", escape="latex")
    layout = "l" * text_columns + "r" * (table.shape[1] - text_columns)
    return style.to_latex(hrules=True, column_format=layout).translate(SIGNS)


def _plans(data: RunData) -> pd.DataFrame:
    """A row per plan, each measurement with its interval."""
    wanted = [column for column in columns(data.results) if column.metric in METRICS]
    rows = []
    for plan in data.plans:
        found = {one: data.get(plan.label, one.dataset, one.metric) for one in wanted}
        cells = {
            f"{one.measure.title}, {one.heading}": "–" if value is None else with_bounds(value, one.measure.unit)
            for one, value in found.items()
        }
        rows.append({"plan": plan.label, **cells})
    return pd.DataFrame(rows)


def _selection(data: RunData) -> pd.DataFrame:
    """A row per method: the selected component and its scores."""
    rows = []
    for one in data.selections:
        chosen = data.chosen(one.method)
        rows.append(
            {
                "method": one.method,
                "position": minus(str(one.selected.position)),
                "layer": str(one.selected.layer),
                "directions": str(int(chosen["k"])),
                "bypass": decimal(chosen["bypass"]),
                "induce": decimal(chosen["induce"]),
                "KL": decimal(chosen["kl"], 3),
                "kept": f"{len(one.kept)} of {len(one.ranking)}" + (f" ({one.note})" if one.note else ""),
            }
        )
    return pd.DataFrame(rows)


def _rankings(data: RunData) -> pd.DataFrame:
    """A row per method and pool of components."""
    return pd.DataFrame(
        {
            "method": one["method"],
            "components": name,
            "n": str(pool["n"]),
            **_correlation(pool),
            "regret": decimal(one["regret"]),
        }
        for one in data.rankings or ()
        for name, pool in one["pools"].items()
    )


def _correlation(pool: Mapping[str, Any]) -> dict[str, str]:
    if pool["rho"] is None:
        return dict.fromkeys(("Spearman", "95 %", "Kendall"), "–")
    interval = "too few" if pool["says_little"] else bracketed(pool["ci_low"], pool["ci_high"])
    return {"Spearman": decimal(pool["rho"]), "95 %": interval, "Kendall": decimal(pool["tau"])}
