"""Plans in pairs: who is compared with whom, on what, and how often a pair counts as a test."""

from __future__ import annotations

import pytest

from refusal_cmp.plan import Plan, baseline
from refusal_cmp.statistics.comparisons import compare_plans


def plan(method, intervention="ablation"):
    label = f"{method}/{intervention}@all"
    return Plan(label, {}, method=method, intervention=intervention, scope="all")


def metrics(*found):
    return [{"dataset": "harmful", "metric": "refusal", "values": list(found), "weights": None}]


def test_plans_are_paired_with_the_baseline_and_method_with_method():
    plans = [(one, one.label) for one in (baseline(), plan("a"), plan("b"))]
    found = {
        "baseline": metrics(1, 1, 1, 1),
        "a/ablation@all": metrics(0, 0, 0, 0),
        "b/ablation@all": metrics(0, 0, None, 1),
    }
    table = compare_plans(plans, found)
    assert list(table["difference"]) == pytest.approx([-1, -2 / 3, -1 / 3])
    assert list(table["n"]) == [4, 3, 3]
    assert (table["p_holm"] >= table["p"]).all()


def test_identical_plans_are_paired_under_their_own_labels_and_tested_once():
    ablations, nullspaces = ([plan(method, name) for method in "ab"] for name in ("ablation", "nullspace"))
    plans = [
        (baseline(), "baseline"),
        *((one, one.label) for one in ablations),
        (nullspaces[0], ablations[0].label),
        (nullspaces[1], nullspaces[1].label),
    ]
    ones = [1] * 8
    found = {
        "baseline": metrics(*ones),
        "a/ablation@all": metrics(*[0] * 8),
        "b/ablation@all": metrics(*ones),
        "b/nullspace@all": metrics(*ones),
    }
    table = compare_plans(plans, found).set_index(["plan", "against"])
    p = table.loc[("a/ablation@all", "baseline"), "p"]
    assert list(table.loc[(["a/ablation@all", "a/nullspace@all"], "baseline"), "p_holm"]) == pytest.approx([3 * p] * 2)
    assert table.loc[("a/nullspace@all", "b/nullspace@all"), "difference"] == -1
    assert table.loc[("a/nullspace@all", "b/nullspace@all"), "p_holm"] == pytest.approx(2 * p)


def test_an_example_that_is_not_a_number_leaves_no_difference():
    plans = [(baseline(), "baseline"), (plan("a"), "a/ablation@all"), (plan("b"), "b/ablation@all")]
    found = {
        "baseline": metrics(*[1.5] * 50),
        "a/ablation@all": metrics(*[float("nan")] * 40, *[1.501] * 10),
        "b/ablation@all": metrics(*[1.6] * 50),
    }
    table = compare_plans(plans, found).set_index(["plan", "against"])
    broken = table.loc[("a/ablation@all", "baseline")]
    assert broken[["difference", "p", "p_holm"]].isna().all()
    assert broken["n"] == 50
    whole = table.loc[("b/ablation@all", "baseline")]
    assert whole["p_holm"] == pytest.approx(2 * whole["p"])


def test_a_distance_from_the_baseline_is_not_tested_against_it():
    """Its own is zero by definition and every other above it: whatever the plan, the test could come out one way."""
    distance = {"dataset": "harmless", "metric": "distance", "weights": None}
    plans = [(one, one.label) for one in (baseline(), plan("a"), plan("b"))]
    values = ([0.0] * 20, [0.1] * 20, [0.2] * 20)
    found = {
        one.label: [*metrics(1, 0), {**distance, "values": of_plan}]
        for (one, _), of_plan in zip(plans, values, strict=True)
    }
    table = compare_plans(plans, found, distances={"distance"})
    assert list(table.loc[table["metric"] == "distance", ["plan", "against"]].iloc[0]) == [
        "a/ablation@all",
        "b/ablation@all",
    ]
    assert (table["metric"] == "distance").sum() == 1
    assert (table.loc[table["metric"] == "refusal", "against"] == "baseline").sum() == 2
