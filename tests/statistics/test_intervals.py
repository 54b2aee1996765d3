"""Intervals and tests: closed forms, textbook values and scipy are oracles; coverage is simulated, seeds fixed."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm, permutation_test, t

from refusal_cmp.statistics import (
    Paired,
    holm,
    mean,
    paired_difference,
    paired_differences,
    rate,
    rate_among,
    weighted_mean,
)
from refusal_cmp.statistics.skewness import critical_values

# Shares


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_interval_is_its_closed_form(n, share):
    k = round(share * n)
    estimate = rate(k, n)
    z, p = norm.ppf(0.975), k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert estimate.low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert estimate.high == pytest.approx(min(1, centre + half), abs=1e-9)


@settings(deadline=None)  # scipy is slow on its first call
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 100))
def test_a_share_among_many_has_the_exact_interval_at_the_share_of_the_error_that_is_its_own(k, more, m):
    n, tail = k + more, 0.025 / m
    found = rate_among(k, n, m)
    assert (found.low, found.high) == pytest.approx((beta.ppf(tail, k, more + 1), beta.ppf(1 - tail, k + 1, more)))
    assert rate_among(n, n, m).low == pytest.approx(tail ** (1 / n))


def test_the_best_of_fifty_is_seldom_overrated_and_would_often_be_by_its_own_interval():
    n, m, p, repeats = 60, 50, 0.9, 300
    best = np.random.default_rng(0).binomial(n, p, size=(repeats, m)).max(1)
    assert np.mean([rate_among(int(k), n, m).low > p for k in best]) <= 0.025
    assert np.mean([rate(int(k), n).low > p for k in best]) > 0.05


# Means


def test_weighted_mean_is_that_of_all_tokens():
    assert weighted_mean([2.0, 6.0], [1, 3]).value == 2.0


def test_documents_that_all_have_the_mean_leave_no_doubt():
    narrow, wide = weighted_mean([10, 10, 10, 10], [5, 5, 5, 5]), weighted_mean([5, 15, 5, 15], [5, 5, 5, 5])
    assert narrow.value == wide.value == 2
    assert narrow.low == narrow.high
    assert wide.low < 2 < wide.high


def test_a_nan_loss_is_a_nan_mean():
    assert np.isnan(weighted_mean([1.0, float("nan")], [1, 1])[:3]).all()


def test_one_value_has_no_interval():
    assert mean([3.0])[:1] == (3.0,)
    assert np.isnan(mean([3.0])[1:3]).all()


@settings(deadline=None)  # the first of each size simulates
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-5, 5))
def test_an_interval_moves_with_its_values_turns_with_them_and_is_never_shorter_than_students(values, scale, shift):
    x = np.round(values, 3)
    found, moved, turned = mean(x), mean(scale * x + shift), mean(-x)
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    assert found.low <= found.value - half + 1e-9
    assert found.high >= found.value + half - 1e-9
    assert moved[:3] == pytest.approx([scale * end + shift for end in found[:3]], abs=1e-6)
    assert turned[1:3] == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_of_many_values_it_is_students_whatever_their_skewness():
    values = np.random.default_rng(0).exponential(size=100_000)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    found = mean(values)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.1)


def lognormal(sigma):
    return lambda rng, n: rng.lognormal(0, sigma, n), np.exp(sigma**2 / 2)


def rare(share, low, high):
    """KL of prompts: mostly next to nothing, now and then a lot."""

    def draw(rng, n):
        return np.where(rng.random(n) < share, high * rng.lognormal(0, 0.5, n), low * rng.lognormal(0, 1, n))

    return draw, share * high * np.exp(0.125) + (1 - share) * low * np.exp(0.5)


SKEWED = {"1": lognormal(1.0), "1.25": lognormal(1.25), "1.5": lognormal(1.5), "rare": rare(0.15, 0.02, 0.5)}


@pytest.mark.parametrize("name", SKEWED)
def test_the_interval_of_48_skewed_values_covers_the_mean_where_students_does_not(name):
    draw, true = SKEWED[name]
    rng = np.random.default_rng(1)
    samples = [draw(rng, 48) for _ in range(600)]
    intervals = np.array([mean(x)[1:3] for x in samples])
    half = np.array([t.ppf(0.975, 47) * x.std(ddof=1) / np.sqrt(48) for x in samples])
    assert ((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean() >= 0.93
    assert (np.abs(np.mean(samples, axis=1) - true) <= half).mean() < 0.92


def test_the_loss_of_documents_of_different_lengths_is_covered():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        tokens = rng.integers(5, 60, 48).astype(float)
        found = weighted_mean(tokens * rng.lognormal(0, 1.25, 48), tokens)
        covered += found.low <= np.exp(1.25**2 / 2) <= found.high
    assert covered / 600 >= 0.93


def test_critical_values_are_students_at_least_and_those_of_a_tail_to_the_left_are_mirrored():
    for n in (2, 3, 10, 48, 500):
        student = t.ppf(0.975, n - 1)
        for skewness in (0.0, 0.4, 2.0, 6.0):
            low, high = critical_values(n, skewness, 0.95)
            assert low <= -student
            assert high >= student
            if skewness:
                assert critical_values(n, -skewness, 0.95) == (-high, -low)
    assert critical_values(48, 2.0, 0.95)[0] < -3.5


# Paired differences


def test_mcnemar_against_its_definition():
    one, other = np.array([1] * 9 + [0] * 3 + [1] * 5), np.array([0] * 9 + [1] * 3 + [1] * 5)
    found = paired_difference(one.astype(float), other.astype(float), np.ones(17))
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(2 * binom.cdf(3, 12, 0.5))
    assert found.difference == pytest.approx(6 / 17)
    assert found.ci_low < found.difference < found.ci_high


def test_permutation_test_sees_a_difference_and_none():
    rng = np.random.default_rng(0)
    base, weights = rng.normal(size=60), rng.integers(5, 30, size=60).astype(float)
    same = paired_difference(base + rng.normal(size=60) * 0.1, base, weights)
    shifted = paired_difference(base + 0.3 + rng.normal(size=60) * 0.1, base, weights)
    assert (same.test, shifted.test) == ("permutation", "permutation")
    assert same.p > 0.05
    assert shifted.p < 0.01
    assert shifted.ci_low > 0


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((1, 1, 7, 12), -0.507, -0.026), ((0, 0, 48, 0), -1, -0.895), ((24, 0, 0, 24), -0.039, 0.039)],
)
def test_judgements_have_newcombes_interval(counts, low, high):
    """The first are Fagerland, Lydersen and Laake's (2014) patients: both, first only, second only, neither."""
    one, other = (np.repeat(hits, counts).astype(float) for hits in ([1, 1, 0, 0], [1, 0, 1, 0]))
    found = paired_difference(one, other, np.ones(len(one)))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize("family", [1, 60, 500])
def test_a_clear_difference_stays_one_in_a_large_family(family):
    base = np.random.default_rng(0).normal(size=40)
    p = paired_difference(base + 5, base, np.ones(40), family).p
    assert holm(np.full(family, p)).max() < 0.01


def test_thousands_of_pairs_have_the_p_values_of_each_alone():
    """Of a large family, those that are not small are known from fewer flips, to a tenth."""
    rng = np.random.default_rng(0)
    pairs = [Paired(rng.normal(shift, 1, 30), np.zeros(30), np.ones(30), 700) for shift in np.linspace(0, 1.2, 12)]
    pairs += [
        Paired(rng.normal(0.4, 1, 12), np.zeros(12), np.ones(12), 700),
        Paired(np.eye(9)[0], np.zeros(9), np.ones(9)),
    ]
    told = []
    found = paired_differences(pairs, counted(told))
    assert sum(told) == len(pairs) - 1  # McNemar's takes no flips
    for pair, together in zip(pairs, found, strict=True):
        alone = paired_difference(*pair)
        assert together == alone
        if pair.family > 1:
            flips = np.random.default_rng(1).integers(2, size=(200_000, len(pair.one))) * 2 - 1
            expected = (abs(flips @ pair.one) >= abs(pair.one.sum())).mean()
            assert together.p == pytest.approx(expected, rel=0.12, abs=3e-5)


def counted(told):
    """Progress that keeps by how much it advances."""

    @contextmanager
    def progress(*_):
        yield told.append

    return progress


def test_sign_flips_of_few_examples_are_scipys_exact_test():
    differences = np.random.default_rng(3).normal(0.1, size=9)
    theirs = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert paired_difference(differences, np.zeros(9), np.ones(9)).p == pytest.approx(theirs.pvalue)
