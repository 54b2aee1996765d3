"""The strength at which the damage meets a budget: bracketing, then a root search, on few evaluations.

The damage D(u) is sought at u times the default strength, from u = 0, where nothing is changed, to the end of a range.
Near 0 a divergence is a power of the strength, D ≈ a uᵖ with p = 2, so that the search is in the logarithms, where a
power is a line: with one point that line has the slope p = 2, with a point on either side of the budget it is the
chord, weighed as in the Illinois method. Where three evaluations in a row have not halved the bracket (in log u) the
next one is in its middle, as in Dekker's and Brent's methods, so that it closes whatever the curve is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

TOLERANCE = 0.02
"""Share of the budget by which a damage that meets it may be off."""
MOST = 12
"""Evaluations of one plan."""
LEAST = 1e-4
"""The smallest strength that is tried, in default strengths."""
DIGITS = 4
"""Of a strength, so that a label says all of it."""
STRIDE = 4.0
"""Most by which a strength is raised beyond what was tried, and its inverse below it."""
STALLED = 3
"""Evaluations that a bracket may go without being halved."""
DROP = 0.02
"""Share by which damage has to fall as the strength grows for the curve to count as not monotone."""
FLAT = 0.5
"""An elasticity below this is a flat curve: a strength that is 10 % off costs less than 5 % of damage."""

Status = Literal["met", "below", "above", "missed"]


class Tried(NamedTuple):
    """An evaluation: a strength in default strengths, and its damage."""

    times: float
    damage: float
    k: int | None = None
    """With so many directions, where their number is searched too."""


@dataclass(frozen=True)
class Found:
    """What a search found."""

    status: Status
    """`met`: within the tolerance; `below`: not even the end of the range does so much damage; `above`: the smallest
    strength does more; `missed`: the evaluations were spent, as where damage jumps."""
    times: float
    """The strength: that which meets the budget, the end of the range, or the nearest that was tried below the budget.
    """
    damage: float
    is_monotone: bool
    """Whether damage grew with the strength wherever it was tried."""
    elasticity: float
    """d log D / d log u at the budget, from what was tried around it; 2 is that of a small edit, below `FLAT` is flat.
    """
    k: int | None = None
    """The number of directions, where that was searched too."""
    beside: tuple[Tried, ...] = ()
    """Where no number of directions meets the budget by itself: the nearest on either side, done in whole."""

    @property
    def is_flat(self) -> bool:
        """Whether the strength is hardly determined by the damage."""
        return self.elasticity < FLAT


@dataclass
class Search:
    """One search; `ask` for the next strength, and `tell` its damage, until there is none to ask for.

    Parameters
    ----------
    budget
        The damage wanted, above 0.
    end
        The largest strength that may be tried, in default strengths, to the digits of a label.
    """

    budget: float
    end: float = 1.0
    tolerance: float = TOLERANCE
    tried: list[Tried] = field(default_factory=list)
    most: int = MOST
    """Evaluations, those that it begins with among them."""
    k: int | None = None
    """How many directions what is asked for has; None where their number is not searched."""

    def __post_init__(self) -> None:
        self.end = _rounded(self.end)

    def ask(self) -> float | None:
        """The next strength to try; None once the search is over."""
        if not self.tried:
            return min(1.0, self.end)
        if self._meets or len(self.tried) >= self.most:
            return None
        below, above = self._below, self._above
        if above is None:
            assert below is not None  # something was tried
            if below.times >= self.end:
                return None
            step = (self.budget / below.damage) ** (1 / self._power) if below.damage > 0 else STRIDE
            return self._new(min(below.times * min(max(step, 1.05), STRIDE), self.end))
        if below is None:
            if above.times <= LEAST:
                return None
            step = (self.budget / above.damage) ** (1 / self._power) if math.isfinite(above.damage) else 0.0
            return self._new(max(above.times * min(max(step, 1 / STRIDE**2), 0.95), LEAST))
        return self._new(self._between(below, above))

    def tell(self, times: float, damage: float) -> None:
        """What that strength does; NaN, of broken numbers, is more than any budget."""
        self.tried.append(Tried(times, math.inf if math.isnan(damage) else damage, self.k))

    def found(self) -> Found:
        """The outcome, once there is nothing left to ask."""
        status, best = self._outcome()
        is_monotone = not any(falls(one, later) for one, later in pairwise(sorted(self.tried)))
        return Found(status, best.times, best.damage, is_monotone, self._elasticity(), self.k)

    def _outcome(self) -> tuple[Status, Tried]:
        below, above = self._below, self._above
        if self._meets:
            return "met", min(self.tried, key=lambda one: abs(one.damage - self.budget))
        if below is None:
            best = min(self.tried)
            return ("above" if best.times <= LEAST else "missed"), best
        return ("below" if above is None and below.times >= self.end else "missed"), below

    @property
    def _meets(self) -> bool:
        return any(abs(one.damage - self.budget) <= self.tolerance * self.budget for one in self.tried)

    @property
    def _above(self) -> Tried | None:
        """The smallest strength that does more damage."""
        return min((one for one in self.tried if one.damage > self.budget), default=None)

    @property
    def _below(self) -> Tried | None:
        """The largest strength below that which does less."""
        above = self._above
        under = (one for one in self.tried if one.damage <= self.budget and (above is None or one.times < above.times))
        return max(under, default=None)

    @property
    def _power(self) -> float:
        """The slope to go on by where all evaluations are on one side of the budget: that of the nearest two."""
        nearest = sorted(self.tried, key=lambda one: abs(_gap(one, self.budget)))[:2]
        if len(nearest) < 2 or not _are_regular(*nearest):
            return 2.0
        return min(max(_slope(*nearest), FLAT), 4.0)

    def _between(self, below: Tried, above: Tried) -> float:
        """Where the chord of the logarithms meets the budget, or the middle where that does not get on."""
        low, high = math.log(below.times), math.log(above.times)
        if not _are_regular(below, above) or self._is_stalled():
            return math.exp((low + high) / 2)
        under, over = math.log(self.budget / below.damage), math.log(above.damage / self.budget)
        kept = 0.5 ** max(0, self._in_a_row() - 1)  # Illinois: the end that stays counts for less and less
        if self.tried[-1].damage > self.budget:
            under *= kept
        else:
            over *= kept
        share = under / (under + over)
        return math.exp(low + min(max(share, 0.02), 0.98) * (high - low))

    def _in_a_row(self) -> int:
        """How many of the last evaluations are on the same side of the budget."""
        sides = [one.damage > self.budget for one in reversed(self.tried)]
        return next((n for n, side in enumerate(sides) if side != sides[0]), len(sides))

    def _is_stalled(self) -> bool:
        """Whether the last evaluations have not halved the bracket."""
        before = Search(self.budget, self.end, self.tolerance, self.tried[:-STALLED])
        return before._width is not None and self._width is not None and self._width > before._width / 2

    @property
    def _width(self) -> float | None:
        """Of the bracket, in log u."""
        below, above = self._below, self._above
        return None if below is None or above is None else math.log(above.times / below.times)

    def _new(self, times: float) -> float | None:
        """A strength to the digits of a label; None if it was tried."""
        rounded = min(_rounded(times), self.end)
        return None if any(one.times == rounded for one in self.tried) else rounded

    def _elasticity(self) -> float:
        """The slope between the two nearest of what was tried, on both sides of the budget if there are such."""
        regular = [one for one in self.tried if 0 < one.damage < math.inf]
        under = [one for one in regular if one.damage <= self.budget]
        over = [one for one in regular if one.damage > self.budget]
        if under and over:
            pair = [max(under, key=lambda one: one.damage), min(over, key=lambda one: one.damage)]
        else:
            pair = sorted(regular, key=lambda one: abs(_gap(one, self.budget)))[:2]
        return _slope(*pair) if len(pair) == 2 and pair[0].times != pair[1].times else math.nan


def _gap(one: Tried, budget: float) -> float:
    return math.log(one.damage / budget) if 0 < one.damage < math.inf else math.inf


def falls(one: Tried, later: Tried) -> bool:
    """Whether damage falls from a strength to a larger one, by more than a little."""
    if not math.isfinite(one.damage):
        return math.isfinite(later.damage)
    return one.damage - later.damage > DROP * max(abs(one.damage), abs(later.damage))


def _are_regular(one: Tried, other: Tried) -> bool:
    """Whether two evaluations have a slope in the logarithms."""
    known = all(0 < each.damage < math.inf for each in (one, other))
    return known and one.times != other.times and one.damage != other.damage


def _slope(one: Tried, other: Tried) -> float:
    return math.log(other.damage / one.damage) / math.log(other.times / one.times)


def _rounded(times: float) -> float:
    return float(f"{times:.{DIGITS}g}")
