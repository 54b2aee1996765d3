"""The number of directions at which the damage meets a budget, and then the strength.

The first k of K directions, done in whole, do the damage D(k). Sought is where it crosses the budget B:

    D(k) ≤ B < D(k + 1)

from both ends on, by turns by the chord in the logarithms, as D is about a power of k, and by bisection. If neither of
the two is within the tolerance, k + 1 directions are done in part: of the numbers that can meet the budget it is the
smallest, as the damage of a part goes from 0 to D(k + 1). Where a single direction does more, that one is done in
part; where all do less, their strength is raised as far as it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

from refusal_cmp.calibration.search import MOST, TOLERANCE, Found, Search, Tried, falls


@dataclass
class RankSearch:
    """One search; `ask` for the next strength and the number of directions `k`, and `tell` the damage.

    Parameters
    ----------
    ranks
        How many directions there are: two or more.
    """

    budget: float
    ranks: int
    end: float = 1.0
    tolerance: float = TOLERANCE
    whole: list[Tried] = field(default_factory=list)
    """What was tried at the default strength."""
    k: int = 0
    _tuning: Search | None = None

    @property
    def tried(self) -> list[Tried]:
        """Everything that was tried."""
        return self.whole if self._tuning is None else [*self.whole, *self._tuning.tried[1:]]

    def ask(self) -> float | None:
        """The next strength to try, with `k` directions; None once the search is over."""
        if self._tuning is None:
            if (k := self._next()) is not None:
                self.k = k
                return min(1.0, self.end)
            at = self._settled()
            self.k, most = at.k or 0, MOST + 1 - len(self.whole)
            self._tuning = Search(self.budget, self.end, self.tolerance, [at], most, self.k)
        return self._tuning.ask()

    def tell(self, times: float, damage: float) -> None:
        """What that strength and number of directions do."""
        if self._tuning is None:
            self.whole.append(Tried(times, math.inf if math.isnan(damage) else damage, self.k))
        else:
            self._tuning.tell(times, damage)

    def found(self) -> Found:
        """The outcome, once there is nothing left to ask."""
        assert self._tuning is not None, "the number of directions is settled"
        found, by_k = self._tuning.found(), sorted(self.whole, key=_k)
        is_monotone = found.is_monotone and not any(falls(one, more) for one, more in pairwise(by_k))
        under, above = self._beside()
        beside = () if self._meeting() or under is None or above is None else (under, above)
        return replace(found, is_monotone=is_monotone, beside=beside)

    def _next(self) -> int | None:
        """The next number of directions to try in whole; None once it is settled."""
        if not self.whole:
            return self.ranks
        under, above = self._beside()
        if self._meeting() or len(self.whole) >= MOST or above is None:
            return None
        if under is None:
            return 1 if _k(above) > 1 else None
        low, high = _k(under), _k(above)
        return None if high - low == 1 else self._between(under, above)

    def _between(self, under: Tried, above: Tried) -> int:
        """Where the chord meets the budget, and the middle in every second try and where there is no chord."""
        low, high = _k(under), _k(above)
        if len(self.whole) % 2 or under.damage <= 0 or math.isinf(above.damage):
            return (low + high) // 2
        share = math.log(self.budget / under.damage) / math.log(above.damage / under.damage)
        return min(max(round(low * (high / low) ** share), low + 1), high - 1)

    def _settled(self) -> Tried:
        """What was tried with the number of directions that is kept."""
        _, above = self._beside()
        return self._meeting() or above or self.whole[0]

    def _meeting(self) -> Tried | None:
        """The nearest to the budget, if it is within the tolerance."""
        best = min(self.whole, key=lambda one: abs(one.damage - self.budget))
        return best if abs(best.damage - self.budget) <= self.tolerance * self.budget else None

    def _beside(self) -> tuple[Tried | None, Tried | None]:
        """The most directions that do less than the budget, and the fewest that do more, as far as was tried."""
        above = min((one for one in self.whole if one.damage > self.budget), key=_k, default=None)
        fewer = (one for one in self.whole if one.damage <= self.budget and (above is None or _k(one) < _k(above)))
        return max(fewer, key=_k, default=None), above


def _k(one: Tried) -> int:
    return one.k or 0
