"""The page of a study: what holds in how many cells, and the numbers across models."""

from __future__ import annotations

from typing import Any

from refusal_cmp.report.page.filling import filled
from refusal_cmp.report.table import Column
from refusal_cmp.report.wording import bounds, counted, decimal
from refusal_cmp.study.report.conclusions import Count
from refusal_cmp.study.report.tables import WIDEST, Tables

LISTED = 200
"""Cells that are listed one by one."""


def page(found: Tables) -> str:
    """It as HTML; the same text for the same cells."""
    study, counts = found.study, found.conclusions
    return filled(
        "study.html",
        study=study.name,
        n_cells=len(study.cells),
        n_done=len(found.cells),
        what=f"{counted(len(found.subjects), 'subject')}, {_seeds(found)}",
        headline=_headline(found),
        plans=[
            _plan(plan, count, counts.broken[plan], counts.named[plan]) for plan, count in counts.suppresses.items()
        ],
        pairs=[
            {"kind": kind, "first": first, "second": second, **_held(count)}
            for kind in ("method", "intervention")
            for first, second, count in counts.ordered(kind)
        ],
        tables=[_across(found, column) for column in found.columns()],
        is_wide=found.is_wide,
        widest=WIDEST,
        agreement=_agreement(found),
        cells=[{"label": cell.label, "page": study.until == "report"} for cell in found.cells[:LISTED]],
        more=max(0, len(found.cells) - LISTED),
    )


def _seeds(found: Tables) -> str:
    least, most = min(found.seeds), max(found.seeds)
    return f"{counted(least, 'seed') if least == most else f'{least} to {most} seeds'} each"


def _headline(found: Tables) -> str:
    """The plan that is best in most cells, in a sentence."""
    counts = found.conclusions
    best = max(counts.named.items(), key=lambda one: one[1].holds, default=None)
    if best is None:
        return "Refusal was not measured, so that no plan is named; run with refusal among evals."
    plan, named = best
    held = counts.suppresses[plan]
    cells = "every cell" if counts.few == counts.cells else f"{counts.few} of {counts.cells} cells"
    few = f" In {cells} harmful test prompts are too few to know it of any plan." if counts.few else ""
    return (
        f"Most often named is {plan}, in {named.holds} of {counted(counts.cells, 'cell')}; it suppresses refusal in "
        f"{held.holds} of {held.cells}, and in every cell of {held.throughout} of {counted(held.models, 'model')}.{few}"
    )


def _plan(plan: str, suppresses: Count, broken: Count, named: Count) -> dict[str, Any]:
    return {
        "plan": plan,
        "broken": f"{broken.holds} of {broken.cells}",
        "named": f"{named.holds} of {named.cells}",
        "share": f"{suppresses.holds / suppresses.cells:.4f}",
        **_held(suppresses),
    }


def _held(count: Count) -> dict[str, str]:
    return {"cells": f"{count.holds} of {count.cells}", "models": f"{count.throughout} of {count.models}"}


def _across(found: Tables, column: Column) -> dict[str, Any]:
    """Plans × subjects by one measurement."""
    heads = ["least", "most"] if found.is_wide else found.subjects
    rows = []
    for plan in found.plans:
        over = found.over.get((column, plan))
        if over is None:
            continue
        cells: list[dict[str, str] | None]
        if found.is_wide:
            cells = [_cell(column, value, "") for value in (over.low, over.high)]
        else:
            of_plan = [found.numbers[column, plan].get(subject) for subject in found.subjects]
            unit = column.measure.unit
            cells = [None if one is None else _cell(column, one.value, bounds(one, unit)) for one in of_plan]
        rows.append({"plan": plan, "cells": cells, "mean": _cell(column, over.mean, "")})
    title = column.measure.title + (f", {column.heading}" if column.heading else "")
    return {"title": title, "meaning": column.measure.meaning, "heads": heads, "rows": rows}


def _cell(column: Column, value: float, brackets: str) -> dict[str, str]:
    share = column.measure.unit == "share"
    bar = f"{min(1.0, max(0.0, value)):.3f}" if share else ""
    return {"text": column.text(value), "value": repr(value), "sd": "", "bounds": brackets, "bar": bar}


def _agreement(found: Tables) -> dict[str, Any] | None:
    agreement = found.conclusions.agreement()
    if agreement is None:
        return None
    shown = range(min(WIDEST, len(agreement.subjects)))
    return {
        "kendall": decimal(agreement.kendall),
        "rho": decimal(agreement.mean_rho),
        "n": len(agreement.subjects),
        "subjects": [agreement.subjects[i] for i in shown],
        "matrix": [[decimal(agreement.rho(i, j)) for j in shown] for i in shown],
        "order": [
            {"plan": plan, "mean": f"{mean:.1f}", "span": f"{best:.3g} to {worst:.3g}"}
            for plan, mean, best, worst in agreement.order()
        ],
    }
