"""From a method's subspaces, a selection and a scope to the plans of the grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS, Setting, Target
from refusal_cmp.interventions.scope import Scope
from refusal_cmp.plan import Plan, number
from refusal_cmp.subspace import Component, SubspaceField


@dataclass(frozen=True)
class Chosen:
    """What selection leaves for planning: a method's subspaces, its component, and its ranking."""

    field: SubspaceField
    selected: Component
    ranking: tuple[Component, ...]
    """All components that have a subspace, best first."""


def make_plan(
    intervention: str,
    chosen: Chosen,
    scope: Scope,
    *,
    strength: float | None = None,
    direction: str = "best",
    pool: int | None = None,
    setting: Setting | None = None,
    selected_norm: float | None = None,
) -> Plan:
    """One intervention with one method's subspaces at one scope and strength.

    Parameters
    ----------
    direction
        `best`: the selected component's subspace at every layer in scope; `own`: each layer's best-ranked own,
        and layers without one are left as they are.
    pool
        What a top percentage is of; by default the number of ranked components.
    selected_norm
        The unit of additions where `setting.norm` is `selected`.
    """
    setting = setting or Setting()
    pool = len(chosen.ranking) if pool is None else pool
    by_layer = scope.best_by_layer(chosen.selected, chosen.ranking, pool, chosen.field.means.n_layers)
    targets = []
    for layer, own in by_layer.items():
        if direction == "best":
            own = chosen.selected
        if own is not None:
            targets.append(_target(chosen.field, own, layer, setting, selected_norm))
    maker = INTERVENTIONS.create(intervention)
    if maker.strengths is None and strength is not None:
        raise RefusalCmpError(f"The intervention {intervention!r} has no strength, and {number(strength)} was given.")
    if maker.strengths is not None and strength is None:
        strength = maker.strengths[0]
    if strength is not None and not math.isfinite(strength):
        raise RefusalCmpError(f"The strength of {intervention!r} is {strength}; give a finite number.")
    return Plan(
        label=label(chosen.field.method, intervention, strength, scope, direction, setting, maker.uses),
        edits=maker.edits(targets, strength, setting),
        method=chosen.field.method,
        k=chosen.field[chosen.selected].k,
        intervention=intervention,
        strength=strength,
        scope=str(scope),
        n_components=len(scope.components(chosen.selected, chosen.ranking, pool)),
        n_layers=len(targets),
        direction=direction,
        position=chosen.selected.position,
        layer=chosen.selected.layer,
    )


def grid(
    chosen: Iterable[Chosen],
    interventions: Sequence[str],
    scopes: Sequence[Scope],
    *,
    strengths: dict[str, Sequence[float]],
    direction: str = "best",
    setting: Setting | None = None,
) -> list[Plan]:
    """Every method with every intervention at every scope and strength; the pool is the smallest of the methods'.

    Parameters
    ----------
    strengths
        By intervention; those that are not named take their own defaults.
    """
    chosen = list(chosen)
    pool = min((len(one.ranking) for one in chosen if len(one.ranking) > 1), default=1)  # one: a given direction
    selected_norm = _selected_norm(chosen)
    return [
        make_plan(
            name,
            one,
            scope,
            strength=strength,
            direction=direction,
            pool=pool,
            setting=setting,
            selected_norm=selected_norm,
        )
        for one in chosen
        for name in interventions
        for scope in scopes
        for strength in strengths.get(name) or INTERVENTIONS.create(name).strengths or (None,)
    ]


def label(
    method: str,
    intervention: str,
    strength: float | None,
    scope: Scope,
    direction: str,
    setting: Setting,
    uses: Sequence[str],
) -> str:
    """`method/intervention:strength@scope`, with what differs from the defaults in brackets."""
    default = Setting()
    differs = {} if direction == "best" or scope.kind == "single" else {"direction": direction}
    differs |= {name: getattr(setting, name) for name in uses if getattr(setting, name) != getattr(default, name)}
    brackets = ",".join(f"{name}={_value(value)}" for name, value in differs.items())
    return (
        f"{method}/{intervention}"
        + (f"[{brackets}]" if brackets else "")
        + ("" if strength is None else f":{number(strength)}")
        + f"@{scope.label}"
    )


def _value(value: object) -> str:
    text = "+".join(value) if isinstance(value, tuple) else str(value)
    return text.lower().replace("_", "-")


def _target(
    field: SubspaceField, source: Component, layer: int, setting: Setting, selected_norm: float | None
) -> Target:
    """`source`'s subspace at `layer`, with the scale of that layer at the source's position."""
    here = Component(source.position, layer)
    harmful_mean, harmless_mean = field.means.at(here)
    unit_norm = field.means.distance(here)
    if setting.norm == "selected":
        unit_norm = field.means.distance(source) if selected_norm is None else selected_norm
    return Target(layer, field[source], harmful_mean, harmless_mean, unit_norm)


def _selected_norm(chosen: Sequence[Chosen]) -> float | None:
    """The norm at the component selected for difference in means, if that is among the methods."""
    for one in chosen:
        if one.field.method == "diff-in-means":
            return one.field.means.distance(one.selected)
    return None
