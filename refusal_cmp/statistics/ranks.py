"""Do two scores rank things alike, and how alike would they if they were free of noise?

A score of a thing is its mean over prompts. Prompts are a sample, so that scores are noisy, and noise attenuates rank
correlation: Spearman's ρ of the scores is a lower bound of that of the scores over all prompts there might be, where
the noises are independent. Three things are known from halves A and B of the prompts that have none in common:

    r = ρ(x_A, x_B)                          how well half a score ranks like the other half,
    2 r / (1 + r)                            the reliability of the whole score (Spearman 1910, Brown 1910),
    ρ₀ = ρ(x_A, y_B) / √(r_x r_y)            the correlation without noise (Spearman 1904, Am. J. Psychol. 15:72),

each r and ρ(x_A, y_B) the mean over many random halves. x and y are taken from different halves because both scores are
of the same prompts, so that their noises are not independent: ρ itself may then be too high.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from refusal_cmp.statistics.intervals import LEVEL

RESAMPLES = 1000
HALVES = 200
"""Random halves."""

Array = np.ndarray
Scores = Float[Array, "things prompts"]


class RankAgreement(NamedTuple):
    """How alike two scores rank things."""

    rho: float
    """Spearman's ρ of the scores as they are."""
    noise_free: float | None
    """ρ₀; None where a score's halves do not agree with each other, so that nothing is known of it."""
    ci_low: float
    ci_high: float
    """95 % interval of ρ₀."""
    reliability: tuple[float, float]
    """Of either score; 0 where its halves do not agree with each other."""


def rank_agreement(x: Scores, y: Scores, rng: np.random.Generator) -> RankAgreement:
    """The agreement of two scores of the same things on the same prompts.

    The interval is made from drawing the prompts anew. A resample is as noisy as a half of the prompts, since the noise
    of the drawing comes on top of the sample's own; so its ρ* lie too low, and too close together, by √(r_x r_y). They
    are stretched by that and moved to lie about ρ₀; what the ρ* themselves span is in the interval too.
    """
    n = x.shape[1]
    rho = float(spearman(x.mean(1), y.mean(1)))
    first = rng.permuted(np.tile(np.arange(n) < n // 2, (HALVES, 1)), axis=1)
    halves = [[_scores(z, part) for part in (first, ~first)] for z in (x, y)]
    r_x, r_y = (max(0.0, float(spearman(*of_score).mean())) for of_score in halves)
    reliability = (2 * r_x / (1 + r_x), 2 * r_y / (1 + r_y))
    attenuation = np.sqrt(r_x * r_y)
    if not attenuation > 0:
        return RankAgreement(rho, None, -1.0, 1.0, reliability)
    (x_a, x_b), (y_a, y_b) = halves
    crossed = np.mean([spearman(x_a, y_b), spearman(x_b, y_a)])
    noise_free = float(np.clip(crossed / attenuation, -1, 1))
    times = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    drawn = spearman(_scores(x, times), _scores(y, times))
    ends = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    moved = np.clip(noise_free + (ends - drawn.mean()) / attenuation, -1, 1)
    return RankAgreement(rho, noise_free, float(min(ends[0], moved[0])), float(max(ends[1], moved[1])), reliability)


def spearman(a: Float[Array, "*m things"], b: Float[Array, "*m things"]) -> Float[Array, "*m"]:
    """Spearman's ρ of each pair of rows: Pearson's r of their ranks; 0 where all values of a row are equal."""
    centred = [rank - rank.mean(-1, keepdims=True) for rank in (rankdata(values, axis=-1) for values in (a, b))]
    norms = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    return (centred[0] * centred[1]).sum(-1) / np.where(norms > 0, norms, 1)


def _scores(z: Scores, times: Float[Array, "m prompts"]) -> Float[Array, "m things"]:
    """Mean scores over prompts that are taken so many times; 0 where none is."""
    return times @ z.T / np.maximum(times.sum(1, keepdims=True), 1)
