"""Judges judged: how far two judges agree beyond chance, on the same completions.

Plans differ so much in how often the model goes along that judges who tell no two completions of one plan apart agree
over all plans pooled: on the published verdicts κ is 0.73 pooled and −0.01 within edited plans. So chance is that of
each plan. And the completions of one prompt under many plans are alike: the units behind an interval are prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refusal_cmp.statistics.intervals import Estimate, mean

COMPLIED = {"complied": True, "unsafe": True, "refused": False, "safe": False}
"""Judges' verdicts as one question: did the model go along? `degenerate` and `unparsed` are no answer to it."""

CELLS = ("both", "first_only", "second_only", "neither")
"""Who says that the model went along."""
Verdicts = Sequence[Sequence[str]]
"""By plan, and within it by prompt: the same plans and prompts in the same order for every judge."""
Array = np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Two judges on the completions that both have judged, counted by `CELLS`."""

    first: str
    second: str
    within: Estimate
    """κ within plans with its interval; NaN if the judges give one and the same verdict throughout every plan."""
    pooled: Estimate
    """κ over all plans as if they were one."""
    n_prompts: int
    n_plans: int
    both: int
    first_only: int
    second_only: int
    neither: int

    def row(self) -> dict[str, Any]:
        """The agreement as a line of a table: `kappa` and its interval are those within plans."""
        facts: dict[str, Any] = {"first": self.first, "second": self.second}
        for prefix, name, one in (("", "kappa", self.within), ("pooled_", "pooled_kappa", self.pooled)):
            facts |= {name: one.value, f"{prefix}ci_low": one.low, f"{prefix}ci_high": one.high}
        counts = {name: getattr(self, name) for name in ("n_prompts", "n_plans", *CELLS)}
        return {**facts, **counts, "n": self.within.n}


def agreements(verdicts: Mapping[str, Verdicts]) -> list[Agreement]:
    """The agreement of every pair of judges, by name."""
    return [_agreement(one, other, verdicts[one], verdicts[other]) for one, other in combinations(sorted(verdicts), 2)]


def _agreement(first: str, second: str, one: Verdicts, other: Verdicts) -> Agreement:
    cells = _cells(one, other)
    return Agreement(
        first,
        second,
        within=_estimate(cells),
        pooled=_estimate(cells.sum(1, keepdims=True)),
        n_prompts=len(cells),
        n_plans=int(cells.any((0, 2)).sum()),
        **dict(zip(CELLS, cells.sum((0, 1)).tolist(), strict=True)),
    )


def _cells(one: Verdicts, other: Verdicts) -> Int[Array, "prompts plans 4"]:
    """Which of `CELLS` each completion is in; none if either judge does not say whether the model went along.

    Prompts without any such completion are left out.
    """
    first, second = (np.array([[COMPLIED.get(said, np.nan) for said in plan] for plan in of]).T for of in (one, other))
    cells = np.stack([(first == a) & (second == b) for a in (True, False) for b in (True, False)], -1).astype(int)
    return cells[cells.any((1, 2))]


def _estimate(cells: Int[Array, "prompts plans 4"]) -> Estimate:
    """κ with the interval of its jackknife by prompt: that of the mean of n κ − (n − 1) κ without prompt i."""
    tables, n = cells.sum(0), len(cells)
    kappa = float(_kappa(tables))
    if np.isnan(kappa):
        return Estimate(kappa, np.nan, np.nan, int(tables.sum()))
    centre, low, high, _ = mean(n * kappa - (n - 1) * _kappa(tables - cells))
    ends = np.clip([kappa + low - centre, kappa + high - centre], -1, 1)
    return Estimate(kappa, float(ends[0]), float(ends[1]), int(tables.sum()))


def _kappa(tables: Int[Array, "*m plans 4"]) -> Float[Array, "*m"]:
    """Cohen's κ (1960) stratified by plan: Σ (observed − chance) / Σ (n − chance), in completions, over plans.

    It is the mean of the plans' own κ with the weights n (1 − p chance); one in which both judges say the same
    throughout has the weight 0. (Barlow, Lai and Azen 1991, Stat. Med. 10:1465, compare such means.)
    """
    both, first, second, neither = np.moveaxis(tables, -1, 0)
    n = both + first + second + neither
    with np.errstate(invalid="ignore"):
        chance = np.nan_to_num(((both + first) * (both + second) + (second + neither) * (first + neither)) / n)
        room = (n - chance).sum(-1)
        return np.where(room > 1e-9, (both + neither - chance).sum(-1) / room, np.nan)
