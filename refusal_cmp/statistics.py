"""Intervals and paired tests, from scipy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
"""Of resampling: the same data always have the same interval."""

Array = np.ndarray
Values = Sequence[float] | np.ndarray


class Estimate(NamedTuple):
    """A value with its 95 % interval and the number of units behind it."""

    value: float
    low: float
    high: float
    n: int


def rate(successes: int, n: int) -> Estimate:
    """A share with its Wilson interval."""
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def weighted_mean(totals: Values, weights: Values) -> Estimate:
    """Σ totals / Σ weights over documents: the ratio estimator, with a standard error clustered by document."""
    total, weight = np.asarray(totals, dtype=float), np.asarray(weights, dtype=float)
    n = len(total)
    mean = total.sum() / weight.sum()
    residuals = total - mean * weight
    error = np.sqrt(n / (n - 1) * (residuals**2).sum()) / weight.sum() if n > 1 else np.nan
    half = error * t.ppf((1 + LEVEL) / 2, n - 1) if n > 1 else np.nan
    return Estimate(float(mean), float(mean - half), float(mean + half), n)


def mean(values: Values) -> Estimate:
    """A mean with its t interval."""
    return weighted_mean(values, np.ones(len(values)))


def resampled(statistic: Callable[..., float], *samples: Values, resamples: int = RESAMPLES // 2) -> Estimate:
    """A statistic of paired samples with its bootstrap percentile interval; NaN where it is not defined."""
    value = float(statistic(*map(np.asarray, samples)))
    n = len(samples[0])
    if not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, n)
    rng = np.random.default_rng(SEED)
    drawn = [
        float(statistic(*(np.asarray(sample)[rows] for sample in samples)))
        for rows in rng.integers(n, size=(resamples, n))
    ]
    low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


class Difference(NamedTuple):
    """A paired difference with its 95 % interval and the p-value of no difference."""

    difference: float
    ci_low: float
    ci_high: float
    p: float
    test: str
    n: int


def paired_difference(one: Float[Array, " n"], other: Float[Array, " n"], weights: Float[Array, " n"]) -> Difference:
    """one − other on the same examples, weighted.

    The interval is from bootstrapping examples. The p-value is McNemar's, exact, if all values are 0 or 1, and
    of flipping the signs of the differences otherwise.
    """
    n, differences = len(one), one - other
    value = float((weights * differences).sum() / weights.sum())
    judged = bool(np.isin([one, other], (0, 1)).all())
    if not differences.any():
        return Difference(value, value, value, 1.0, "mcnemar" if judged else "permutation", n)
    low, high = _bootstrap(differences, weights)
    if judged:
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        return Difference(value, low, high, float(binomtest(gained, gained + lost).pvalue), "mcnemar", n)
    return Difference(value, low, high, _sign_flips(weights * differences), "permutation", n)


def holm(p: Float[Array, " m"]) -> Float[Array, " m"]:
    """Holm's step-down correction of the p-values of a family (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1))
    return corrected


def _bootstrap(differences: Float[Array, " n"], weights: Float[Array, " n"]) -> tuple[float, float]:
    def statistic(d: Array, w: Array, axis: int) -> Array:
        return (d * w).sum(axis) / w.sum(axis)

    if len(differences) < 2:
        return np.nan, np.nan
    interval = bootstrap(
        (differences, weights), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES,
        method="percentile", confidence_level=LEVEL, rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def _sign_flips(differences: Float[Array, " n"]) -> float:
    """Two-sided p-value of the sum under flips of the signs."""
    result = permutation_test(
        (differences,), lambda d, axis: d.sum(axis), permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.pvalue)


def normal_interval(value: float, error: float, n: int) -> Estimate:
    """A value with the normal interval of its standard error."""
    half = norm.ppf((1 + LEVEL) / 2) * error
    return Estimate(value, value - half, value + half, n)
