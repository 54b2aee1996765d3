"""Intervals, paired comparisons of plans, agreement of judges."""

from refusal_cmp.statistics.enough import ENOUGH, fewest
from refusal_cmp.statistics.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    Paired,
    holm,
    mean,
    normal_interval,
    paired_difference,
    paired_differences,
    rate,
    rate_among,
    resampled,
    weighted_mean,
)
from refusal_cmp.statistics.seeds import OverSeeds, over_seeds, over_seeds_many

__all__ = [
    "ENOUGH",
    "LEVEL",
    "RESAMPLES",
    "SEED",
    "Difference",
    "Estimate",
    "OverSeeds",
    "Paired",
    "fewest",
    "holm",
    "mean",
    "normal_interval",
    "over_seeds",
    "over_seeds_many",
    "paired_difference",
    "paired_differences",
    "rate",
    "rate_among",
    "resampled",
    "weighted_mean",
]
