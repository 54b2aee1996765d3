"""Scope: how much of the model an intervention edits. Turns a ranking and a scope into layers.

`single`: the selected component's layer; `top:p`: the layers of the first p % of the ranked components;
`all`: every layer. A layer is edited once, however many of its components are in scope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import number
from refusal_cmp.subspace import Component


@dataclass(frozen=True)
class Scope:
    """`single`, `top` with a percentage in (0, 100], or `all`."""

    kind: str
    percentage: float = 100.0

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read `single`, `top:50` or `all`; RefusalCmpError for anything else."""
        kind, _, percentage = text.partition(":")
        if text in ("single", "all"):
            return cls(text)
        if kind != "top" or not percentage:
            raise RefusalCmpError(f"A scope is single, top:PERCENT or all, and is {text!r}; try top:50.")
        try:
            value = float(percentage)
        except ValueError:
            value = math.nan
        if not 0 < value <= 100:
            raise RefusalCmpError(
                f"The percentage of scope {text!r} must be a number above 0 and at most 100; try top:50."
            )
        return cls("top", value)

    @property
    def label(self) -> str:
        """As plan labels have it: `single`, `top50`, `all`."""
        return f"top{number(self.percentage)}" if self.kind == "top" else self.kind

    def __str__(self) -> str:
        return f"top:{number(self.percentage)}" if self.kind == "top" else self.kind

    def count(self, pool: int) -> int:
        """How many components of a ranked pool are in a `top` scope: at least one."""
        return max(1, math.ceil(self.percentage * pool / 100))

    def components(self, selected: Component, ranking: Sequence[Component], pool: int) -> tuple[Component, ...]:
        """The components in scope, the selected or best-ranked first.

        Parameters
        ----------
        ranking
            All components that have a subspace, best first.
        pool
            What the percentage is of: the smallest pool of the methods compared, so that all get the same count.
        """
        if self.kind == "single":
            return (selected,)
        if self.kind == "all":
            return tuple(ranking) or (selected,)
        return tuple(ranking[: self.count(pool)])

    def best_by_layer(
        self, selected: Component, ranking: Sequence[Component], pool: int, n_layers: int
    ) -> dict[int, Component | None]:
        """The layers in scope, first to last, each with its best-ranked component in scope, if it has one."""
        best: dict[int, Component | None] = dict.fromkeys(range(n_layers)) if self.kind == "all" else {}
        for component in self.components(selected, ranking, pool):
            if best.get(component.layer) is None:
                best[component.layer] = component
        return dict(sorted(best.items()))
