"""Curves of what an edit does against the damage that it does, and the area under their frontier.

Along a sweep of strengths the share y of prompts is known at damages d; between strengths it is interpolated. The
frontier of several curves is the most that any of them does at no more damage x, and its area is the mean of that:

    F(x) = max over curves and d ≤ x of y(d)          A = ∫₀¹ F(L t²) dt          L: the limit of damage

The mean is along t = √(x / L), about as strengths are: a divergence is about the square of what makes it, and what an
edit does at little damage would hardly count along x itself.

Intervals are percentiles over prompts that are drawn anew, those of y and those of d, the same for all curves: methods
are compared in pairs on the same draws, and the p-values of all pairs corrected by Holm. Taking the best of curves
makes an area larger by chance, and more so the more curves there are: it is fair to compare methods that have as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from refusal_cmp.statistics.intervals import LEVEL, RESAMPLES, SEED, Estimate, holm

Array = np.ndarray
POINTS = 101
"""Damages at which a frontier is evaluated."""


def damages(limit: float) -> Float[Array, " p"]:
    """From 0 to the limit, evenly along their square roots."""
    return limit * np.linspace(0, 1, POINTS) ** 2


@dataclass(frozen=True)
class Curve:
    """A sweep of strengths, the unedited model among them."""

    damage: Float[Array, "s v"]
    """Of each strength on each prompt that damage is measured on."""
    hits: Float[Array, "s h"]
    """Of each strength whether each prompt counts."""

    def along(
        self, x: Float[Array, " p"], of_damage: Float[Array, "b v"], of_hits: Float[Array, "b h"]
    ) -> Float[Array, "b p"]:
        """The share that counts, at damages x, for each weighing of the prompts; beyond its end as at its end."""
        damage, share = of_damage @ self.damage.T, of_hits @ self.hits.T
        order = np.argsort(damage, axis=1, kind="stable")
        damage, share = np.take_along_axis(damage, order, 1), np.take_along_axis(share, order, 1)
        return np.stack([np.interp(x, d, y) for d, y in zip(damage, share, strict=True)])


class Weights(NamedTuple):
    """Weighings of the prompts: the first of all alike, the others of draws with replacement."""

    damage: Float[Array, "b v"]
    hits: Float[Array, "b h"]

    @classmethod
    def drawn(cls, n_damage: int, n_hits: int, resamples: int = RESAMPLES) -> Weights:
        """For so many prompts of damage, and so many that count or not."""
        rng = np.random.default_rng(SEED)
        return cls(*(_weights(rng, n, resamples) for n in (n_damage, n_hits)))


def _weights(rng: np.random.Generator, n: int, resamples: int) -> Float[Array, "b n"]:
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.vstack([np.ones((1, n)), drawn]) / n


class Comparison(NamedTuple):
    """Two frontiers: the difference of their areas, its interval, and p before and after Holm's correction."""

    one: str
    other: str
    difference: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True)
class Frontiers:
    """The frontier of each method."""

    x: Float[Array, " p"]
    heights: Mapping[str, Float[Array, "b p"]]
    """Of each method, for each weighing."""
    n: int
    """Prompts that count or not."""

    @property
    def areas(self) -> dict[str, Estimate]:
        """The area under each frontier, between 0 and 1."""
        return {name: _estimate(area, self.n) for name, area in self._areas().items()}

    def band(self, method: str) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, " p"]]:
        """A frontier with its pointwise interval."""
        return band(self.heights[method])

    def comparisons(self) -> list[Comparison]:
        """Every pair of methods on the same draws."""
        areas = self._areas()
        pairs = list(combinations(areas, 2))
        differences = [areas[one] - areas[other] for one, other in pairs]
        p = np.array([_two_sided(each[1:]) for each in differences])
        corrected = holm(p) if pairs else p
        return [
            Comparison(*pair, _estimate(each, self.n), float(raw), float(after))
            for pair, each, raw, after in zip(pairs, differences, p, corrected, strict=True)
        ]

    def _areas(self) -> dict[str, Float[Array, " b"]]:
        along = np.sqrt(self.x / self.x[-1])
        return {name: np.trapezoid(height, along, axis=1) for name, height in self.heights.items()}


def frontiers(curves: Mapping[str, Sequence[Curve]], limit: float, resamples: int = RESAMPLES) -> Frontiers:
    """The frontier of each method's curves, from no damage to the limit."""
    (some, *_), *_ = curves.values()
    weights = Weights.drawn(some.damage.shape[1], some.hits.shape[1], resamples)
    x = damages(limit)
    heights = {
        name: np.maximum.accumulate(np.max([one.along(x, *weights) for one in of_method], axis=0), axis=1)
        for name, of_method in curves.items()
    }
    return Frontiers(x, heights, some.hits.shape[1])


def band(heights: Float[Array, "b p"]) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, " p"]]:
    """The values of the first weighing, and the percentiles over the others."""
    low, high = np.percentile(heights[1:], [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return heights[0], np.minimum(low, heights[0]), np.maximum(high, heights[0])


def _estimate(values: Float[Array, " b"], n: int) -> Estimate:
    value, low, high = (float(one[0]) for one in band(values[:, None]))
    return Estimate(value, low, high, n)


def _two_sided(drawn: Float[Array, " b"]) -> float:
    """Twice the share of draws on the rarer side of zero, each side with one more: at most 1."""
    sides = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (sides + 1) / (len(drawn) + 1)))
