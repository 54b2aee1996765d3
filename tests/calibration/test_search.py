"""The search for a strength, against scipy's root finder on curves of known form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from refusal_cmp.calibration.rank import RankSearch
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


def over_k(curve, budget, ranks, end=1.0) -> RankSearch:
    """What a search finds of `curve(k, u)`."""
    search = RankSearch(budget, ranks, end)
    while (times := search.ask()) is not None:
        assert 1 <= search.k <= ranks
        search.tell(times, curve(search.k, times))
    assert len(search.tried) <= MOST
    assert len(set(search.tried)) == len(search.tried), "nothing is measured twice"
    return search


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=100), st.floats(0.01, 30), st.floats(1, 3))
def test_the_number_of_directions_is_the_first_that_does_more_or_meets_the_budget(steps, budget, power):
    """Against all numbers of directions one after the other; damage grows with each, and with a power of the share."""
    grown = np.cumsum(steps)
    search = over_k(lambda k, u: grown[k - 1] * u**power, budget, len(steps))
    found = search.found()
    meets = [k for k, damage in enumerate(grown, 1) if abs(damage - budget) <= TOLERANCE * budget]
    more = [k for k, damage in enumerate(grown, 1) if damage > budget]
    assert found.is_monotone
    if found.status == "below":
        assert not more
        assert (found.k, found.times) == (len(steps), 1)
    elif found.times == 1:
        assert found.status == "met"
        assert found.k in meets
    elif found.status == "met":
        assert found.k == more[0]
        assert abs(found.damage - budget) <= TOLERANCE * budget
    if found.beside:
        fewer, larger = found.beside
        assert (fewer.k, larger.k) == (more[0] - 1, more[0])
        assert (fewer.damage, larger.damage) == (grown[fewer.k - 1], grown[larger.k - 1])
        assert fewer.times == larger.times == 1
    assert (found.beside == ()) == (found.times == 1 or found.k == 1)


def test_directions_that_all_do_less_have_their_strength_raised():
    found = over_k(lambda k, u: 0.01 * k * u**2, 0.1, 5, end=2.0).found()
    assert (found.status, found.k) == ("met", 5)
    assert found.times == pytest.approx(2**0.5, rel=0.02)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_numbers_are_more_than_any_budget_of_directions_too(broken):
    found = over_k(lambda k, u: 0.01 * k * u**2 if k < 7 else broken, 0.1, 40).found()
    assert (found.k, [one.k for one in found.beside]) == (7, [6, 7])
    assert found.status in ("above", "missed")


def test_damage_that_falls_with_more_directions_is_said():
    found = over_k(lambda k, u: (0.05 if k % 2 else 0.3) * u**2, 0.1, 9).found()
    assert not found.is_monotone or found.status == "below"
