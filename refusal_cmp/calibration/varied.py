"""A cell of the grid at any strength: what calibration and curves vary.

An intervention that changes nothing at some strength (`Intervention.neutral`) is varied by it: u stands for
neutral + u (default − neutral), on the side of each of its default strengths. Any other is done in part, by its option
`share`: `clamp[share=0.3]:-1`. So u = 1 is the plan of the default strength, and u = 0 changes nothing.
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

    def at(self, times: float) -> Plan:
        """The plan of so many default strengths; it says which cell it is of."""
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

    @cached_property
    def digest(self) -> str:
        """Of what it does: cells of one digest do the same at every strength."""
        return f"{self.at(1).digest[:16]}-{self.at(0.5).digest[:16]}-{number(self.end)}"


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


def varied(cells: Iterable[Cell]) -> list[Varied]:
    """The cells without their strengths: those that differ by how far they go to one side are one, by the first."""
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
        found.setdefault((cell.chosen.field.method, cell.chosen.component, f"{one.name}@{cell.scope}"), one)
    return list(found.values())
