"""Intervals for rates and for token-weighted means, from scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

LEVEL = 0.95


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


def weighted_mean(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Σ totals / Σ weights over documents: the ratio estimator, with a standard error clustered by document."""
    total, weight = np.asarray(totals, dtype=float), np.asarray(weights, dtype=float)
    n = len(total)
    mean = total.sum() / weight.sum()
    residuals = total - mean * weight
    error = np.sqrt(n / (n - 1) * (residuals**2).sum()) / weight.sum() if n > 1 else np.nan
    half = error * t.ppf((1 + LEVEL) / 2, n - 1) if n > 1 else np.nan
    return Estimate(float(mean), float(mean - half), float(mean + half), n)
