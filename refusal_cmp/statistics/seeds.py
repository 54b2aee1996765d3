"""A value over several seeds: how far it moves from seed to seed, and an interval for what other seeds would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import t

from refusal_cmp.statistics.intervals import LEVEL, Estimate

Array = np.ndarray


class OverSeeds(NamedTuple):
    """A mean over seeds with its interval, how far seeds are apart, and how many they are."""

    mean: Estimate
    sd: float
    """Standard deviation from seed to seed; NaN of one seed."""
    n_seeds: int


def over_seeds(found: Sequence[Estimate], bounded: bool = False, positive: bool = False) -> OverSeeds:
    """The mean over seeds that were measured on the same test prompts, with its 95 % hierarchical interval.

    Two things could have been others: the seed, and the test prompts. To either end of the mean the interval goes as
    far as the two together, √(a² + b²): a is the distance to that end in the intervals of single seeds (their root mean
    square, as the prompts are the same and more seeds do not make them more), and b is t · sd / √seeds. Two intervals
    are put together so by MOVER (Zou and Donner 2008), which leaves them as lopsided as they are near 0 and 1.

    Of what is never negative the two are put together on the logarithm, so that the interval ends above zero by itself:
    to either end it goes from the mean m by the factor exp(±√(a² + b²)), where a is the logarithm of how many times m
    the end at a distance of that root mean square is, and b is t · sd / (m √seeds), the distance of Student's interval
    on the logarithm of m by the delta method. It is still an interval of the mean, which one of the logarithms' mean
    would not be, and no seed's value need be above zero. Where seeds agree it is that of one seed, and where those
    reach zero, it does. Of skewed values it covers more than the symmetric one (docs/statistics.md).

    Parameters
    ----------
    found
        One for each seed. A value that is not finite makes the mean so, and the interval NaN.
    bounded
        Whether the value is a share, of which no interval goes beyond 0 and 1.
    positive
        Whether the value is never negative, as a KL or a loss is, so that no interval goes below 0.
    """
    values, low, high = (np.array([[getattr(one, name)] for one in found]) for name in ("value", "low", "high"))
    many = over_seeds_many(values, low, high, np.array([bounded]), np.array([positive]))
    mean, first, last, sd = (float(part[0]) for part in many)
    return OverSeeds(Estimate(mean, first, last, min(one.n for one in found)), sd, len(found))


def over_seeds_many(
    values: Float[Array, "seeds m"],
    low: Float[Array, "seeds m"],
    high: Float[Array, "seeds m"],
    bounded: Bool[Array, " m"],
    positive: Bool[Array, " m"],
) -> tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]:
    """`over_seeds` of many numbers at once: their means, the lower and the upper ends, and the standard deviations."""
    n_seeds = len(values)
    mean = values.mean(0)
    if n_seeds < 2:
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, nothing, nothing
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sd = values.std(0, ddof=1)
        by_seeds = float(t.ppf((1 + LEVEL) / 2, n_seeds - 1)) * sd / np.sqrt(n_seeds)
        below, above = (np.sqrt((end**2).mean(0)) for end in (values - low, high - values))
        ends = mean - np.hypot(below, by_seeds), mean + np.hypot(above, by_seeds)
        by_factor = _on_the_logarithm(mean, below, above, by_seeds)
        first, last = (np.where(positive & (mean > 0), *both) for both in zip(by_factor, ends, strict=True))
        first = np.clip(first, np.where(bounded | positive, 0.0, -np.inf), np.where(bounded, 1.0, np.inf))
        last = np.clip(last, np.where(bounded | positive, 0.0, -np.inf), np.where(bounded, 1.0, np.inf))
    known = np.isfinite(values).all(0)
    first, last, sd = (np.where(known, part, np.nan) for part in (first, last, sd))
    return mean, first, last, sd


def _on_the_logarithm(
    mean: Float[Array, " m"], below: Float[Array, " m"], above: Float[Array, " m"], by_seeds: Float[Array, " m"]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """The ends of an interval of a mean above zero, from the distances to its ends in intervals of its two parts."""
    to_low = np.where(below < mean, -np.log1p(-below / mean), np.inf)
    to_high = np.log1p(above / mean)
    down, up = np.hypot(to_low, by_seeds / mean), np.hypot(to_high, by_seeds / mean)
    return mean * np.exp(-down), mean * np.exp(up)
