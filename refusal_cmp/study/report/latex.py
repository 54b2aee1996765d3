"""The tables of a study for papers, in LaTeX with booktabs and adjustbox."""

from __future__ import annotations

import pandas as pd

from refusal_cmp.report.latex import SIGNS, floating, tabular
from refusal_cmp.report.latex_phrases import escaped, tt
from refusal_cmp.report.table import Column
from refusal_cmp.report.wording import bounds, counted, decimal
from refusal_cmp.study.report.conclusions import Count
from refusal_cmp.study.report.tables import Tables

INTERVALS = (
    r" Means over seeds; brackets are 95\,\% hierarchical intervals, of seeds and of prompts within them. The last "
    "column is the plain mean over the columns."
)
ENDS = " The mean over all of them, and the least and the most of any."


def latex(found: Tables) -> str:
    """Every table, one after the other."""
    name = found.study.name
    tables = [
        floating(tabular(_across(found, column)), f"{name}-{column.name}", _caption(found, column))
        for column in found.columns()
    ]
    tables.append(floating(tabular(_plans(found)), f"{name}-plans", _counted(found)))
    for kind in ("method", "intervention"):
        if pairs := found.conclusions.ordered(kind):
            rows = [{kind: first, "comes before": second, **_held(count)} for first, second, count in pairs]
            table = tabular(pd.DataFrame(rows), text_columns=2)
            tables.append(floating(table, f"{name}-{kind}s", f"Which {kind} has the better best plan, by cell."))
    if agreement := found.conclusions.agreement():
        rows = [
            {"plan": plan, "mean place": f"{mean:.1f}", "best": f"{best:g}", "worst": f"{worst:g}"}
            for plan, mean, best, worst in agreement.order()
        ]
        caption = (
            f"Places of plans in {counted(len(agreement.subjects), 'subject')}, each its mean over seeds: Kendall's W "
            f"{decimal(agreement.kendall)}, mean Spearman's $\\rho$ of pairs {decimal(agreement.mean_rho)}."
        ).translate(SIGNS)
        tables.append(floating(tabular(pd.DataFrame(rows)), f"{name}-places", caption))
    return "\n".join(tables)


def _across(found: Tables, column: Column) -> pd.DataFrame:
    """Plans × subjects."""
    rows = []
    for plan in found.plans:
        over = found.over.get((column, plan))
        if over is None:
            continue
        row = {"plan": plan}
        if found.is_wide:
            row |= {"mean": column.text(over.mean), "least": column.text(over.low), "most": column.text(over.high)}
        else:
            of_plan = found.numbers[column, plan]
            for subject in found.subjects:
                one = of_plan.get(subject)
                text = "–" if one is None else f"{column.text(one.value)} {bounds(one, column.measure.unit)}".strip()
                row[subject] = text
            row["mean"] = column.text(over.mean)
        rows.append(row)
    return pd.DataFrame(rows)


def _caption(found: Tables, column: Column) -> str:
    what = escaped(column.measure.title) + (f" ({escaped(column.heading)})" if column.heading else "")
    subjects = counted(len(found.subjects), "subject")
    return f"{what} of every plan, over {subjects} of the study {tt(found.study.name)}." + (
        ENDS if found.is_wide else INTERVALS
    )


def _plans(found: Tables) -> pd.DataFrame:
    counts = found.conclusions
    return pd.DataFrame(
        [
            {"plan": plan, **_held(count), "destroys": f"{counts.broken[plan].holds} of {count.cells}"}
            for plan, count in counts.suppresses.items()
        ],
        columns=["plan", "cells", "models", "destroys"],
    )


def _held(count: Count) -> dict[str, str]:
    return {"cells": f"{count.holds} of {count.cells}", "models": f"{count.throughout} of {count.models}"}


def _counted(found: Tables) -> str:
    return (
        f"In how many cells of the study {tt(found.study.name)} each plan suppresses refusal; models: in how many it "
        "does so in every cell; destroys: in how many cells it destroys the model."
    )
