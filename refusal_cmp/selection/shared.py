"""One component for all methods, so that what a method finds is not mixed up with where it is looked for."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.selection.rule import Selection
from refusal_cmp.subspace import Component


def shared(selections: Sequence[Selection]) -> Component:
    """The component of the best mean rank, of those that the filters keep for every method, or, if none is, of all.

    Of those with the same mean rank the earliest layer's. Methods with one component, which were given, have no say.

    Raises
    ------
    RefusalCmpError
        If no component has a subspace of every method.
    """
    having = [one for one in selections if len(one.ranking) > 1] or list(selections)
    kept = set.intersection(*(set(one.kept) for one in having))
    among = kept or set.intersection(*(set(one.ranking) for one in having))
    if not among:
        names = ", ".join(one.method for one in having)
        raise RefusalCmpError(
            f"No component has a subspace of each of {names}, to be shared; leave it out.", component=""
        )
    return min(among, key=lambda at: (sum(one.ranking.index(at) for one in having), at.layer, -at.position))
