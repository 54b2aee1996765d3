"""Judges judged: how far two judges agree beyond chance, on the same completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refusal_cmp.statistics import LEVEL, RESAMPLES, SEED, Estimate

COMPLIED = {"complied": True, "unsafe": True, "refused": False, "safe": False}
"""Judges' verdicts as one question: did the model go along? `degenerate` and `unparsed` are no answer to it."""


@dataclass(frozen=True)
class Agreement:
    """Two judges on the completions that both have judged.

    `both`, `first_only`, `second_only` and `neither` count the completions of which the judges say that the model
    went along.
    """

    first: str
    second: str
    kappa: Estimate
    """Cohen's κ (1960) with a bootstrap interval; NaN if both judges give one and the same verdict throughout."""
    both: int
    first_only: int
    second_only: int
    neither: int

    def row(self) -> dict[str, Any]:
        """The agreement as a line of a table."""
        facts = {**asdict(self), "kappa": self.kappa.value, "ci_low": self.kappa.low, "ci_high": self.kappa.high}
        return {**facts, "n": self.kappa.n}


def agreements(verdicts: Mapping[str, Sequence[str]]) -> list[Agreement]:
    """The agreement of every pair of judges.

    Parameters
    ----------
    verdicts
        By judge the `verdict` of each stored judgement of the same completions, in the same order.
    """
    complied = {judge: [COMPLIED.get(verdict) for verdict in given] for judge, given in verdicts.items()}
    return [_agreement(one, other, complied[one], complied[other]) for one, other in combinations(sorted(complied), 2)]


def _agreement(first: str, second: str, one: Sequence[bool | None], other: Sequence[bool | None]) -> Agreement:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    cells = [pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
    return Agreement(first, second, _kappa(np.array(cells)), *cells)


def _kappa(cells: Int[np.ndarray, " 4"]) -> Estimate:
    """κ of a table, with the percentile interval of drawing its completions anew."""
    n = int(cells.sum())
    value = float(_kappas(cells[None])[0]) if n else math.nan
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, n)
    drawn = _kappas(np.random.default_rng(SEED).multinomial(n, cells / n, size=RESAMPLES))
    low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _kappas(tables: Int[np.ndarray, "m 4"]) -> Float[np.ndarray, " m"]:
    """(p_observed − p_chance) / (1 − p_chance) of each table (both, first only, second only, neither)."""
    both, first, second, neither = tables.T / tables.sum(1)
    chance = (both + first) * (both + second) + (second + neither) * (first + neither)
    with np.errstate(invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (both + neither - chance) / (1 - chance), np.nan)
