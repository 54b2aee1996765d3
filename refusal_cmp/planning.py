"""Planning: a method's subspaces, a selection, a scope and an intervention → a plan.

`Scope` says which components and layers; `Target` is a layer in scope with what an intervention needs of it;
`Setting` holds the choices that hold for a whole run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from refusal_cmp.config import RunConfig, Site
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import Place, Plan, number
from refusal_cmp.registry import Registry, parse_spec, spelled
from refusal_cmp.subspace import ClassCovariances, Component, Subspace, SubspaceField

Edits = dict[Place, LowRankEdit]

UNIT_METHOD = "diff-in-means"
"""Whose selected norm additions are measured by, where they are by one norm for all methods."""

INTERVENTIONS: Registry[type[Any]] = Registry("intervention", "refusal_cmp.interventions")
"""Interventions by name; see `refusal_cmp.interventions.Intervention`."""


@dataclass(frozen=True)
class Scope:
    """How much of the model an intervention edits: `single`, `top` with a percentage in (0, 100], or `all`.

    `single`: the selected component's layer; `top:p`: the layers of the first p % of the ranked components;
    `all`: every layer. A layer is edited once, however many of its components are in scope, unless reflections
    compose by component.
    """

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
            All components that have a subspace, in the order of their pool.
        pool
            What the percentage is of: the smallest pool of the methods compared, so that all get the same count.
        """
        if self.kind == "single":
            return (selected,)
        if self.kind == "all":
            return tuple(ranking) or (selected,)
        return tuple(ranking[: self.count(pool)])

    def best_by_layer(self, components: Sequence[Component], n_layers: int) -> dict[int, Component | None]:
        """The layers in scope, first to last, each with the first of the components in scope there, if it has one."""
        best: dict[int, Component | None] = dict.fromkeys(range(n_layers)) if self.kind == "all" else {}
        for component in components:
            if best.get(component.layer) is None:
                best[component.layer] = component
        return dict(sorted(best.items()))


@dataclass(frozen=True)
class Setting:
    """Choices that hold for a whole run, not for one intervention."""

    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")
    """Where removal and mirror edits act in a layer in scope."""
    spread: bool = True
    """Divide additions by the number of layers in scope."""
    compose: str = "once"
    """`once`: a reflection mirrors each contribution to the stream once; `repeat`: at every site of every layer;
    `component`: there as often as the layer has components in scope, as published."""
    about: str = "midpoint"
    """What AlterRep forces coordinates to the harmless side of: the `midpoint` of the class means at the layer, or
    `zero`, as published."""
    norm: str = "own"
    """`own`: additions are measured by the difference-in-means norm of their layer; `selected`: by that of the
    selected difference-in-means component, as published."""
    layers: str = "scope"
    """`scope`: additions act at every layer in scope; `selected`: at the selected component's alone, as published."""

    @classmethod
    def of(cls, config: RunConfig) -> Setting:
        """The choices that a run's settings make."""
        return cls(
            sites=config.sites,
            spread=config.spread,
            compose=config.compose,
            about=config.alterrep_about,
            norm=config.actadd_norm,
            layers=config.actadd_layers,
        )


@dataclass(frozen=True)
class Target:
    """A layer in scope, the subspace to edit there, and the scale of the activations of that layer."""

    layer: int
    subspace: Subspace
    harmful_mean: Float[Tensor, " d"]
    """Mean training activation of harmful prompts on entry to this layer."""
    harmless_mean: Float[Tensor, " d"]
    unit_norm: float
    """What multiplier 1 of an activation addition is: the difference-in-means norm of this layer."""
    n_components: int = 1
    """Components of this layer in scope."""
    harmful_covariance: Float[Tensor, "k k"] | None = None
    """Of the coordinates that the subspace reads of harmful activations there; for interventions that need it."""
    harmless_covariance: Float[Tensor, "k k"] | None = None

    @property
    def covariances(self) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]:
        """The harmful and the harmless covariance, for an intervention that says that it needs them."""
        if self.harmful_covariance is None or self.harmless_covariance is None:
            raise RefusalCmpError(
                "An intervention asks for class covariances and does not say that it needs them; set needs_covariances."
            )
        return self.harmful_covariance, self.harmless_covariance


@dataclass(frozen=True)
class Selected:
    """What a method found: its subspaces and the component that selection chose."""

    field: SubspaceField
    component: Component


@dataclass(frozen=True)
class Chosen:
    """What selection leaves for planning: a method's subspaces, its component, and its ranking."""

    field: SubspaceField
    selected: Component
    ranking: tuple[Component, ...]
    """All components that have a subspace, in the order in which `top` scopes take them."""
    pool: str = "kept-first"
    """What that order is: those that the filters keep come first, or `all`: best first, as published."""
    component: str = "best"
    """Why that component: it is the method's `best`, or `shared` by all methods, or was asked for, `-1,8`."""
    covariances: ClassCovariances | None = None
    """Along what `where_read` says, for interventions that need them."""
    whole: SubspaceField | None = None
    """The field with all directions in their order, where the number that plans use may be varied."""
    k: int | None = None
    """How many of those are used, where that is not the choice of selection; labels say it."""

    def leading(self, k: int) -> Chosen:
        """The same choice with the first k directions of the whole, at every component."""
        assert self.whole is not None, "only what has an order is asked"
        return replace(
            self, field=replace(self.field, subspaces=self.whole.first(dict.fromkeys(self.field, k)).subspaces), k=k
        )

    def most(self, direction: str) -> int:
        """The most directions that there are of the subspaces that plans apply; 1 where their number is not varied."""
        if self.whole is None:
            return 1
        return max(self.whole[at].k for at, _ in where_read(self, direction))


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
    intervention
        Its name, with options in brackets, if any: `ablation[keep-norm=true]`.
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
    maker, (name, options) = INTERVENTIONS.create(intervention), parse_spec(intervention)
    reach = maker.reach(scope, setting)
    components = reach.components(chosen.selected, chosen.ranking, pool)
    in_scope = Counter(component.layer for component in components)
    targets = []
    for layer, own in reach.best_by_layer(components, chosen.field.means.n_layers).items():
        if direction == "best":
            own = chosen.selected
        if own is not None:
            target = _target(chosen.field, own, layer, setting, selected_norm, in_scope[layer])
            targets.append(_with_covariances(name, chosen, own, target) if maker.needs_covariances else target)
    if maker.strengths is None and strength == 1:
        strength = None  # all of it, as without a strength
    if maker.strengths is not None and strength is None:
        strength = maker.strengths[0]
    if strength is not None and not math.isfinite(strength):
        raise RefusalCmpError(f"The strength of {intervention!r} is {strength}; give a finite number.")
    return Plan(
        label=label(
            chosen.field.method,
            name,
            strength,
            scope,
            _differing(chosen, scope, direction, options, setting, maker.uses),
        ),
        edits=maker.formed(targets, strength, setting),
        method=chosen.field.method,
        k=chosen.field[chosen.selected].k,
        intervention=spelled(name, options),
        strength=strength,
        scope=str(scope),
        n_components=len(components),
        n_layers=len(targets),
        direction=direction,
        position=chosen.selected.position,
        layer=chosen.selected.layer,
        tokens=maker.tokens,
    )


def label(method: str, intervention: str, strength: float | None, scope: Scope, differing: Mapping[str, object]) -> str:
    """`method/intervention:strength@scope`, with what differs from the defaults in brackets."""
    brackets = ",".join(f"{name}={_value(value)}" for name, value in differing.items())
    return (
        f"{method}/{intervention}"
        + (f"[{brackets}]" if brackets else "")
        + ("" if strength is None else f":{number(strength)}")
        + f"@{scope.label}"
    )


def _differing(
    chosen: Chosen,
    scope: Scope,
    direction: str,
    options: Mapping[str, object],
    setting: Setting,
    uses: Sequence[str],
) -> dict[str, object]:
    """The choices that matter to a plan and are not the defaults, among them the intervention's options."""
    own = direction == "own" and scope.kind != "single"
    ordered = scope.kind == "top" or own
    component = tuple(chosen.component.split(","))
    return {
        **({"component": component} if chosen.component != Chosen.component else {}),
        **({"k": chosen.k} if chosen.k is not None else {}),
        **({"direction": direction} if own else {}),
        **({"pool": chosen.pool} if ordered and chosen.pool != Chosen.pool else {}),
        **{name.replace("_", "-"): value for name, value in options.items()},
        **{name: getattr(setting, name) for name in uses if getattr(setting, name) != getattr(Setting, name)},
    }


def _value(value: object) -> str:
    text = "+".join(value) if isinstance(value, tuple) else str(value)
    return text.lower().replace("_", "-")


def _target(
    field: SubspaceField,
    source: Component,
    layer: int,
    setting: Setting,
    selected_norm: float | None,
    n_components: int,
) -> Target:
    """`source`'s subspace at `layer`, with the scale of that layer at the source's position."""
    here = Component(source.position, layer)
    harmful_mean, harmless_mean = field.means.at(here)
    unit_norm = field.means.distance(here)
    if setting.norm == "selected":
        unit_norm = field.means.distance(source) if selected_norm is None else selected_norm
    return Target(layer, field[source], harmful_mean, harmless_mean, unit_norm, n_components)


def where_read(chosen: Chosen, direction: str) -> list[tuple[Component, int]]:
    """Whose subspaces plans may apply, each with a layer: the selected one's at all, or each layer's own there."""
    if direction == "best":
        return [(chosen.selected, layer) for layer in range(chosen.field.means.n_layers)]
    by_layer = Scope("all").best_by_layer(chosen.ranking, chosen.field.means.n_layers)
    own = dict.fromkeys([chosen.selected, *(one for one in by_layer.values() if one is not None)])
    return [(component, component.layer) for component in own]


def _with_covariances(intervention: str, chosen: Chosen, source: Component, target: Target) -> Target:
    """The target with the class covariances along its subspace."""
    if chosen.covariances is None:
        raise RefusalCmpError(
            f"The intervention {intervention!r} needs the class covariances along the subspace, and none are given; "
            "read them by class_covariances, and give them as covariances."
        )
    key = source, target.subspace.k, target.layer
    if key not in chosen.covariances.of:
        raise RefusalCmpError(
            f"The intervention {intervention!r} needs the class covariances along the {target.subspace.k} directions "
            f"of {chosen.field.method} at {source} in layer {target.layer}, and they are not among those given; "
            "read them by class_covariances with this component."
        )
    harmful, harmless = chosen.covariances.of[key]
    return replace(target, harmful_covariance=harmful, harmless_covariance=harmless)
