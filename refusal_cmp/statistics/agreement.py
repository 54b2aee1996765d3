"""Judges judged: how far two judges agree beyond chance, on the same completions.

Plans differ so much in how often the model goes along that judges who tell no two completions of one plan apart agree
over all plans pooled: on the published verdicts κ is 0.73 pooled and −0.01 within edited plans. So chance is that of
each plan. And the completions of one prompt under many plans are alike: the units that are drawn anew are prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refusal_cmp.statistics.intervals import LEVEL, RESAMPLES, SEED, Estimate

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
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=RESAMPLES)
    tables, drawn = cells.sum(0), np.tensordot(times, cells, 1)
    return Agreement(
        first,
        second,
        within=_interval(tables, drawn),
        pooled=_interval(tables.sum(0, keepdims=True), drawn.sum(1, keepdims=True)),
        n_prompts=int(cells.any((1, 2)).sum()),
        n_plans=int(cells.any((0, 2)).sum()),
        **dict(zip(CELLS, tables.sum(0).tolist(), strict=True)),
    )


def _cells(one: Verdicts, other: Verdicts) -> Int[Array, "prompts plans 4"]:
    """Which of `CELLS` each completion is in; none if either judge does not say whether the model went along."""
    first, second = (np.array([[COMPLIED.get(said, np.nan) for said in plan] for plan in of]).T for of in (one, other))
    return np.stack([(first == a) & (second == b) for a in (True, False) for b in (True, False)], -1).astype(int)


def _interval(tables: Int[Array, "plans 4"], drawn: Int[Array, "draws plans 4"]) -> Estimate:
    """κ of the tables, with the percentile interval of those that come from drawing the prompts anew."""
    value, n = float(_kappa(tables)), int(tables.sum())
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.nanpercentile(_kappa(drawn), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _kappa(tables: Int[Array, "*draws plans 4"]) -> Float[Array, "*draws"]:
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
