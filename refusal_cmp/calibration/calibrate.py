"""Every plan at what meets one budget of damage: all searches go in step, and share their passes."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from refusal_cmp.calibration.rank import RankSearch
from refusal_cmp.calibration.search import TOLERANCE, Found, Search, Tried
from refusal_cmp.calibration.varied import Varied
from refusal_cmp.model.linear import prepacked
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent


class Measures(Protocol):
    """What says the damage of plans: a `Meter`."""

    def groups(self, plans: Sequence[Plan]) -> list[list[int]]:
        """Which plans go through passes together, by their indices."""

    def __call__(self, plans: Sequence[Plan]) -> Float[Tensor, "p n"]:
        """The damage on every prompt under each plan of a group."""


@dataclass(frozen=True)
class Calibration:
    """What was done for one cell of the grid."""

    digest: str
    """Of the cell; see `Varied`."""
    found: Found
    tried: tuple[Tried, ...]


@prepacked()
def calibrate(
    cells: Sequence[Varied],
    damage: Measures,
    budget: float,
    *,
    tolerance: float = TOLERANCE,
    done: MutableMapping[int, list[list[float]]] | None = None,
    progress: Progress = silent,
) -> list[Calibration]:
    """The strength of each cell at which the damage is the budget, or how near it comes; and how many directions.

    Parameters
    ----------
    done
        Damage that was measured before, by the number of its pass; what is measured is added. Cells, budget and
        prompts have to be the same.
    """
    searches = [_search(cell, budget, tolerance) for cell in cells]
    measured = _numbered(damage, {} if done is None else done)
    next(measured)
    with progress("calibrating", len(cells)) as advance:
        left = list(range(len(cells)))
        while left:
            asked = [(index, times) for index in left if (times := searches[index].ask()) is not None]
            advance(len(left) - len(asked))
            left = [index for index, _ in asked]
            if not asked:
                break
            plans = [cells[index].at(times, searches[index].k) for index, times in asked]
            for which in damage.groups(plans):
                for at, values in zip(which, measured.send([plans[i] for i in which]), strict=True):
                    index, times = asked[at]
                    searches[index].tell(times, sum(values) / len(values))
    return [
        Calibration(cell.digest, search.found(), tuple(search.tried))
        for cell, search in zip(cells, searches, strict=True)
    ]


def _search(cell: Varied, budget: float, tolerance: float) -> Search | RankSearch:
    if cell.most > 1:
        return RankSearch(budget, cell.most, cell.end, tolerance)
    return Search(budget, cell.end, tolerance)


def _numbered(damage: Measures, done: MutableMapping[int, list[list[float]]]) -> Any:
    """Takes the plans of a pass, gives their damage: what stands in `done` under the number of the pass, or anew."""
    found: list[list[float]] = []
    number = 0
    while True:
        plans = yield found
        if number not in done:
            done[number] = damage(plans).tolist()
        found = done[number]
        number += 1


def same_cells(cells: Sequence[Varied]) -> Iterator[tuple[Varied, list[int]]]:
    """The cells that do different things, each with the indices of those that do what it does."""
    first: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        first.setdefault(cell.digest, []).append(index)
    yield from ((cells[indices[0]], indices) for indices in first.values())
