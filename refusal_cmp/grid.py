"""The grid of a run: every method with every intervention at every scope and strength, a cell each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refusal_cmp.config import RunConfig
from refusal_cmp.plan import Plan
from refusal_cmp.planning import INTERVENTIONS, UNIT_METHOD, Chosen, Scope, Setting, make_plan
from refusal_cmp.registry import parse_spec


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: what its plan is made of, as `make_plan` takes it."""

    intervention: str
    chosen: Chosen
    scope: Scope
    strength: float | None
    how: Mapping[str, Any]
    """What is the same for all cells."""

    def plan(self) -> Plan:
        """The plan of the cell."""
        return self.at(self.intervention, self.strength)

    def at(self, intervention: str, strength: float | None) -> Plan:
        """That plan with another form or strength of its intervention."""
        return make_plan(intervention, self.chosen, self.scope, strength=strength, **self.how)

    def leading(self, k: int) -> Cell:
        """The cell with the first k directions."""
        return replace(self, chosen=self.chosen.leading(k))

    @property
    def most(self) -> int:
        """The most directions that its plans may use, where their number is varied, or 1."""
        maker = INTERVENTIONS.create(self.intervention)
        varies = maker.whole_subspace and not maker.needs_covariances  # those are read along as many as were selected
        return self.chosen.most(self.how["direction"]) if varies else 1


def grid_cells(
    chosen: Iterable[Chosen],
    interventions: Sequence[str],
    scopes: Sequence[Scope],
    *,
    strengths: Mapping[str, Sequence[float]],
    direction: str = "best",
    setting: Setting | None = None,
) -> list[Cell]:
    """Every method with every intervention at every scope and strength; the pool is the smallest of the methods'.

    Parameters
    ----------
    strengths
        By intervention; those that are not named take their own defaults.
    """
    chosen = list(chosen)
    pool = min((len(one.ranking) for one in chosen if len(one.ranking) > 1), default=1)  # one: a given direction
    how = {"direction": direction, "pool": pool, "setting": setting, "selected_norm": _selected_norm(chosen)}
    return [
        Cell(name, one, scope, strength, how)
        for one in chosen
        for name in interventions
        for scope in scopes
        for strength in _strengths(strengths, name)
    ]


def strengths_of(config: RunConfig) -> dict[str, Sequence[float]]:
    """The strengths that the settings name, by intervention."""
    return {**config.strengths, "actadd": config.actadd_multipliers, "reflection": config.reflection_alphas}


def most_plans(config: RunConfig) -> int:
    """Plans of the grid, of which some may do the same; fewer where a method has no subspace at a component."""
    strengths = strengths_of(config)
    each = [len(_strengths(strengths, name)) for name in config.interventions]
    return len(config.methods) * len(config.component) * len(config.scope) * sum(each)


def _strengths(named: Mapping[str, Sequence[float]], spec: str) -> Sequence[float | None]:
    """Those named for an intervention with just these options, or for all of its name, or its own defaults."""
    return named.get(spec) or named.get(parse_spec(spec)[0]) or INTERVENTIONS.create(spec).strengths or (None,)


def _selected_norm(chosen: Sequence[Chosen]) -> float | None:
    """The norm at the component selected for difference in means, if that is among the methods."""
    for one in chosen:
        if one.field.method == UNIT_METHOD:
            return one.field.means.distance(one.selected)
    return None
