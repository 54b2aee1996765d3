"""A run of many methods and interventions as the tables of docs/method-grid.md.

    python scripts/method_grid.py RUN NAME

writes benchmarks/results/grid-NAME.json from a finished run: what every plan does, and what methods and interventions
do on average over the plans that are meant to suppress refusal, each compared with difference in means, or with
ablation, on the same prompts. scripts/docs_pages.py puts the tables into the page, from that file alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refusal_cmp.evals import measure_of
from refusal_cmp.plan import Plan
from refusal_cmp.report.answer import costs, standings
from refusal_cmp.report.data import ANSWERED, RunData, read_run
from refusal_cmp.report.figures._style import step
from refusal_cmp.run.contents import metrics_file
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.statistics import holm, paired_difference, weighted_mean

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FIRST = {"method": "diff-in-means", "intervention": "ablation"}
"""What the others are compared with."""
INDUCES = ("actadd", "clamp")
"""Interventions that suppress refusal at strengths below zero alone."""
MEASURES = {"answered": ("harmful", ANSWERED[0]), "kl": ("harmless", "kl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    session = open_run(args.run)
    data = read_run(session)
    found = {
        "model": data.config["model"],
        "prompts": data.config["n_test"],
        "cost": costs(data)[0].name,
        "plans": plans(data),
        **{by: averages(session, data, by) for by in FIRST},
    }
    path = RESULTS / f"grid-{args.name}.json"
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(path)


def plans(data: RunData) -> list[dict[str, Any]]:
    """Every plan: how many harmful prompts it answers and harmless ones it refuses, and what it costs."""
    standing = {one.plan: one for one in [*standings(data), *standings(data, data.unedited)]}
    rows = []
    for plan in data.plans:
        one = standing.get(plan.label)
        rows.append(
            {
                "plan": plan.label,
                "method": plan.method,
                "intervention": step(plan) if plan.method else "",
                "scope": plan.scope,
                "answered": _share(data, plan.label, "harmful", ANSWERED[0]),
                "refused": _share(data, plan.label, "harmful", "refusal"),
                "refused_harmless": _share(data, plan.label, "harmless", "refusal"),
                "kl": _share(data, plan.label, "harmless", "kl"),
                "cost": None if one is None or one.cost is None else _rounded(one.cost),
                "destroys": one is not None and one.is_broken,
            }
        )
    return rows


def averages(session: Session, data: RunData, by: str) -> list[dict[str, Any]]:
    """Of each method, or intervention, the mean over the plans that are to suppress refusal, prompt by prompt.

    The difference to the first is paired by prompt, over what both were run with, and Holm's correction is over the
    others in one scope.
    """
    rows: list[dict[str, Any]] = []
    for scope in data.scopes:
        among = [plan for plan in data.edited if plan.scope == scope and _suppresses(plan)]
        names = list(dict.fromkeys(_key(plan, by) for plan in among))
        values = {measure: _values(session, data, among, *where) for measure, where in MEASURES.items()}
        found: list[dict[str, Any]] = []
        for name in names:
            of_name = [plan for plan in among if _key(plan, by) == name]
            row: dict[str, Any] = {by: name, "scope": scope, "plans": len(of_name)}
            for measure, of_plan in values.items():
                mine = np.mean([of_plan[plan.label] for plan in of_name], axis=0)
                estimate = measure_of(MEASURES[measure][1]).within(weighted_mean(list(mine), [1.0] * len(mine)))
                row[measure] = [_rounded(x) for x in estimate[:3]]
                if name != FIRST[by]:
                    both = [(plan, beside) for plan in of_name if (beside := _beside(plan, among, by)) is not None]
                    a, b = (np.mean([of_plan[pair[side].label] for pair in both], axis=0) for side in (0, 1))
                    difference = paired_difference(a, b, np.ones(len(a)), family=len(names) - 1)
                    row[f"{measure}_difference"] = [_rounded(x) for x in difference[:3]]
                    row[f"{measure}_p"] = difference.p
            found.append(row)
        for measure in values:
            tested = [row for row in found if f"{measure}_p" in row]
            for row, p in zip(tested, holm(np.array([row[f"{measure}_p"] for row in tested])), strict=True):
                row[f"{measure}_p"] = _rounded(p)
        rows += found
    return rows


def _suppresses(plan: Plan) -> bool:
    """Whether a plan is meant to suppress refusal."""
    return plan.intervention.split("[")[0] not in INDUCES or (plan.strength or 0) < 0


def _key(plan: Plan, by: str) -> str:
    return plan.method if by == "method" else step(plan)


def _beside(plan: Plan, among: Sequence[Plan], by: str) -> Plan | None:
    """The plan that is the same but for being of the first method, or by the first intervention."""
    other = "intervention" if by == "method" else "method"
    same = (one for one in among if _key(one, other) == _key(plan, other))
    return next((one for one in same if _key(one, by) == FIRST[by]), None)


def _values(
    session: Session, data: RunData, plans: Sequence[Plan], dataset: str, metric: str
) -> dict[str, Sequence[float]]:
    """By plan what each prompt has."""
    found = {}
    for plan in plans:
        label = data.run_as[plan.label]
        evaluator = "kl" if metric == "kl" else "coherence"
        rows = session.run.read_json(metrics_file(label, evaluator))
        (values,) = [row["values"] for row in rows if (row["dataset"], row["metric"]) == (dataset, metric)]
        found[plan.label] = values
    return found


def _share(data: RunData, plan: str, dataset: str, metric: str) -> list[float] | None:
    one = data.get(plan, dataset, metric)
    return None if one is None else [_rounded(x) for x in one[:3]]


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


if __name__ == "__main__":
    main()
