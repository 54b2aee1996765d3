"""Rank agreement of noisy scores: what is known of simulated truth comes out, and what is not known is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from refusal_cmp.statistics.ranks import rank_agreement, spearman


def noisy(rng, things=36, prompts=32, *, rho=0.95, reliability=0.9, shared=0.0):
    """Two scores by prompt and the rank correlation of what is behind them; `shared` is how alike their noises are."""
    truth = rng.standard_normal(things)
    other = rho * truth + np.sqrt(1 - rho**2) * rng.standard_normal(things)
    noise = rng.standard_normal((things, prompts))
    others = shared * noise + np.sqrt(1 - shared**2) * rng.standard_normal((things, prompts))
    size = np.sqrt(prompts * (1 - reliability) / reliability)
    return truth[:, None] + size * noise, other[:, None] + size * others, float(spearman(truth, other))


def studied(repeats, **settings):
    """(found, truth) of repeated simulations."""
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        x, y, truth = noisy(rng, **settings)
        yield rank_agreement(x, y, rng), truth


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_spearman_is_scipys_with_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    if len(set(x)) > 1 < len(set(y)):
        assert float(spearman(x, y)) == pytest.approx(spearmanr(x, y).statistic)


def test_scores_that_are_the_same_on_every_prompt_are_certain():
    rng = np.random.default_rng(0)
    x, y = (np.tile(rng.standard_normal((20, 1)), (1, 8)) for _ in range(2))
    found = rank_agreement(x, y, rng)
    rho = spearmanr(x[:, 0], y[:, 0]).statistic
    assert found[:4] == pytest.approx((rho, rho, rho, rho))
    assert found.reliability == pytest.approx((1, 1))


def test_noise_attenuates_and_the_interval_covers_what_is_without_it():
    found, truth = zip(*studied(60), strict=True)
    truth = np.array(truth)
    assert np.mean([one.rho for one in found] - truth) < -0.08
    assert abs(np.mean([one.noise_free for one in found] - truth)) < 0.02
    assert np.mean([one.ci_low <= true <= one.ci_high for one, true in zip(found, truth, strict=True)]) >= 0.93
    assert np.mean([one.reliability for one in found]) == pytest.approx(0.9, abs=0.03)
    assert all(one.ci_low <= one.rho <= one.ci_high for one in found)


def test_noise_that_both_scores_share_is_not_taken_for_agreement():
    found = [one for one, _ in studied(30, rho=0.0, reliability=0.7, shared=0.9)]
    assert np.mean([one.rho for one in found]) > 0.2
    assert abs(np.mean([one.noise_free for one in found])) < 0.12


def test_of_a_score_whose_halves_contradict_each_other_nothing_is_known():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 1))
    found = rank_agreement(np.hstack([x, -x]), np.hstack([x, x]), rng)
    assert found.noise_free is None
    assert (found.ci_low, found.ci_high, found.reliability[0]) == (-1, 1, 0)
