"""A sweep of strengths: what every cell of the grid does, and at what damage, from nothing to a limit.

The end of a sweep is the strength at which the damage is about the limit, or the end of the range; between nothing and
it the strengths are spread evenly, as damage grows about with their square. Every strength is one pass for damage and
one for refusal, which it shares with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.calibration.calibrate import Measures, calibrate
from refusal_cmp.calibration.varied import Varied
from refusal_cmp.model import Batch, ChatModel, refusal_metric
from refusal_cmp.model.linear import prepacked
from refusal_cmp.model.passes import Passes, Row
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent

STEPS = 6
"""Strengths of a sweep beside none at all."""
NEAR = 0.15
"""Share of the limit by which the end of a sweep may be off."""


@dataclass(frozen=True)
class Point:
    """A plan of a sweep."""

    cell: int
    """Index of its cell."""
    times: float
    """Its strength in default strengths."""
    damage: list[float]
    """On each prompt that damage is measured on."""
    refused: dict[str, list[int]]
    """By test set: whether it begins to refuse each prompt, a refusal metric above 0."""


class Refusal:
    """Whether plans begin to refuse prompts: whether the first token of the answer is likelier a refusal than not."""

    def __init__(
        self,
        model: ChatModel,
        prompts: Mapping[str, Sequence[str]],
        refusal_tokens: Sequence[int],
        batch_size: int | None = None,
        *,
        some_tokens: bool = False,
    ) -> None:
        self.sizes = {name: len(of_set) for name, of_set in prompts.items()}
        self.tokens = refusal_tokens
        ids = model.tokenize([prompt for of_set in prompts.values() for prompt in of_set])
        self.passes = Passes(model, [Row(tuple(one)) for one in ids], batch_size, some_tokens=some_tokens)

    def __call__(self, plans: Sequence[Plan]) -> list[dict[str, list[int]]]:
        """For each plan of a group, by test set, 1 for each prompt that it begins to refuse."""
        return [self._by_set(row) for row in self.passes.measure(plans, self._read)]

    def unedited(self) -> dict[str, list[int]]:
        """The same of the model as it is."""
        found = torch.empty(sum(self.sizes.values()), dtype=torch.float64)

        def keep(model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]) -> None:
            found[indices] = self._read(model, batch, at, indices).cpu()

        self.passes.unedited(keep)
        return self._by_set(found)

    def _read(self, model: ChatModel, batch: Batch, at: Int[Tensor, " m"], _: list[int]) -> Float[Tensor, " n"]:
        return refusal_metric(model.forward_at(batch, at, use_cache=False).logits.float(), self.tokens)

    def _by_set(self, metric: Float[Tensor, " n"]) -> dict[str, list[int]]:
        parts = metric.split(list(self.sizes.values()))
        return {name: (part > 0).int().tolist() for name, part in zip(self.sizes, parts, strict=True)}


def strengths_within(
    cells: Sequence[Varied],
    damage: Measures,
    limit: float,
    *,
    done: MutableMapping[int, list[list[float]]] | None = None,
    progress: Progress = silent,
) -> list[list[float]]:
    """For each cell the strengths of its sweep, in default strengths, up to a limit of damage."""
    ends = calibrate(cells, damage, limit, tolerance=NEAR, done=done, progress=progress)
    return [[float(f"{one.found.times * step / STEPS:.4g}") for step in range(1, STEPS + 1)] for one in ends]


@prepacked()
def sweep(
    cells: Sequence[Varied],
    strengths: Sequence[Sequence[float]],
    damage: Measures,
    refusal: Callable[[Sequence[Plan]], list[dict[str, list[int]]]],
    *,
    done: MutableMapping[int, Any] | None = None,
    progress: Progress = silent,
) -> list[Point]:
    """The points of every cell's sweep, cell by cell.

    Parameters
    ----------
    done
        What was measured before, by the number of its pass; what is measured is added.
    """
    finished: MutableMapping[int, Any] = {} if done is None else done
    asked = [(index, times) for index, of_cell in enumerate(strengths) for times in of_cell]
    plans = [cells[index].at(times) for index, times in asked]
    points: dict[int, Point] = {}
    with progress("sweeping strengths", len(plans)) as advance:
        for number, which in enumerate(damage.groups(plans)):
            if number not in finished:
                group = [plans[index] for index in which]
                finished[number] = [damage(group).tolist(), refusal(group)]
            for index, hurt, refused in zip(which, *finished[number], strict=True):
                points[index] = Point(asked[index][0], asked[index][1], hurt, refused)
            advance(len(which))
    return [points[index] for index in range(len(plans))]
