"""Plans compared in pairs on the same examples: every plan with the baseline, and method with method.

Differences have a paired bootstrap interval. Judgements (0 or 1) are tested by McNemar's exact test, other
values by sign-flipping permutation. Holm's correction is within a family: all pairs of one kind on one
dataset and metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.statistics import holm, paired_difference

COLUMNS = [
    "plan", "against", "dataset", "metric", "difference", "ci_low", "ci_high", "p", "p_holm", "test", "n",
]  # fmt: skip
FAMILY = ["kind", "dataset", "metric"]

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]


def compare_plans(plans: Sequence[Plan], metrics: Metrics) -> pd.DataFrame:
    """A row per pair of plans and metric whose per-example values both have.

    Parameters
    ----------
    metrics
        By plan label: rows with dataset, metric, values and weights.
    """
    found = {
        label: {(one["dataset"], one["metric"]): one for one in of_plan if one["values"] is not None}
        for label, of_plan in metrics.items()
    }
    rows = [
        {"kind": kind, "plan": plan, "against": against, "dataset": key[0], "metric": key[1], **difference}
        for kind, plan, against in _pairs(plans)
        for key in found[plan]
        if key in found[against] and (difference := _difference(found[plan][key], found[against][key])) is not None
    ]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby(FAMILY, sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    return table[COLUMNS]


def _pairs(plans: Sequence[Plan]) -> Iterator[tuple[str, str, str]]:
    """(kind, plan, against): each plan against the baseline, and methods at the same intervention and scope."""
    for plan in plans:
        if plan.label != BASELINE:
            yield "baseline", plan.label, BASELINE
    for one, other in combinations(plans, 2):
        same = (one.intervention, one.strength, one.scope) == (other.intervention, other.strength, other.scope)
        if same and one.method != other.method and BASELINE not in (one.label, other.label):
            yield "methods", one.label, other.label


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    if len(one["values"]) != len(other["values"]):
        return None
    pairs = np.array([one["values"], other["values"]], dtype=float)
    there = np.isfinite(pairs).all(0)
    weights = np.ones(pairs.shape[1]) if one["weights"] is None else np.array(one["weights"], dtype=float)
    if not there.any():
        return None
    plan, against = pairs[:, there]
    return paired_difference(plan, against, weights[there])._asdict()
