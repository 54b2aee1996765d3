"""Intervals over seeds: at least those of one seed, at least Student's, and they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import ttest_1samp

from refusal_cmp.statistics import Estimate, over_seeds, rate


def exact(value):
    return Estimate(value, value, value, 40)


def test_without_doubt_in_a_seed_it_is_students_interval():
    values = [0.2, 0.5, 0.3, 0.45]
    found = over_seeds([exact(value) for value in values])
    oracle = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean[:3] == pytest.approx((np.mean(values), oracle.low, oracle.high))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert (found.n_seeds, found.mean.n) == (4, 40)


def test_of_seeds_that_agree_it_is_the_interval_of_one_which_more_of_them_do_not_narrow():
    one = rate(3, 40)
    for n in (2, 3, 10):
        found = over_seeds([one] * n, bounded=True)
        assert found.mean == pytest.approx(one)
        assert found.sd == pytest.approx(0, abs=1e-12)


def test_it_is_as_lopsided_as_its_parts_and_no_share_is_beyond_0_and_1():
    found = over_seeds([rate(0, 40), rate(1, 40), rate(4, 40)], bounded=True)
    assert found.mean.low == 0
    assert found.mean.high - found.mean.value > found.mean.value
    beyond = over_seeds([rate(0, 40), rate(1, 40), rate(4, 40)])
    assert beyond.mean.low < 0


def test_of_what_is_never_negative_it_ends_above_zero_and_holds_the_mean():
    found = [exact(0.05), exact(0.09)]
    mean, plain = over_seeds(found, positive=True).mean, over_seeds(found).mean
    assert plain.low < 0 < mean.low < mean.value == plain.value < mean.high
    assert math.log(mean.high / mean.value) == pytest.approx(math.log(mean.value / mean.low))
    assert math.log(mean.high / mean.value) == pytest.approx((plain.high - plain.value) / plain.value)
    far = [Estimate(100 + value, 99 + value, 102 + value, 40) for value in (0, 0.1, 0.3)]
    assert over_seeds(far, positive=True).mean == pytest.approx(over_seeds(far).mean, rel=2e-3)


@pytest.mark.parametrize(("low", "end"), [(0.1, 0.1), (0.0, 0.0), (-0.05, 0.0)])
def test_of_what_is_never_negative_it_is_that_of_one_seed_where_seeds_agree(low, end):
    found = over_seeds([Estimate(0.2, low, 0.7, 40)] * 3, positive=True)
    assert found.mean == pytest.approx((0.2, end, 0.7, 40))
    assert over_seeds([exact(0.0)] * 3, positive=True).mean == (0, 0, 0, 40)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_of_skewed_seeds_it_covers_the_mean_more_often_than_the_symmetric_one(n):
    drawn = np.exp(np.random.default_rng(0).standard_normal((1000, n)))
    covered = [
        sum(
            one.low <= math.exp(0.5) <= one.high
            for row in drawn
            for one in [over_seeds([*map(exact, row)], **how).mean]
        )
        for how in ({"positive": True}, {})
    ]
    assert covered[0] >= 870
    assert covered[0] > covered[1] + 20


@pytest.mark.parametrize("found", [[exact(0.5)], [exact(0.5), exact(math.nan)], [exact(1.0), exact(math.inf)]])
def test_one_seed_or_a_value_that_is_none_has_no_interval(found):
    over = over_seeds(found)
    assert math.isnan(over.mean.low)
    assert math.isnan(over.sd)


@pytest.mark.parametrize(("n", "spread"), [(3, 0.0), (3, 1.0), (5, 0.5)])
def test_it_covers_what_all_seeds_and_prompts_would_give(n, spread):
    rng = np.random.default_rng(0)

    def draw(seeds, prompts):
        latent = 1.5 + 1.5 * rng.standard_normal(prompts) + spread * rng.standard_normal((seeds, 1))
        return rng.random((seeds, prompts)) < expit(latent)

    true, covered = draw(2000, 2000).mean(), 0
    for _ in range(300):
        found = over_seeds([rate(int(row.sum()), 40) for row in draw(n, 40)], bounded=True).mean
        covered += found.low <= true <= found.high
    assert covered / 300 >= 0.93
