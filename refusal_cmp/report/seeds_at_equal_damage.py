"""Runs with several seeds of which each calibrates its own strengths: plans by the budget that they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from refusal_cmp.report.data import RunData
from refusal_cmp.report.wording import span
from refusal_cmp.statistics import Estimate, OverSeeds, over_seeds

Calibrated = Mapping[str, Any]


def by_budget(data: RunData) -> dict[str, str]:
    """What calibrated plans are called by the budget that they meet, `ablation:kl=0.1@all`, by their labels."""
    rows = [] if data.calibration is None else data.calibration["plans"]
    return {row["plan"]: row["to"] for row in rows if "to" in row}


def named_alike(data: RunData) -> RunData:
    """The run with calibrated plans called by their budget, as strengths differ from run to run.

    What is asked of single runs alone, as where activations land, keeps its labels.
    """
    if data.calibration is None:
        return data
    names = by_budget(data)

    def named(label: str) -> str:
        return names.get(label, label)

    comparisons = data.comparisons
    if comparisons is not None:
        comparisons = comparisons.assign(**{name: comparisons[name].map(named) for name in ("plan", "against")})
    rows = [{**row, "plan": named(row["plan"])} for row in data.calibration["plans"]]
    return replace(
        data,
        results=data.results.assign(plan=data.results["plan"].map(named)),
        plans=[replace(plan, label=named(plan.label)) for plan in data.plans],
        run_as={named(label): named(same) for label, same in data.run_as.items()},
        answers={(named(plan), dataset): those for (plan, dataset), those in data.answers.items()},
        comparisons=comparisons,
        calibration={**data.calibration, "plans": rows},
    )


def calibration_over(found: Sequence[Calibrated | None]) -> Calibrated | None:
    """One calibration in place of those of all seeds: a plan meets the budget if it does with each."""
    known = [one for one in found if one is not None]
    if not known:
        return None
    rows: dict[str, Mapping[str, Any]] = {}
    for row in (row for one in known for row in one["plans"]):
        if row["plan"] not in rows or row["status"] != "met":
            rows[row["plan"]] = row
    n = [one["n"] for one in known]
    return {**known[0], "n": span(min(n), max(n)), "plans": list(rows.values())}


def areas_over(runs: Sequence[RunData]) -> dict[str, tuple[OverSeeds, list[Estimate]]]:
    """The area under every method's frontier over seeds, largest first, and with each; none without sweeps."""
    swept = [run.sweep.frontiers.areas for run in runs if run.sweep is not None and run.sweep.frontiers is not None]
    if len(swept) < len(runs):
        return {}
    methods = [name for name in swept[0] if all(name in areas for areas in swept)]
    found = {name: [areas[name] for areas in swept] for name in methods}
    over = {name: (over_seeds(those, bounded=True), those) for name, those in found.items()}
    return dict(sorted(over.items(), key=lambda one: -one[1][0].mean.value))
