"""Cohen's κ: scikit-learn is the oracle of one plan; plans are kept apart, and the units are prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from refusal_cmp.statistics.agreement import agreements


def judged(went_along, yes: str, no: str) -> list[list[str]]:
    """Verdicts by plan and prompt."""
    return [[yes if went else no for went in plan] for plan in went_along]


def agreement(one, other):
    """That of two judges who say, for each plan, under which prompts the model went along."""
    (found,) = agreements({"guard": judged(one, "unsafe", "safe"), "refusal": judged(other, "complied", "refused")})
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kappa_of_one_plan_is_scikit_learns(pairs):
    one, other = zip(*pairs, strict=True)
    found = agreement([one], [other])
    assert found.both + found.first_only + found.second_only + found.neither == len(pairs)
    assert found.first_only == sum(first and not second for first, second in pairs)
    assert found.within == pytest.approx(found.pooled, nan_ok=True)
    if len({*one, *other}) == 2:
        assert found.within.value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
        assert not found.within.low > found.within.value
        assert not found.within.high < found.within.value
    else:
        assert math.isnan(found.within.value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=9, max_size=9), min_size=2, max_size=4))
def test_within_plans_it_is_the_mean_of_the_plans_weighted_by_what_chance_leaves(plans):
    one, other = np.moveaxis(np.array(plans), -1, 0)
    chance = one.mean(1) * other.mean(1) + (1 - one.mean(1)) * (1 - other.mean(1))
    weights = (1 - chance).round(12)
    if weights.any():
        kappas = [cohen_kappa_score(*pair) if weight else 0 for *pair, weight in zip(one, other, weights, strict=True)]
        assert agreement(one, other).within.value == pytest.approx(np.average(kappas, weights=weights))


def test_judges_who_tell_plans_apart_but_no_two_completions_of_one_agree_only_when_pooled():
    rng = np.random.default_rng(0)
    rates = np.repeat([0.05, 0.95], 10)[:, None]
    one, other = (rng.random((20, 100)) < rates for _ in range(2))
    found = agreement(one, other)
    assert abs(found.within.value) < 0.1
    assert found.pooled.low > 0.7


def test_copies_of_a_plan_add_no_certainty():
    rng = np.random.default_rng(0)
    one = rng.random((1, 60)) < 0.5
    other = one ^ (rng.random((1, 60)) < 0.2)
    alone, copied = agreement(one, other), agreement(np.tile(one, (8, 1)), np.tile(other, (8, 1)))
    assert copied.within[:3] == pytest.approx(alone.within[:3])
    assert copied.pooled[:3] == pytest.approx(alone.pooled[:3])
    assert (copied.n_plans, copied.n_prompts, copied.within.n) == (8, 60, 480)


def test_the_interval_covers_where_prompts_are_alike_under_all_plans():
    """Prompts differ in how the model takes them and in how hard they are to judge, whatever the plan."""
    rng = np.random.default_rng(0)
    along, wrong = rng.random((1, 400)), 0.5 * rng.random((2, 1, 400)) ** 2
    truth = rng.random((20, 400)) < along
    one, other = (truth ^ (rng.random((20, 400)) < of_judge) for of_judge in wrong)
    true = agreement(one, other).within.value
    found = []
    for _ in range(100):
        drawn = rng.integers(400, size=48)
        found.append(agreement(one[:, drawn], other[:, drawn]).within)
    assert np.mean([interval.low <= true <= interval.high for interval in found]) >= 0.92


def test_what_a_judge_has_no_verdict_on_is_left_out():
    found = agreements(
        {
            "refusal": [["complied", "degenerate", "refused", "complied"]],
            "guard": [["unsafe", "unsafe", "safe", "unparsed"]],
            "people": [["complied", "refused", "refused", "complied"]],
        }
    )
    assert [(one.first, one.second) for one in found] == [
        ("guard", "people"),
        ("guard", "refusal"),
        ("people", "refusal"),
    ]
    assert [(one.both, one.first_only, one.second_only, one.neither) for one in found] == [
        (1, 1, 0, 1),
        (1, 0, 0, 1),
        (2, 0, 0, 1),
    ]


def test_two_judges_that_never_met_have_no_kappa():
    (found,) = agreements({"a": [["degenerate"]], "b": [["safe"]]})
    assert math.isnan(found.within.value)
    assert found.n_prompts == 0
