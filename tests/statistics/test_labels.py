"""Samples that are weighed back, and agreement with people: published numbers, scikit-learn, simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from refusal_cmp.statistics.labels import clustered, inclusion, kappa, krippendorff, raw_agreement, systematic, tables


@given(st.lists(st.floats(0.1, 50), min_size=5, max_size=40), st.integers(1, 40))
def test_chances_add_up_to_the_sample_and_follow_the_sizes(sizes, n):
    n = min(n, len(sizes))
    chances = inclusion(np.array(sizes), n)
    assert chances.sum() == pytest.approx(n)
    assert (chances <= 1 + 1e-12).all()
    drawn = chances < 1 - 1e-9
    ratios = (chances / np.array(sizes))[drawn]
    assert ratios == pytest.approx(ratios[:1].repeat(len(ratios)))


def test_systematic_draws_have_the_chances_that_they_claim_and_each_stratum_its_share():
    chances = inclusion(np.repeat([1.0, 4.0], [80, 20]), 16)
    counts = np.zeros(100)
    for seed in range(2000):
        rows = systematic(chances, np.random.default_rng(seed))
        assert len(set(rows)) == 16
        assert abs((rows >= 80).sum() - chances[80:].sum()) <= 1
        counts[rows] += 1
    assert counts / 2000 == pytest.approx(chances, abs=4 * np.sqrt(0.25 / 2000))


def test_weighing_back_undoes_that_disputed_completions_are_drawn_more_often():
    rng = np.random.default_rng(0)
    judge, people = rng.random(400) < 0.5, np.zeros(400, dtype=bool)
    people[:] = judge
    people[360:] = ~judge[360:]  # a judge that errs in a tenth
    chances = inclusion(np.repeat([1.0, 4.0], [360, 40]), 100)
    found = []
    for seed in range(300):
        rows = systematic(chances, np.random.default_rng(seed))
        found.append(raw_agreement(tables(judge[rows], people[rows], 1 / chances[rows], list(rows))))
    assert np.mean(found) == pytest.approx(0.9, abs=0.005)
    rows = systematic(chances, np.random.default_rng(0))
    assert (judge == people)[rows].mean() < 0.8, "without the weights it would be far off"


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_scikit_learn_s_with_weights(seed):
    rng = np.random.default_rng(seed)
    people = rng.random(60) < 0.4
    judge = np.where(rng.random(60) < 0.2, ~people, people)
    weights, prompts = rng.uniform(0.5, 9, 60), rng.integers(12, size=60).tolist()
    cells = tables(judge, people, weights, prompts)
    assert cells.shape == (len(set(prompts)), 4)
    assert kappa(cells) == pytest.approx(cohen_kappa_score(judge, people, sample_weight=weights), abs=1e-12)
    assert raw_agreement(cells) == pytest.approx(np.average(judge == people, weights=weights), abs=1e-12)
    raw, found = clustered(cells)
    assert raw.low < raw.value < raw.high
    assert found.low < found.value < found.high
    assert raw.n == len(set(prompts))


def test_agreement_throughout_is_no_certainty():
    raw, found = clustered(tables([True, False] * 10, [True, False] * 10, np.linspace(0.1, 3.7, 20), range(20)))
    assert (raw.value, found.value) == pytest.approx((1, 1))
    assert (raw.low, raw.high) == pytest.approx(tuple(proportion_confint(20, 20)))
    assert np.isnan([found.low, found.high]).all()


def proportion_confint(hits, n):
    """scipy's Wilson interval."""
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def test_kappa_of_one_verdict_throughout_is_none():
    assert np.isnan(kappa(tables([True] * 4, [True] * 4, [1.0] * 4, range(4))))


def test_krippendorff_s_own_example():
    """Krippendorff 2011, *Computing Krippendorff's alpha-reliability*, section C: four observers, twelve units."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    by_observer = [[None if one == "." else one for one in row.split()] for row in rows]
    assert krippendorff(list(zip(*by_observer, strict=True))) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_agreement_and_near_zero_for_chance():
    rng = np.random.default_rng(0)
    same = [[value, value] for value in rng.integers(2, size=50).tolist()]
    assert krippendorff(same) == 1
    assert krippendorff(rng.integers(2, size=(4000, 2)).tolist()) == pytest.approx(0, abs=4 / np.sqrt(4000))
    assert np.isnan(krippendorff([[True, True], [True, None]]))
