"""What the page says of methods at equal damage: the headline of a sweep, and the table of a calibration."""

from __future__ import annotations

from typing import Any

from refusal_cmp.report.curves import Sweep
from refusal_cmp.report.data import RunData
from refusal_cmp.report.seeds import SeedsData
from refusal_cmp.report.seeds_at_equal_damage import areas_over
from refusal_cmp.report.wording import bracketed, decimal, minus, sentence_list

SURE = 0.05
STATUSES = {
    "met": "",
    "below": "cannot do so much: the end of its range",
    "above": "does more even at the least strength",
    "missed": "damage jumps: the nearest below",
}


def frontier_headline(sweep: Sweep | None) -> dict[str, Any] | None:
    """Which methods answer most at equal damage, in sentences; None without a sweep of harmful prompts."""
    if sweep is None or sweep.frontiers is None:
        return None
    areas = dict(sorted(sweep.frontiers.areas.items(), key=lambda one: -one[1].value))
    first = next(iter(areas))
    unit = f" {sweep.unit}" if sweep.unit else ""
    worse = [one for one in sweep.comparisons if first in (one.one, one.other) and one.p_holm < SURE]
    beaten = [one.other if one.one == first else one.one for one in worse]
    rest = [name for name in areas if name != first and name not in beaten]
    if len(areas) == 1:
        verdict = f"At equal damage there is nothing to compare {first} with."
    elif not rest:
        verdict = f"At equal damage {first} answers more than {sentence_list(beaten)}."
    else:
        but = f", but it does answer more than {sentence_list(beaten)}" if beaten else ""
        verdict = f"At equal damage {first} is not told from {sentence_list(rest)}{but}."
    said = [f"{name} {decimal(one.value)} {bracketed(one.low, one.high)}" for name, one in areas.items()]
    return {
        "verdict": verdict,
        "areas": f"Areas under the frontiers: {'; '.join(said)}.",
        "sentences": [
            f"The area under a method’s frontier is the mean share of harmful prompts that it leaves unrefused at the "
            f"first token over damages from 0 to {sweep.limit:g}{unit} ({sweep.said}), along their square roots.",
            *([f"Differences: {'; '.join(map(_difference, sweep.comparisons))}."] if sweep.comparisons else []),
            "Intervals are 95 %, from the same draws of prompts for all methods; p is after Holm’s correction.",
        ],
    }


def _difference(one: Any) -> str:
    p = "p < 0.001" if one.p_holm < 0.001 else f"p = {one.p_holm:.2g}"
    value, low, high = (minus(f"{number:+.2f}") for number in one.difference[:3])
    return f"{one.one} − {one.other} {value} [{low}, {high}], {p}"


def calibration_table(data: RunData) -> dict[str, Any] | None:
    """A row per calibrated plan: its strength in default strengths, its damage, and what was not met."""
    found = data.calibration
    if found is None:
        return None
    labels = {plan.label for plan in data.plans}
    unit = f" {found['unit']}" if found["unit"] else ""
    return {
        "said": f"{found['said']}, on {found['n']} harmless validation prompts",
        "budget": f"{found['budget']:g}{unit}",
        "over_k": any(row.get("k") is not None for row in found["plans"]),
        "rows": [_row(row) for row in found["plans"] if row["plan"] in labels],
    }


def _damage(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _row(row: dict[str, Any]) -> dict[str, Any]:
    notes = [STATUSES[row["status"]]]
    beside = [f"{_damage(damage)} with k = {k}" for _, damage, k in row.get("beside", [])]
    notes += [f"in whole {sentence_list(beside)}"] if beside else []
    notes += [] if row["is_monotone"] else ["damage does not grow everywhere"]
    notes += ["flat"] if row["status"] == "met" and row["is_flat"] else []
    return {
        "plan": row["plan"],
        "times": f"{row['times']:.4g}",
        "damage": _damage(row["damage"]),
        "passes": len(row["tried"]),
        "elasticity": "–" if row["elasticity"] is None else decimal(row["elasticity"], 1),
        "note": "; ".join(note for note in notes if note),
    }


def equal_damage_over_seeds(data: SeedsData) -> dict[str, Any] | None:
    """The strengths that each seed calibrated, and the areas under the frontiers of its sweep; None without either."""
    found = data.as_run.calibration
    areas, sweep = areas_over(list(data.runs.values())), data.first.sweep
    if found is None and not areas:
        return None
    return {
        "said": "" if found is None else f"{found['said']}, on {found['n']} harmless validation prompts",
        "budget": "" if found is None else f"{found['budget']:g} {found['unit']}".strip(),
        "rows": [] if found is None else [_over_seeds(data, str(row["plan"])) for row in found["plans"]],
        "limit": "" if sweep is None else f"{f'{sweep.limit:g} {sweep.unit}'.strip()} ({sweep.said})",
        "areas": [
            {
                "method": name,
                "mean": f"{decimal(over.mean.value, 3)} [{decimal(over.mean.low, 3)}, {decimal(over.mean.high, 3)}]",
                "sd": decimal(over.sd, 3),
                "each": [decimal(one.value, 3) for one in those],
            }
            for name, (over, those) in areas.items()
        ],
    }


def _over_seeds(data: SeedsData, plan: str) -> dict[str, Any]:
    cells = []
    for run in data.runs.values():
        rows = [] if run.calibration is None else [row for row in run.calibration["plans"] if row["plan"] == plan]
        row = _row(rows[0]) if rows else {"times": "–", "damage": "–", "note": ""}
        k = f", k = {rows[0]['k']}" if rows and rows[0].get("k") is not None else ""
        cells.append({"times": f"{row['times']}{k}", "damage": row["damage"], "note": row["note"]})
    return {"plan": plan, "cells": cells}
