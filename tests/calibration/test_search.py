"""The search for a strength, against scipy's root finder on curves of known form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from refusal_cmp.calibration.search import MOST, TOLERANCE, Search

CURVES = {
    "square": lambda u: 5 * u**2,
    "steep": lambda u: 3 * u**9,
    "exponential": lambda u: 1e-4 * math.expm1(12 * u),
    "saturating": lambda u: 0.3 * -math.expm1(-50 * u**2),
    "logistic": lambda u: 0.02 * u**2 + 2 / (1 + math.exp(-40 * (u - 0.3))) - 2 / (1 + math.exp(12)),
    "from a threshold": lambda u: 4 * max(0.0, u - 0.2) ** 2,
    "linear, then steep": lambda u: 0.02 * u + 4 * max(0.0, u - 0.165),
}


def searched(curve, budget, end=1.0) -> Search:
    search = Search(budget, end)
    while (times := search.ask()) is not None:
        assert 0 < times <= search.end
        assert times == float(f"{times:.4g}")
        search.tell(times, curve(times))
    return search


@pytest.mark.parametrize("budget", [0.01, 0.1, 0.2])
@pytest.mark.parametrize("end", [1.0, 8.0])
@pytest.mark.parametrize("name", sorted(CURVES))
def test_the_strength_is_that_of_a_root_finder_within_the_tolerance(name, end, budget):
    search = searched(CURVES[name], budget, end)
    found = search.found()
    assert found.status == "met"
    assert len(search.tried) <= MOST
    assert found.is_monotone
    assert abs(found.damage - budget) <= TOLERANCE * budget
    low, high = (
        brentq(lambda u, goal=budget * (1 + side * TOLERANCE): CURVES[name](u) - goal, 0, end, xtol=1e-12)
        for side in (-1.01, 1.01)
    )
    assert low <= found.times <= high


@settings(max_examples=60, deadline=None)
@given(st.floats(0.3, 12), st.floats(-4, 3), st.floats(0.5, 8), st.floats(-3, 1))
def test_a_power_is_found_in_few_evaluations_or_is_out_of_range(power, scale, end, goal):
    budget, curve = 10**goal, lambda u: 10**scale * u**power
    search = searched(curve, budget, end)
    found, root = search.found(), (10 ** (goal - scale)) ** (1 / power)
    if curve(search.end) < (1 - 1.01 * TOLERANCE) * budget:
        assert (found.status, found.times) == ("below", search.end)
    elif 0.01 < root < 0.95 * end and TOLERANCE / power > 1e-3:
        assert found.status == "met"
        assert len(search.tried) <= MOST
        assert len(search.tried) < 3 or found.elasticity == pytest.approx(power, rel=0.05)


def test_a_budget_that_cannot_be_met_is_said_with_the_damage_there():
    found = searched(lambda u: 0.05 * u**2, 0.1).found()
    assert (found.status, found.times, found.damage) == ("below", 1.0, pytest.approx(0.05))
    found = searched(lambda u: 1.0, 0.1).found()
    assert (found.status, found.damage) == ("above", 1.0)


def test_a_jump_over_the_budget_is_no_strength_that_meets_it():
    search = searched(lambda u: 0.05 * u if u < 0.3 else 1 + u, 0.1)
    found = search.found()
    assert found.status == "missed"
    assert len(search.tried) == MOST
    assert found.times < 0.3
    assert min(one.times for one in search.tried if one.damage > 0.1) < 1.05 * found.times


def test_a_curve_that_falls_and_one_that_is_flat_are_said():
    wavy = Search(0.1)
    for times, damage, is_monotone in ((1.0, 0.15, True), (0.3, 0.1, True), (0.5, 0.3, False)):
        wavy.tell(times, damage)
        assert wavy.found().is_monotone == is_monotone
    flat = searched(lambda u: 0.1 + 0.01 * math.log(u / 0.1) if u > 1e-5 else 0.0, 0.11).found()
    assert flat.is_flat
    assert not searched(CURVES["square"], 0.1).found().is_flat


def test_broken_numbers_are_too_much_damage():
    found = searched(lambda u: u**2 if u < 0.5 else math.nan, 0.1).found()
    assert found.status == "met"
    assert found.times == pytest.approx(math.sqrt(0.1), rel=0.02)
