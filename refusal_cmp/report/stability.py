"""What draws of other prompts say, in medians and the interval that 95 % of them are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from refusal_cmp.report.wording import decimal, percent, span
from refusal_cmp.run.contents import Stability
from refusal_cmp.selection import Selection
from refusal_cmp.statistics import LEVEL
from refusal_cmp.subspace import Component

DIGITS = 3
"""Of cosines, which may all be near 1."""
LEAST_SHARE = 0.005
"""Of the draws, which a component that is named has more than."""
MOST_SHARES = 3
"""Components that are named of those that are selected in some draws."""


class Spread(NamedTuple):
    """A number over draws."""

    middle: float
    """Median."""
    low: float
    high: float
    found: int
    """Draws in which the method found something."""
    draws: int

    def __str__(self) -> str:
        if not self.found:
            return "nothing found"
        some = "" if self.found == self.draws else f" ({self.found} of {self.draws} draws)"
        middle, low, high = (decimal(one, DIGITS) for one in self[:3])
        return f"{middle} [{low}, {high}]{some}"


def spread(values: pd.Series[float]) -> Spread:
    """The median of the draws that found something, and between what 95 % of them are."""
    found = values.dropna().to_numpy(float)
    if not len(found):
        return Spread(np.nan, np.nan, np.nan, 0, len(values))
    low, middle, high = np.percentile(found, [50 * (1 - LEVEL), 50, 50 * (1 + LEVEL)])
    return Spread(float(middle), float(low), float(high), len(found), len(values))


class Steadiness(NamedTuple):
    """One method at one component."""

    method: str
    component: Component
    chosen: bool
    """Whether it is what was selected for the method, and not only the shared one."""
    bootstrap: Spread
    """The cosine of the direction with the run's own."""
    halves: Spread
    """Of those of two halves of the prompts."""
    overlap: Spread
    """Of the subspace with the run's own, under the bootstrap."""
    splits: tuple[int, int]
    """The least and the most directions by other dev splits of the same prompts; zeros where there are none."""
    ranks: tuple[int, int]
    """Those between which 95 % of the bootstrap's draws are."""
    curve: dict[int, tuple[Spread, Spread | None]]
    """By prompts of each class: the cosine with the run's own, and between disjoint draws, where there are enough."""

    @property
    def rank(self) -> str:
        """The directions under the bootstrap, and by other splits."""
        return f"{span(*self.ranks)} ({span(*self.splits)})"


def steadiness(found: Stability, selected: Mapping[str, set[Component]]) -> list[Steadiness]:
    """Every method at every component that was looked at.

    Parameters
    ----------
    selected
        By method, k policies apart, the components that were selected.
    """
    rows = []
    those = found.directions[found.directions["method"].isin(list(selected))]
    for _, table in those.groupby(["method", "position", "layer"], sort=False):
        first = table.iloc[0]
        method, at = str(first["method"]), Component(int(first["position"]), int(first["layer"]))
        by = {str(kind): part for kind, part in table.groupby("by")}
        boot, splits = by["bootstrap"], by["splits"]["k"]
        low, high = np.percentile(boot["k"], [50 * (1 - LEVEL), 50 * (1 + LEVEL)], method="nearest")
        halves = by["halves"]["cosine"] if "halves" in by else pd.Series(dtype=float)
        rows.append(
            Steadiness(
                method,
                at,
                at in selected[method],
                spread(boot["cosine"]),
                spread(halves),
                spread(boot["overlap"]),
                (int(splits.min()), int(splits.max())),
                (int(low), int(high)),
                _curve(by),
            )
        )
    return rows


def where_selected(extracted_by: Mapping[str, str], selections: Sequence[Selection]) -> dict[str, set[Component]]:
    """The components that were selected with each method's subspaces, by whatever k policy."""
    found: dict[str, set[Component]] = {name: set() for name in extracted_by.values()}
    for one in selections:
        found[extracted_by[one.method]].add(one.selected)
    return found


def _curve(by: dict[str, pd.DataFrame]) -> dict[int, tuple[Spread, Spread | None]]:
    if "subsample" not in by:
        return {}
    sizes = _by_size(by["subsample"])
    pairs: dict[int, Spread] = {}
    for kind in ("disjoint", "halves"):
        if kind in by:
            pairs |= _by_size(by[kind])
    return {n: (sizes.get(n, spread(pd.Series(dtype=float))), pairs.get(n)) for n in sorted({*sizes, *pairs})}


def _by_size(table: pd.DataFrame) -> dict[int, Spread]:
    return {int(n): spread(table.loc[table["n"] == n, "cosine"]) for n in sorted(set(table["n"]))}


def named(choices: pd.DataFrame, method: str) -> str:
    """The components that are selected most often, with how often: `(-1, 7) 88 %, (-1, 6) 12 %`."""
    of_method = choices[(choices["method"] == method) & (choices["share"] > LEAST_SHARE)].head(MOST_SHARES)
    return ", ".join(
        f"{Component(int(row['position']), int(row['layer']))} {percent(row['share'])}"
        for row in of_method.to_dict("records")
    )


def selected_again(choices: pd.DataFrame, method: str, component: Component) -> float:
    """How often the selected component is selected."""
    there = choices[(choices["method"] == method)]
    same = there[(there["position"] == component.position) & (there["layer"] == component.layer)]
    return float(same["share"].sum())
