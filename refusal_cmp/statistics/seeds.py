"""A value over several seeds: how far it moves from seed to seed, and an interval for what other seeds would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from refusal_cmp.statistics.intervals import LEVEL, Estimate


class OverSeeds(NamedTuple):
    """A mean over seeds with its interval, how far seeds are apart, and how many they are."""

    mean: Estimate
    sd: float
    """Standard deviation from seed to seed; NaN of one seed."""
    n_seeds: int


def over_seeds(found: Sequence[Estimate], bounded: bool = False) -> OverSeeds:
    """The mean over seeds that were measured on the same test prompts, with its 95 % hierarchical interval.

    Two things could have been others: the seed, and the test prompts. To either end of the mean the interval goes as
    far as the two together, √(a² + b²): a is the distance to that end in the intervals of single seeds (their root mean
    square, as the prompts are the same and more seeds do not make them more), and b is t · sd / √seeds. Two intervals
    are put together so by MOVER (Zou and Donner 2008), which leaves them as lopsided as they are near 0 and 1.

    Parameters
    ----------
    found
        One for each seed. A value that is not finite makes the mean so, and the interval NaN.
    bounded
        Whether the value is a share, of which no interval goes beyond 0 and 1.
    """
    values, low, high = (np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high"))
    mean, n, n_seeds = float(values.mean()), min(one.n for one in found), len(found)
    if n_seeds < 2 or not np.isfinite(values).all():
        return OverSeeds(Estimate(mean, np.nan, np.nan, n), np.nan, n_seeds)
    sd = float(values.std(ddof=1))
    by_seeds = float(t.ppf((1 + LEVEL) / 2, n_seeds - 1)) * sd / np.sqrt(n_seeds)
    below, above = (float(np.hypot(np.sqrt((end**2).mean()), by_seeds)) for end in (values - low, high - values))
    ends = np.clip([mean - below, mean + above], 0, 1) if bounded else (mean - below, mean + above)
    return OverSeeds(Estimate(mean, float(ends[0]), float(ends[1]), n), sd, n_seeds)
