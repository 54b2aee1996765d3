"""Where activations land under a plan: with the harmful prompts, with the harmless ones, between, or beyond.

Rocchetti & Ferrara 2026 found that projection lands harmful activations between the clusters of harmful and
harmless ones, and reflection in the opposite one. Read at the component that selection chose for the plan's method,
on entry to its block and after the plan's edits there, and once more on entry to the last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.evals import Selected
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.structure import before, installed
from refusal_cmp.subspace import Component

KINDS = ("harmful", "harmless")
WHERE = ("selected", "last")
"""At the selected component, and at the last prompt token on entry to the last block."""


@dataclass(frozen=True)
class Landing:
    """Where the mean harmful activation lands, as shares of the distance between the two unedited means."""

    where: str
    along: float
    """How far along the way from the harmless (0) to the harmful mean (1)."""
    to_harmful: float
    """Distance to the unedited harmful mean."""
    to_harmless: float
    """Distance to the unedited harmless mean."""

    @property
    def word(self) -> str:
        """The landing in a word, from `past` the harmful mean to `beyond` the harmless one; `aside` where it is
        further from the line through the two than they are apart, or not finite."""
        if not self.to_harmless**2 - self.along**2 <= 1:
            return "aside"
        for name, least in (("past", 1.2), ("harmful", 0.8), ("between", 0.2), ("harmless", -0.2)):
            if self.along > least:
                return name
        return "beyond"


@dataclass(frozen=True)
class Geometry:
    """The activations of test prompts under every distinct plan, in the plane of their method."""

    planes: Mapping[tuple[str, str], Float[Tensor, "2 n 2"]]
    """By method and plan (or `baseline`): harmful and harmless prompts; coordinates along the direction and along
    the first principal component of what is orthogonal to it, measured from the midpoint of the unedited means."""
    landings: Mapping[str, tuple[Landing, ...]]
    """By plan: at each of `WHERE`."""
    components: Mapping[str, Component]
    """By method."""

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The geometry as tensors, named by method and plan, and metadata."""
        tensors = {f"plane|{method}|{plan}": plane for (method, plan), plane in self.planes.items()}
        for plan, landings in self.landings.items():
            rows = [[one.along, one.to_harmful, one.to_harmless] for one in landings]
            tensors[f"landing||{plan}"] = torch.tensor(rows, dtype=torch.float64)
        for method, component in self.components.items():
            tensors[f"component|{method}|"] = torch.tensor(component)
        return tensors, {}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], _: Mapping[str, str]) -> Geometry:
        """The geometry that `to_tensors` wrote."""
        parts: dict[str, dict[tuple[str, str], Tensor]] = {"plane": {}, "landing": {}, "component": {}}
        for key, tensor in tensors.items():
            part, method, plan = key.split("|")
            parts[part][method, plan] = tensor
        return cls(
            planes=parts["plane"],
            landings={
                plan: tuple(Landing(where, *row) for where, row in zip(WHERE, rows.tolist(), strict=True))
                for (_, plan), rows in parts["landing"].items()
            },
            components={method: Component(*where.tolist()) for (method, _), where in parts["component"].items()},
        )


@dataclass(frozen=True)
class _Plane:
    """The plane of a method at its component."""

    component: Component
    axes: Float[Tensor, "2 d"]
    origin: Float[Tensor, " d"]


@torch.inference_mode()
def measure(
    model: ChatModel,
    prompts: Mapping[str, Sequence[str]],
    selected: Sequence[Selected],
    plans: Sequence[Plan],
    batch_size: int | None,
    progress: Progress = silent,
) -> Geometry:
    """Run the prompts through the model under every plan and read where they land.

    Parameters
    ----------
    prompts
        As many instructions of each of `KINDS`.
    plans
        Distinct plans of these methods, without the baseline.
    """
    places = {one.field.method: one.component for one in selected}
    last = Component(-1, model.n_layers - 1)
    unedited = _read(model, prompts, {*places.values(), last}, batch_size)
    planes = {one.field.method: _plane(one, unedited[one.component]) for one in selected}
    found = {(method, BASELINE): _coordinates(plane, unedited[plane.component]) for method, plane in planes.items()}
    landings = {}
    with progress("where activations land", len(plans)) as advance:
        for plan in plans:
            plane = planes[plan.method]
            with model.edited(plan):
                edited = _read(model, prompts, {plane.component, last}, batch_size)
            found[plan.method, plan.label] = _coordinates(plane, edited[plane.component])
            landings[plan.label] = tuple(
                _landing(where, unedited[place], edited[place])
                for where, place in zip(WHERE, (plane.component, last), strict=True)
            )
            advance(1)
    return Geometry(found, landings, places)


def _read(
    model: ChatModel, prompts: Mapping[str, Sequence[str]], places: set[Component], batch_size: int | None
) -> dict[Component, Float[Tensor, "2 n d"]]:
    """The residual stream at these components, float64."""
    n = len(prompts[KINDS[0]])
    layers = {place.layer for place in places}
    found = {place: torch.empty(len(KINDS), n, model.d_model, dtype=torch.float64) for place in places}
    for kind, name in enumerate(KINDS):

        def keep(rows: list[int], batch: Batch, kind: int = kind) -> None:
            streams: dict[int, Tensor] = {}
            with installed(before(model.blocks[i].module, partial(streams.__setitem__, i)) for i in layers):
                model.last_logits(batch)
            for place in places:
                found[place][kind, rows] = streams[place.layer][:, place.position].double().cpu()

        model.over_batches(prompts[name], batch_size, keep)
    return found


def _plane(one: Selected, x: Float[Tensor, "2 n d"]) -> _Plane:
    """The direction, and the first principal component of what is orthogonal to it."""
    direction = one.field[one.component].direction.double()
    rest = (x - x.mean((0, 1))).flatten(0, 1)
    rest = rest - torch.outer(rest @ direction, direction)
    component = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    component = component * component[component.abs().argmax()].sign()  # the sign of a component is arbitrary
    return _Plane(one.component, torch.stack([direction, component]), x.mean(1).mean(0))


def _coordinates(plane: _Plane, x: Float[Tensor, "2 n d"]) -> Float[Tensor, "2 n 2"]:
    return ((x - plane.origin) @ plane.axes.mT).float()


def _landing(where: str, unedited: Float[Tensor, "2 n d"], edited: Float[Tensor, "2 n d"]) -> Landing:
    (harmful, harmless), landed = unedited.mean(1), edited[0].mean(0)
    axis = harmful - harmless
    size = axis.norm()
    return Landing(
        where,
        along=float((landed - harmless) @ axis / size**2),
        to_harmful=float((landed - harmful).norm() / size),
        to_harmless=float((landed - harmless).norm() / size),
    )
