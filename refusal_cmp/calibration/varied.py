"""A cell of the grid at any strength: what calibration and curves vary.

An intervention that changes nothing at some strength (`Intervention.neutral`) is varied by it: u stands for
neutral + u (default − neutral), on the side of each of its default strengths. Any other is done in part, by its option
`share`: `clamp[share=0.3]:-1`. So u = 1 is the plan of the default strength, and u = 0 changes nothing.

What edits along all directions of a subspace whose directions have an order can be varied by their number k as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import Cell
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.plan import Plan, number
from refusal_cmp.registry import parse_spec, spelled

SHARE = "share"


@dataclass(frozen=True)
class Varied:
    """A cell of the grid without its strength."""

    cell: Cell
    neutral: float | None
    default: float | None
    """The strength of u = 1; None where it is a share."""
    end: float
    """The largest u."""
    most: int = 1
    """The most directions, where their number is varied."""

    def at(self, times: float, k: int | None = None) -> Plan:
        """The plan of so many default strengths, and with k directions; it says which cell it is of."""
        if k is not None:
            return replace(self, cell=self.cell.leading(k)).at(times)
        name, options = parse_spec(self.cell.intervention)
        if self.neutral is not None:
            default = 1.0 if self.default is None else self.default
            strength = float(number(self.neutral + times * (default - self.neutral)))
            plan = self.cell.at(self.cell.intervention, strength)
        else:
            share = {} if times == 1 else {SHARE: float(number(times))}
            plan = self.cell.at(spelled(name, {**options, **share}), self.default)
        return replace(plan, intervention=self.cell.intervention, cell=self.name)

    @cached_property
    def name(self) -> str:
        """What it is called among those of one method and scope: `ablation`, `actadd:-`, `clamp:-1`."""
        if self.default is None:
            return self.cell.intervention
        if self.neutral is None:
            return f"{self.cell.intervention}:{number(self.default)}"
        return f"{self.cell.intervention}:{'-' if self.default < self.neutral else '+'}"

    def to(self, budget: str) -> str:
        """A label that is the same whatever strength meets a budget: `ablation:kl=0.1@all`, `actadd:-,kl=0.1@all`."""
        label = self.cell.at(self.cell.intervention, self.default).label
        start, _, scope = label.rpartition("@")
        if self.default is None:
            return f"{start}:{budget}@{scope}"
        if self.neutral is not None:
            start = f"{start.removesuffix(number(self.default))}{self.name[-1]}"
        return f"{start},{budget}@{scope}"

    @cached_property
    def digest(self) -> str:
        """Of what it does: cells of one digest do the same at every strength."""
        k = self.most if self.most > 1 else None
        which = "" if k is None else f"-k{k}"
        return f"{self.at(1, k).digest[:16]}-{self.at(0.5, k).digest[:16]}-{number(self.end)}{which}"


def check_varied(intervention: str) -> None:
    """RefusalCmpError for an intervention that cannot be varied; asked before any work."""
    name, options = parse_spec(intervention)
    if INTERVENTIONS.create(intervention).neutral is not None:
        return
    if SHARE in options:
        raise RefusalCmpError(
            f"The intervention {intervention} is done in part already, and its share is what is varied; take {SHARE} "
            "out of it.",
            interventions="",
        )
    INTERVENTIONS.create(spelled(name, {**options, SHARE: 0.5}))


def varied(cells: Iterable[Cell], over: str = "strength") -> list[Varied]:
    """The cells without their strengths: those that differ by how far they go to one side are one, by the first.

    Parameters
    ----------
    over
        `strength`, or `k`: the number of directions too, where there is one to vary.
    """
    found: dict[tuple[str, str, str], Varied] = {}
    for cell in cells:
        maker = INTERVENTIONS.create(cell.intervention)
        if maker.neutral is not None and cell.strength == maker.neutral:
            continue  # the model as it is
        if maker.strengths is None:
            one = Varied(cell, maker.neutral, None, 1.0)
        elif maker.neutral is None:
            one = Varied(cell, None, cell.strength, 1.0)
        else:
            one = Varied(cell, maker.neutral, cell.strength, maker.farthest)
        if over == "k":
            one = replace(one, most=cell.most)
        found.setdefault((cell.chosen.field.method, cell.chosen.component, f"{one.name}@{cell.scope}"), one)
    return list(found.values())
