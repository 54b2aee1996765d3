"""The page's tables: every plan, the selected components, rank agreement, categories, and the judges' agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.report.answer import Standing, answers_already
from refusal_cmp.report.data import RunData
from refusal_cmp.report.table import PART, Column, columns
from refusal_cmp.report.wording import bounds, bracketed, decimal, log_odds, percent, shown
from refusal_cmp.run.contents import seconds_of
from refusal_cmp.statistics import Estimate


def plans_table(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any]:
    """The summary: plans by columns, groups of columns by metric."""
    wanted = columns(data.results)
    groups: list[dict[str, Any]] = []
    for column in wanted:
        if not groups or groups[-1]["name"] != column.measure.title:
            groups.append({"name": column.measure.title, "says": _said_of(column), "span": 0})
        groups[-1]["span"] += 1
    standing = {one.plan: one for one in ranked}
    nothing_to_suppress = answers_already(data)
    return {
        "unedited_answers": nothing_to_suppress,
        "columns": [
            {"key": column.name, "heading": column.heading, "title": column.measure.title} for column in wanted
        ],
        "groups": groups,
        "rows": [
            {**_row(data, plan, wanted), "state": _state(standing.get(plan.label), nothing_to_suppress)}
            for plan in data.plans
        ],
    }


def _said_of(column: Column) -> str:
    """What a column's metric is, and which way is better."""
    measure = column.measure
    better = "" if measure.better == "neither" else f"{measure.better} is better"
    return "; ".join(part for part in (measure.meaning, better) if part)


def _state(standing: Standing | None, nothing_to_suppress: bool) -> str:
    """What marks a plan at the left."""
    if standing is None:
        return ""
    if standing.is_broken:
        return "broken"
    return "best" if standing.suppresses and not nothing_to_suppress else ""


def _row(data: RunData, plan: Plan, wanted: Sequence[Column]) -> dict[str, Any]:
    same_as = data.run_as[plan.label]
    return {
        "plan": plan.label,
        "same_as": "" if same_as == plan.label else same_as,
        "layers": "" if plan.n_layers is None else plan.n_layers,
        "cells": [_cell(data.get(plan.label, column.dataset, column.metric), column) for column in wanted],
    }


def _cell(one: Estimate | None, column: Column) -> dict[str, Any]:
    if one is None or pd.isna(one.value):
        return {"text": "–", "value": "", "sd": "", "bounds": "", "bar": ""}
    unit = column.measure.unit
    return {
        "text": column.text(one.value),
        "value": repr(float(one.value)),
        "sd": "",
        "bounds": bounds(one, unit),
        "bar": f"{min(1.0, max(0.0, one.value)):.3f}" if unit == "share" else "",
    }


def selection_table(data: RunData) -> list[dict[str, Any]]:
    """The component that was selected for each method, its scores, and what the filters dropped."""
    rows = []
    for one in data.selections:
        chosen = data.chosen(one.method)
        rows.append(
            {
                "method": one.method,
                "where": f"position {one.selected.position}, layer {one.selected.layer}".replace("-", "−"),
                "k": int(chosen["k"]),
                "note": one.note,
                "kept": f"{len(one.kept)} of {len(one.ranking)}",
                "missing": one.missing,
                "nan": one.nan,
                "bypass": log_odds(chosen["bypass"]),
                "induce": log_odds(chosen["induce"]),
                "kl": decimal(chosen["kl"], 3),
                "accuracy": shown(chosen["accuracy"], "share"),
                "dropped": ", ".join(f"{name} {count}" for name, count in one.dropped.items()) or "none",
            }
        )
    return rows


def rankings_table(data: RunData) -> list[dict[str, Any]]:
    """How far local and global rankings agree, a row per method and pool of components."""
    return [
        {
            "method": one["method"],
            "pool": name,
            "n": pool["n"],
            "regret": decimal(one["regret"]),
            "again": percent(one["selected_again"]),
            **_correlation(pool),
        }
        for one in data.rankings or ()
        for name, pool in one["pools"].items()
    ]


def ranking_rules_table(data: RunData) -> list[dict[str, Any]]:
    """How far other rules rank as exact bypass does, and at what cost, a row per method, rule and reach."""
    return [
        {
            "method": one["method"],
            "rule": one["rule"],
            "reach": one["reach"],
            "rho": {name: _rho(pool) for name, pool in own["pools"].items()},
            "rho_global": _rho(one["against"]["global"]["pools"]["all"]) if "global" in one["against"] else "–",
            **_first(own["pools"]["all"]),
            "regret": decimal(own["regret"]),
            "passes": [decimal(one["passes"], 1), decimal(one["exact_passes"], 1)],
            "seconds": ["–" if s is None else decimal(s, 1) for s in _seconds(data, one)],
        }
        for one in data.ranking_rules or ()
        for own in [one["against"][one["reach"]]]
    ]


def _rho(pool: Mapping[str, Any]) -> str:
    """Spearman's ρ and of how many components it is."""
    return f"{'–' if pool['rho'] is None else decimal(pool['rho'])} ({pool['n']})"


def _first(pool: Mapping[str, Any]) -> dict[str, str]:
    if pool["rho"] is None:
        return {"top1": "–", "top5": "–"}
    overlap = pool["top5_overlap"]
    return {"top1": "same" if pool["top1_match"] else "other", "top5": "–" if overlap is None else percent(overlap)}


def _seconds(data: RunData, one: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return seconds_of(data.manifest, one["method"], one["rule"], one["reach"])


def _correlation(pool: Any) -> dict[str, Any]:
    if pool["rho"] is None:
        return {"why": pool["why"]}
    overlap = pool["top5_overlap"]
    return {
        "why": "",
        "rho": decimal(pool["rho"]),
        "reliability": [decimal(pool[f"reliability_{reach}"]) for reach in ("local", "global")],
        "says_little": pool["says_little"],
        "noise_free": "–" if pool["rho_noise_free"] is None else decimal(pool["rho_noise_free"]),
        "bounds": bracketed(pool["ci_low"], pool["ci_high"]),
        "p": f"{pool['p']:.1g}",
        "tau": decimal(pool["tau"]),
        "top1": "same" if pool["top1_match"] else "other",
        "top5": "–" if overlap is None else percent(overlap),
    }


def category_tables(data: RunData) -> list[dict[str, Any]]:
    """What was measured by category of harmful prompts, a table per metric."""
    parts = data.results[data.results["dataset"].str.startswith(f"harmful{PART}")]
    return [_by_category(data, Column("harmful", str(metric))) for metric in parts["metric"].unique()]


def _by_category(data: RunData, column: Column) -> dict[str, Any]:
    names = data.categories(column.dataset, column.metric)
    datasets = [f"{column.dataset}{PART}{name}" for name in names]
    counts = [data.get(BASELINE, dataset, column.metric) for dataset in datasets]
    return {
        "title": f"{column.measure.title}, {column.heading} prompts by category",
        "heads": [
            {"name": name.replace("_", " "), "n": one.n if one else ""} for name, one in zip(names, counts, strict=True)
        ],
        "rows": [
            {"plan": label, "cells": [_cell(data.get(label, dataset, column.metric), column) for dataset in datasets]}
            for label in data.run_as
        ],
    }


def judges_table(data: RunData) -> list[dict[str, str]]:
    """How far the judges agree on the completions of harmful prompts."""
    if data.agreement is None:
        return []
    return [
        {"judges": f"{row['first']} and {row['second']}", "kappa": _kappa(row), "pooled": _kappa(row, "pooled_")}
        | {name: str(row[name]) for name in ("n", "both", "first_only", "second_only", "neither")}
        for row in data.agreement.to_dict("records")
    ]


def _kappa(row: Any, prefix: str = "") -> str:
    kappa, low, high = (row[f"{prefix}{name}"] for name in ("kappa", "ci_low", "ci_high"))
    return "–" if pd.isna(kappa) else f"{decimal(kappa)} {bracketed(low, high)}"
