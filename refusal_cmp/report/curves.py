"""A sweep of strengths as figures and the page have it: refusal against damage, and the frontier of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from refusal_cmp.config import ROLES
from refusal_cmp.statistics import rate
from refusal_cmp.statistics.frontier import Comparison, Curve, Frontiers, frontiers

HARMFUL = ROLES[0]


@dataclass(frozen=True)
class Line:
    """The sweep of one method's intervention at one scope, from the unedited model on."""

    method: str
    cell: str
    """The intervention, and which side of it."""
    scope: str
    rows: Sequence[Mapping[str, Any]]

    def curve(self, dataset: str, *, answered: bool = False) -> Curve:
        """Damage and refusal, or what is not refused, of a test set."""
        refused = np.array([row["refused"][dataset] for row in self.rows], dtype=float)
        damage = np.array([row["damage"] for row in self.rows], dtype=float)
        return Curve(damage, 1 - refused if answered else refused)

    @property
    def reach(self) -> float:
        """The most damage on it."""
        return max(float(np.mean(row["damage"])) for row in self.rows)


@dataclass(frozen=True)
class Sweep:
    """The sweep of a run."""

    lines: Sequence[Line]
    said: str
    """What its damage is."""
    unit: str
    limit: float
    datasets: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], said: str, unit: str, limit: float) -> Sweep:
        """From the lines of `infer/curve.jsonl`, of which those are left out whose numbers broke."""
        unedited, *edited = rows
        found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for row in edited:
            line = found.setdefault((row["method"], row["cell"], row["scope"]), [unedited])
            if None not in row["damage"]:
                line.append(row)
        lines = [Line(*key, of_line) for key, of_line in found.items()]
        return cls(lines, said, unit, limit, tuple(unedited["refused"]))

    def only(self, methods: Sequence[str], scopes: Sequence[str]) -> Sweep:
        """With these methods and scopes alone."""
        return replace(self, lines=[one for one in self.lines if one.method in methods and one.scope in scopes])

    @property
    def methods(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(one.method for one in self.lines))

    @property
    def shown(self) -> list[str]:
        """The test sets that are drawn: those that play a role."""
        return [name for name in ROLES if name in self.datasets]

    @property
    def axis(self) -> str:
        """What damage is, as an axis has it."""
        return f"{self.said}{f', {self.unit}' if self.unit else ''}"

    @cached_property
    def frontiers(self) -> Frontiers | None:
        """The most harmful prompts that each method answers at no more damage; None without harmful prompts."""
        if HARMFUL not in self.datasets or not self.lines:
            return None
        by_method = {
            method: [one.curve(HARMFUL, answered=True) for one in self.lines if one.method == method]
            for method in self.methods
        }
        return frontiers(by_method, self.limit)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The frontiers of methods in pairs."""
        return [] if self.frontiers is None else self.frontiers.comparisons()

    def points(self) -> pd.DataFrame:
        """A row per plan and test set: its strength in default strengths, its damage, the share that is refused."""
        rows = []
        for line in self.lines:
            for row in line.rows:
                at = {"method": line.method, "intervention": line.cell, "scope": line.scope, "plan": row["plan"]}
                damage = float(np.mean(row["damage"]))
                for dataset, refused in row["refused"].items():
                    share = rate(sum(refused), len(refused))
                    measured = {"times": row["times"], "damage": damage, "dataset": dataset, "refused": share.value}
                    rows.append({**at, **measured, "ci_low": share.low, "ci_high": share.high, "n": share.n})
        return pd.DataFrame(rows)

    def compared(self) -> pd.DataFrame:
        """The area under every method's frontier, and every difference of two."""
        if self.frontiers is None:
            return pd.DataFrame(columns=["method", "against", "area", "ci_low", "ci_high", "n", "p", "p_holm"])
        rows: list[dict[str, Any]] = [
            {"method": method, "against": "", **_bounds(area), "p": math.nan, "p_holm": math.nan}
            for method, area in self.frontiers.areas.items()
        ]
        rows += [
            {"method": one.one, "against": one.other, **_bounds(one.difference), "p": one.p, "p_holm": one.p_holm}
            for one in self.comparisons
        ]
        return pd.DataFrame(rows)


def _bounds(one: Any) -> dict[str, float]:
    return {"area": one.value, "ci_low": one.low, "ci_high": one.high, "n": one.n}
