"""Intervals and paired tests, from scipy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, norm, skew

from refusal_cmp.progress import Progress, silent
from refusal_cmp.statistics.skewness import critical_values

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 120
"""Sign flips for each test of a family: 20 make 0.05 / m the least p-value of m tests, and 100 more resolve it."""
SURE = 40_000
"""Flips after which a p-value that is not small is known well enough."""
AT_ONCE = 2000
"""Tests whose sums under one set of flips are held at a time."""
SEED = 0
"""Of resampling: the same data always have the same interval."""
ROUNDING = 1e-14
"""A standard error that is smaller than this share of the mean is none: all values are the same."""

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


def rate_among(successes: int, n: int, m: int) -> Estimate:
    """A share that is one of m, with an exact interval (Clopper-Pearson) wide enough for all m to hold at once.

    Each is at 1 − 0.05 / m (Bonferroni), so that it holds for the share that is chosen, however it is chosen and
    however the m depend on each other.
    """
    interval = binomtest(successes, n).proportion_ci(1 - (1 - LEVEL) / m, method="exact")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def weighted_mean(totals: Values, weights: Values) -> Estimate:
    """Σ totals / Σ weights over documents: the ratio estimator, with a standard error clustered by document.

    The interval is that of t, with the critical values of a population as skewed as the documents' residuals are.
    """
    total, weight = np.asarray(totals, dtype=float), np.asarray(weights, dtype=float)
    n = len(total)
    mean = float(total.sum() / weight.sum())
    residuals = total - mean * weight
    error = float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / weight.sum()) if n > 1 else np.nan
    low = high = 0.0
    if error > ROUNDING * abs(mean):
        low, high = critical_values(n, float(skew(residuals)), LEVEL)
    return Estimate(mean, mean - high * error, mean - low * error, n)


def mean(values: Values) -> Estimate:
    """A mean with its interval, made for skewed values."""
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


class Paired(NamedTuple):
    """What two plans, or methods, have of the same examples."""

    one: Float[Array, " n"]
    other: Float[Array, " n"]
    weights: Float[Array, " n"]
    family: int = 1
    """How many tests Holm's correction is to be over: sign flips are as many as that needs."""


def paired_difference(
    one: Float[Array, " n"], other: Float[Array, " n"], weights: Float[Array, " n"], family: int = 1
) -> Difference:
    """The difference of one pair; see `paired_differences`."""
    (found,) = paired_differences([Paired(one, other, weights, family)])
    return found


def paired_differences(pairs: Sequence[Paired], progress: Progress = silent) -> list[Difference]:
    """one − other on the same examples, weighted; NaN, as is p, where a difference is not finite.

    If all values are 0 or 1 and weigh the same, the interval is Newcombe's and the p-value McNemar's, exact.
    Otherwise the interval is that of `weighted_mean`, and the p-value from flipping the signs of the differences,
    finely enough for the Holm correction of a `family` of that many tests. The flips of so many examples are the same
    for all pairs, so that thousands of pairs are tested at once.
    """
    found = [_without_flips(pair) for pair in pairs]
    to_flip: dict[tuple[int, int], list[int]] = {}
    for index, (pair, difference) in enumerate(zip(pairs, found, strict=True)):
        if difference.p is None:
            to_flip.setdefault((difference.n, max(RESAMPLES, FLIPS * pair.family)), []).append(index)
    with progress("testing pairs of plans", sum(map(len, to_flip.values()))) as advance:
        for (_, flips), indices in to_flip.items():
            rows = np.stack([pairs[i].weights * (pairs[i].one - pairs[i].other) for i in indices])
            for index, p in zip(indices, _sign_flips(rows, flips, advance), strict=True):
                found[index] = found[index]._replace(p=float(p))
    return found


def _without_flips(pair: Paired) -> Difference:
    """The difference; p is None where it takes flips of signs."""
    one, other, weights, _ = pair
    n, differences = len(one), one - other
    value = float((weights * differences).sum() / weights.sum())
    if np.isin([one, other], (0, 1)).all() and (weights == weights[0]).all():
        low, high = _newcombe(one, other)
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        return Difference(value, low, high, p, "mcnemar", n)
    if not np.isfinite(differences).all():
        return Difference(np.nan, np.nan, np.nan, np.nan, "permutation", n)
    if not differences.any():
        return Difference(value, value, value, 1.0, "permutation", n)
    _, low, high, _ = weighted_mean(weights * differences, weights)
    return Difference(value, low, high, cast(float, None), "permutation", n)


def holm(p: Float[Array, " m"]) -> Float[Array, " m"]:
    """Holm's step-down correction of the p-values of a family (Holm 1979); NaN counts as a test and stays NaN."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1))
    return corrected


def _newcombe(one: Float[Array, " n"], other: Float[Array, " n"]) -> tuple[float, float]:
    """The score interval of a difference of paired proportions: method 10 of Newcombe 1998, Stat. Med. 17:2635."""
    n = len(one)
    first, second = rate(int(one.sum()), n), rate(int(other.sum()), n)
    both, neither = float((one * other).sum()), float(((1 - one) * (1 - other)).sum())
    excess = both * neither - (one.sum() - both) * (other.sum() - both)
    excess = max(excess - n / 2, 0) if excess > 0 else excess
    spread = np.sqrt(one.sum() * (n - one.sum()) * other.sum() * (n - other.sum()))
    phi = excess / spread if spread else 0.0

    def reach(down: float, up: float) -> float:
        return float(np.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0)))

    difference = first.value - second.value
    return (
        difference - reach(first.value - first.low, second.high - second.value),
        difference + reach(first.high - first.value, second.value - second.low),
    )


def _sign_flips(
    differences: Float[Array, "m n"], flips: int, advance: Callable[[int], None] = lambda _: None
) -> Float[Array, " m"]:
    """Two-sided p-values of the sums under flips of the signs: all flips if they are no more than `flips`.

    A test that has had `SURE` flips, and more than one in a hundred of them as extreme, needs no more (Besag and
    Clifford 1991): which p-values of a large family are small is what the others are for.
    """
    m, n = differences.shape
    total = differences.sum(1)
    least = abs(total) * (1 - 1e-12)  # sums of the same terms in another order are equal
    every = 2**n <= flips
    hits, seen = np.zeros(m), np.zeros(m)
    left = np.arange(m)
    for flipped in _all_flips(n) if every else _random_flips(n, flips):
        for some in np.array_split(left, -(-len(left) // AT_ONCE)):
            sums = total[some] - 2 * (flipped @ differences[some].T)
            hits[some] += (abs(sums) >= least[some]).sum(0)
            seen[some] += len(flipped)
        if not every:
            done = (seen[left] >= SURE) & (hits[left] > seen[left] / 100)
            advance(int(done.sum()))
            left = left[~done]
        if not len(left):
            break
    advance(len(left))
    return hits / seen if every else (hits + 1) / (seen + 1)


def _all_flips(n: int) -> Iterator[Float[Array, "flips n"]]:
    for start in range(0, 2**n, RESAMPLES):
        yield (np.arange(start, min(start + RESAMPLES, 2**n))[:, None] >> np.arange(n) & 1).astype(float)


def _random_flips(n: int, flips: int) -> Iterator[Float[Array, "flips n"]]:
    rng = np.random.default_rng(SEED)
    for start in range(0, flips, RESAMPLES):
        yield rng.integers(2, size=(min(RESAMPLES, flips - start), n), dtype=np.int8).astype(float)


def normal_interval(value: float, error: float, n: int) -> Estimate:
    """A value with the normal interval of its standard error."""
    half = norm.ppf((1 + LEVEL) / 2) * error
    return Estimate(value, value - half, value + half, n)
