"""What holds in how many cells: which plans suppress refusal, which methods and interventions come before which.

Every cell ranks its plans as the page of its run does (`refusal_cmp.report.answer`), and its receipt has that ranking.
A method comes before another in a cell if its best plan does. Cells are counted, and beside them models: one in which
it holds in every cell. Cells of one model are no independent samples, and no p-value is made of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from refusal_cmp.statistics.ranks import spearman

Array = np.ndarray


@dataclass
class Count:
    """In how many cells something holds, and in how many it could."""

    holds: int = 0
    cells: int = 0
    by_model: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, model: str, holds: bool) -> None:
        """One more cell."""
        self.holds += holds
        self.cells += 1
        of_model = self.by_model[model]
        of_model[0] += holds
        of_model[1] += 1

    @property
    def models(self) -> int:
        """Models with a cell in which it could hold."""
        return len(self.by_model)

    @property
    def throughout(self) -> int:
        """Models in whose cells it holds throughout."""
        return sum(holds == cells for holds, cells in self.by_model.values())


@dataclass
class Conclusions:
    """All that is counted, cell by cell."""

    suppresses: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    """By plan."""
    broken: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    before: dict[str, dict[tuple[str, str], Count]] = field(
        default_factory=lambda: {"method": defaultdict(Count), "intervention": defaultdict(Count)}
    )
    """By what is compared: for every pair, in how many cells the first comes before the second."""
    named: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    """By plan: cells in which it is the best of all."""
    cells: int = 0
    few: int = 0
    """Cells with too few harmful test prompts for any plan to be known to suppress refusal."""
    places: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By subject and plan: the sum of its places, from 0, and how many they are."""

    def add(self, model: str, subject: str, standings: Sequence[Mapping[str, Any]]) -> None:
        """Count a cell, by the standings of its receipt."""
        self.cells += 1
        self.few += all(one.get("few", False) for one in standings)  # receipts of older versions do not say it
        places = self.places.setdefault(subject, defaultdict(lambda: [0.0, 0]))
        for place, one in enumerate(standings):
            self.suppresses[one["plan"]].add(model, one["suppresses"])
            self.broken[one["plan"]].add(model, one["broken"])
            self.named[one["plan"]].add(model, place == 0)
            of_plan = places[one["plan"]]
            of_plan[0] += place
            of_plan[1] += 1
        for kind, pairs in self.before.items():
            order = list(dict.fromkeys(one[kind] for one in standings))  # by the best plan of each
            for index, first in enumerate(order):
                for second in order[index + 1 :]:
                    pairs[first, second].add(model, True)
                    pairs[second, first].add(model, False)

    def ordered(self, kind: str) -> list[tuple[str, str, Count]]:
        """The pairs of methods or interventions, each in the direction that holds more often, surest first."""
        found = []
        for (first, second), count in self.before[kind].items():
            other = self.before[kind][second, first]
            if count.holds > other.holds or (count.holds == other.holds and first < second):
                found.append((first, second, count))
        return sorted(found, key=lambda one: (-one[2].holds / one[2].cells, one[0], one[1]))

    def agreement(self) -> Agreement | None:
        """How alike subjects rank the plans that all of them have; None of fewer than two subjects or three plans."""
        if len(self.places) < 2:
            return None
        common = set.intersection(*(set(places) for places in self.places.values()))
        plans = [plan for plan in next(iter(self.places.values())) if plan in common]
        if len(plans) < 3:
            return None
        mean = np.array([[places[plan][0] / places[plan][1] for plan in plans] for places in self.places.values()])
        return Agreement(list(self.places), plans, mean)


@dataclass(frozen=True)
class Agreement:
    """Plans by their mean place in every subject."""

    subjects: Sequence[str]
    plans: Sequence[str]
    places: Float[Array, "subjects plans"]

    @property
    def kendall(self) -> float:
        """Kendall's W of the subjects, 1 if all rank alike: 12 S / (m² (n³ − n)), S of the sums of ranks (1939).

        It is taken from the mean of Spearman's ρ over pairs, ρ̄ = (m W − 1) / (m − 1), which also holds with ties.
        """
        m = len(self.subjects)
        return (self.mean_rho * (m - 1) + 1) / m

    @property
    def mean_rho(self) -> float:
        """The mean of Spearman's ρ over pairs of subjects, from the sum of the standardised ranks."""
        m = len(self.subjects)
        z = _standardised(self.places)
        return float(((z.sum(0) ** 2).sum() - (z**2).sum()) / (m * (m - 1)))

    def rho(self, first: int, second: int) -> float:
        """Spearman's ρ of two subjects."""
        return float(spearman(self.places[first], self.places[second]))

    def order(self) -> list[tuple[str, float, float, float]]:
        """The plans by their mean place over subjects, from 1, with the best and the worst place of any subject."""
        mean = self.places.mean(0)
        return [
            (self.plans[i], float(mean[i]) + 1, float(self.places[:, i].min()) + 1, float(self.places[:, i].max()) + 1)
            for i in np.argsort(mean, kind="stable")
        ]


def _standardised(places: Float[Array, "subjects plans"]) -> Float[Array, "subjects plans"]:
    """Ranks of every subject, centred and of length one; zero where all are equal."""
    from scipy.stats import rankdata

    ranks = rankdata(places, axis=1)
    ranks = ranks - ranks.mean(1, keepdims=True)
    length = np.sqrt((ranks**2).sum(1, keepdims=True))
    return ranks / np.where(length > 0, length, 1)
