"""Plans compared in pairs on the same examples: every plan with the baseline, and method with method.

Judgements (0 or 1) are tested by McNemar's exact test and have Newcombe's interval for their difference; other values
are tested by sign-flipping permutation and have the t interval of skewed values. Holm's correction is within a family:
all pairs of one kind on one dataset and metric, each pair of different edits once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.statistics import Paired, holm, paired_differences

COLUMNS = [
    "plan", "against", "dataset", "metric", "difference", "ci_low", "ci_high", "p", "p_holm", "test", "n",
]  # fmt: skip
FAMILY = ["kind", "dataset", "metric"]


class Pair(NamedTuple):
    """What is tested: two plans that were run, in alphabetical order, on one metric."""

    kind: str
    dataset: str
    metric: str
    one: str
    other: str

    @property
    def family(self) -> tuple[str, str, str]:
        """What Holm's correction is over."""
        return self[:3]


Metrics = Mapping[str, Sequence[Mapping[str, Any]]]


def compare_plans(
    plans: Sequence[tuple[Plan, str]],
    metrics: Metrics,
    distances: Container[str] = (),
    progress: Progress = silent,
) -> pd.DataFrame:
    """A row per pair of plans and metric whose per-example values both have.

    Parameters
    ----------
    plans
        Each with the label of the plan that was run for it: itself, or one of the same edits. A pair that was run
        as one plan has no row.
    metrics
        By label of a plan that was run: rows with dataset, metric, values and weights.
    distances
        Metrics that are a distance from the baseline: no plan is tested against it by them.
    """
    run_as = {plan.label: label for plan, label in plans}
    found = {
        label: {(one["dataset"], one["metric"]): one for one in of_plan if one["values"] is not None}
        for label, of_plan in metrics.items()
    }
    asked = [
        (Pair(kind, *key, *sorted(run)), plan, against)
        for kind, plan, against in _pairs([plan for plan, _ in plans])
        if len(run := {run_as[plan], run_as[against]}) == 2
        for key in found[run_as[plan]]
        if key in found[run_as[against]]
        if kind != "baseline" or key[1] not in distances
    ]
    sizes = Counter(pair.family for pair in {pair for pair, _, _ in asked})
    tested, values = [], []
    for pair, plan, against in asked:
        one, other = (found[run_as[label]][pair.dataset, pair.metric] for label in (plan, against))
        if (both := _both(one, other, sizes[pair.family])) is not None:
            tested.append({**pair._asdict(), "plan": plan, "against": against})
            values.append(both)
    differences = paired_differences(values, progress)
    rows = [{**row, **difference._asdict()} for row, difference in zip(tested, differences, strict=True)]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(rows)
    pairs = table.drop_duplicates(list(Pair._fields))
    p_holm = pairs.groupby(FAMILY, sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    return table.merge(pairs[[*Pair._fields]].assign(p_holm=p_holm), how="left")[COLUMNS]


def _pairs(plans: Sequence[Plan]) -> Iterator[tuple[str, str, str]]:
    """(kind, plan, against): each plan against the baseline, and methods at the same intervention and scope."""
    for plan in plans:
        if plan.label != BASELINE:
            yield "baseline", plan.label, BASELINE
    for one, other in combinations(plans, 2):
        if _step(one) == _step(other) and one.method != other.method and BASELINE not in (one.label, other.label):
            yield "methods", one.label, other.label


def _step(plan: Plan) -> tuple[str | float | None, ...]:
    """What methods are compared at: an intervention with its strength, or at equal damage, and a scope."""
    return (plan.cell, plan.scope) if plan.cell else (plan.intervention, plan.strength, plan.scope)


def _both(one: Mapping[str, Any], other: Mapping[str, Any], family: int) -> Paired | None:
    """The values of the examples that both have; NaN and infinity are values that an example has."""
    there = [None not in pair for pair in zip(one["values"], other["values"], strict=False)]
    if len(one["values"]) != len(other["values"]) or not any(there):
        return None
    weights = np.ones(len(there)) if one["weights"] is None else np.array(one["weights"], dtype=float)
    plan, against = (np.array(values, dtype=float)[there] for values in (one["values"], other["values"]))
    return Paired(plan, against, weights[there], family)
