"""Frontiers of refusal against damage: areas of known curves, and comparisons where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from refusal_cmp.statistics.frontier import Curve, Weights, frontiers

V, H = 20, 60
STRENGTHS = np.linspace(0, 1, 7)


def curve(share_of, damage_of, strengths=STRENGTHS, noise=0.0, seed=0) -> Curve:
    """A sweep: of H prompts the first `share` count, each strength does its damage to V prompts, more or less."""
    draw = np.random.default_rng(seed)
    factor = np.exp(noise * draw.standard_normal(V))
    damage = np.array([damage_of(s) * factor for s in strengths])
    hits = np.array([np.arange(H) < round(H * share_of(s)) for s in strengths], dtype=float)
    return Curve(damage, hits)


def test_the_area_is_that_under_the_curve():
    sharp = np.linspace(0, 1, 61)
    for limit in (1.0, 0.25):
        found = frontiers({"a": [curve(lambda s: s, lambda s: s**3, sharp)]}, limit).areas["a"]
        assert found.value == pytest.approx(quad(lambda t, L=limit: np.cbrt(L * t**2), 0, 1)[0], abs=0.01)
        assert found.low < found.value < found.high


def test_a_frontier_is_the_best_of_its_curves_and_never_falls():
    fast = curve(lambda s: 0.5 * min(1, 4 * s), lambda s: s)
    far = curve(lambda s: s**2, lambda s: s)
    both = frontiers({"both": [fast, far], "fast": [fast], "far": [far]}, limit=1.0)
    height = {name: both.band(name)[0] for name in both.heights}
    np.testing.assert_allclose(height["both"], np.maximum(height["fast"], height["far"]))
    falling = curve(lambda s: 1 - abs(2 * s - 1), lambda s: s)
    ups, _, _ = frontiers({"a": [falling]}, limit=1.0).band("a")
    assert (np.diff(ups) >= 0).all()
    assert ups[-1] == pytest.approx(1, abs=0.02)


def test_at_equal_damage_the_ranking_of_a_fixed_strength_can_turn_round():
    """`loud` answers more at its default strength, which does ten times the damage; at any damage it answers less."""
    loud = curve(lambda s: min(1.0, 0.2 + s), lambda s: s, noise=0.3)
    quiet = curve(lambda s: min(1.0, 0.2 + 0.7 * s), lambda s: 0.1 * s, noise=0.3)
    assert loud.hits[-1].mean() > quiet.hits[-1].mean()
    found = frontiers({"loud": [loud], "quiet": [quiet]}, limit=0.3)
    (pair,) = found.comparisons()
    assert (pair.one, pair.other) == ("loud", "quiet")
    assert pair.difference.high < 0
    assert pair.p_holm == pair.p < 0.01
    assert found.areas["quiet"].value > found.areas["loud"].value


def test_methods_that_do_the_same_are_not_told_apart():
    same = {name: [curve(lambda s: s, lambda s: s, noise=0.5)] for name in ("a", "b", "c")}
    for pair in frontiers(same, limit=1.0).comparisons():
        assert pair.difference[:3] == (0, 0, 0)
        assert pair.p == pair.p_holm == 1


def test_all_methods_have_the_same_draws():
    """What differs by a constant on every draw has an interval of no width, however noisy each area is."""
    one, other = curve(lambda s: 0.5, lambda s: s, noise=1), curve(lambda s: 0.5, lambda s: s, noise=1)
    other = Curve(other.damage, 1 - one.hits)  # the other half of the prompts
    areas = frontiers({"one": [one], "other": [other]}, limit=0.5)
    (pair,) = areas.comparisons()
    drawn = areas.heights["one"].mean(axis=1) + areas.heights["other"].mean(axis=1)
    np.testing.assert_allclose(drawn, 1)
    assert pair.difference.low < 0 < pair.difference.high


def test_draws_are_of_as_many_prompts_as_there_are():
    weights = Weights.drawn(7, 9, resamples=50)
    for of, n in zip(weights, (7, 9), strict=True):
        assert of.shape == (51, n)
        np.testing.assert_allclose(of.sum(axis=1), 1)
        np.testing.assert_allclose(of[0], 1 / n)
        np.testing.assert_allclose(of * n, np.round(of * n), atol=1e-12)
