"""Which components are scored, and so can be chosen: those at some post-instruction tokens and in some layers."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.config import RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.subspace import Component, SubspaceField


def among(field: SubspaceField, config: RunConfig) -> SubspaceField:
    """The part of a field that the settings `positions` and `layers` choose; all of it where they are not given.

    A direction that was given for one component leaves no choice, wherever that is.

    Raises
    ------
    RefusalCmpError
        If they name what the model does not have, or no component with a subspace is left.
    """
    components = set(scored(config, field.means.positions, field.means.n_layers))
    found = [component for component in field if component in components]
    if len(field) == 1 or len(found) == len(field):
        return field
    if not found:
        raise RefusalCmpError(
            f"At none of the {len(components)} components that positions, layers and prune-layers choose has "
            f"{field.method} a subspace, and it has {len(field)} in all; choose others.",
            positions="",
            layers="",
            prune_layers="",
        )
    return field.only(found)


def scored(config: RunConfig, positions: Sequence[int], n_layers: int) -> list[Component]:
    """Those of a model's components that are scored, wherever a method has a subspace.

    Of the ones that the settings `positions` and `layers` choose, layers that nothing is selected from are left out,
    unless the ranking itself is the question, or all components are counted over, or every layer has a direction of
    its own.
    """
    components = _components(config, positions, n_layers)
    if config.compare_rankings or config.pool == "all" or config.direction == "own":
        return components
    limit = int(config.prune_layers * n_layers)
    return [component for component in components if component.layer < limit]


def left_out(field: SubspaceField, config: RunConfig) -> int:
    """How many components of a field are not scored only because `positions` and `layers` choose others."""
    if config.positions is None and config.layers is None:
        return 0
    unrestricted = config.model_copy(update={"positions": None, "layers": None})
    return len(among(field, unrestricted)) - len(among(field, config))


def chosen(config: RunConfig, positions: Sequence[int], n_layers: int, beyond: Sequence[int] = ()) -> list[Component]:
    """The components that the settings `positions` and `layers` choose of those that a model has.

    Parameters
    ----------
    positions
        The post-instruction tokens.
    beyond
        Positions before those that some method reads.
    """
    everywhere = (*beyond, *positions)
    for position in config.positions or ():
        if position not in everywhere:
            others = f" and methods that read {', '.join(map(str, beyond))}" if beyond else ""
            raise RefusalCmpError(
                f"The setting positions holds {position}, and the model has {len(positions)} post-instruction tokens, "
                f"{positions[0]} to -1{others}; choose among these.",
                positions="",
            )
    found = _components(config, positions, n_layers)
    for one in beyond:
        found += _components(config, (one,), n_layers)
    positions = everywhere
    for which in config.component:
        at = named(which)
        if at is not None and at not in found:
            has = f"it has positions {positions[0]} to -1 and layers 0 to {n_layers - 1}"
            is_there = at.position in positions and 0 <= at.layer < n_layers
            why = "positions and layers leave it out" if is_there else f"the model has no such component: {has}"
            raise RefusalCmpError(f"The setting component holds {which}, and {why}; choose another.", component="")
    return found


def _components(config: RunConfig, positions: Sequence[int], n_layers: int) -> list[Component]:
    """Those of the positions that a method reads; all of them where the setting `positions` names none of them.

    It chooses among post-instruction tokens: a method that reads another token has no other to be chosen in its place.
    """
    wanted = [position for position in config.positions or () if position in positions] or positions
    layers = range(n_layers) if config.layers is None else _numbers(config.layers, n_layers)
    return [Component(position, layer) for layer in layers for position in wanted]


def named(which: str) -> Component | None:
    """The component that a value of the setting `component` names; None of `best` and `shared`."""
    return Component(*map(int, which.split(","))) if "," in which else None


def _numbers(parts: Sequence[str], n_layers: int) -> list[int]:
    """The layers that numbers and slices name, as in Python; what is outside of the model is refused, not cut off."""
    named: set[int] = set()
    for part in parts:
        start, colon, rest = part.partition(":")
        bounds = [int(one) if one else None for one in (start, *rest.split(":"))]
        outside = [one for one in bounds[:2] if one is not None and not -n_layers <= one <= n_layers - (not colon)]
        here = range(n_layers)[slice(*bounds)] if colon else bounds[:1]
        if outside or not here:
            raise RefusalCmpError(
                f"The setting layers holds {part}, which names {'what is no layer' if outside else 'no layer'} of the "
                f"model's {n_layers}, 0 to {n_layers - 1}; choose among these, as in 8:24, 8:24:2 or 8,10,12.",
                layers="",
            )
        named |= {int(one) % n_layers for one in here if one is not None}
    return sorted(named)


def said(config: RunConfig) -> str:
    """What readers have to know of a choice among part of the components; nothing where it was among all."""
    parts = []
    if config.positions is not None:
        parts.append(f"at position{'s' * (len(config.positions) > 1)} {', '.join(map(str, config.positions))}")
    if config.layers is not None:
        several = len(config.layers) > 1 or ":" in config.layers[0]
        parts.append(f"in layer{'s' * several} {', '.join(config.layers)}")
    return f"Only components {' '.join(parts)} were scored, and could be chosen." if parts else ""
