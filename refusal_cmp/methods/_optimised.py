"""Methods that descend by gradient: where they begin, what the model is to say, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from refusal_cmp.activations import Activations, Needs, balanced_accuracy
from refusal_cmp.config.values import Seed
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods import ModelMethod, Said, Sight
from refusal_cmp.methods._optimise import (
    TOGETHER,
    Goals,
    Objective,
    ablation,
    cross_entropy,
    descend,
    divergence,
    first_sentence,
)
from refusal_cmp.progress import Progress, silent
from refusal_cmp.subspace import Component, Subspace, SubspaceField, unit

BEGINNINGS = 8
"""Layers at which descent may begin, and components at which its harm is looked at."""
FEWEST = 2
"""Answers that do not refuse, without which there is nothing to descend to."""

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _place(value: object) -> object:
    """`-1+5`, as labels have components, as (-1, 5)."""
    return value.split("+") if isinstance(value, str) else value


class Part(NamedTuple):
    """Prompts of both kinds: those that are trained on, or those that are held out."""

    harmful: list[str]
    harmless: list[str]


@dataclass(frozen=True)
class Optimised(ModelMethod):
    """Descends from the difference in means of one component.

    Parameters
    ----------
    at
        The component, POSITION+LAYER as in `-1+5`. By default one is looked for, at every position and at 8 layers
        spread over the first `below` of the model: of the 8 components without whose difference in means the model's
        own refusals of held-out prompts are least likely (the geometric mean of their tokens' probabilities), the one
        where that and the KL per token of its answers to harmless prompts are least.
    below
        Share of the layers that it is looked for in.
    steps, rate, batch, patience
        Most steps; radians of the first one; prompts of each kind in a step; looks at the held-out prompts, one every 5
        steps, without anything better.
    prompts, tokens
        Most training prompts of each kind, and a third as many held-out ones; most tokens of an answer.
    answer, refusal, keep
        The weights λ₁, λ₂ and λ₃.
    seed
        Of the order of prompts and of whatever is drawn.
    """

    needs: ClassVar[Needs] = "means"

    at: Annotated[tuple[int, int], BeforeValidator(_place)] | None = None
    below: Annotated[float, Field(gt=0, le=1)] = 0.8
    steps: Count = 60
    rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    batch: Count = 8
    patience: Count = 4
    prompts: Count = 48
    tokens: Count = 30
    answer: Weight = 1.0
    refusal: Weight = 0.2
    keep: Weight = 1.0
    seed: Seed = 0

    @property
    def samples(self) -> int:
        """Directions drawn from the cone in a step."""
        return 0

    def begin(self, direction: Float[Tensor, " d"]) -> Float[Tensor, "k d"]:
        """The orthonormal rows that descent begins with, given the difference in means."""
        return direction[None]

    def check(self, positions: Sequence[int], n_layers: int, d_model: int) -> None:
        """RefusalCmpError if the model has no component `at`."""
        if self.at is not None and not (self.at[0] in positions and 0 <= self.at[1] < n_layers):
            raise RefusalCmpError(
                f"The option at is {Component(*self.at)}, and the model has positions {positions[0]} to -1 and layers "
                f"0 to {n_layers - 1}; choose among these."
            )

    def fit_seeing(self, sight: Sight, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspace at one component; the others are missing, as no descent began there."""
        seen, means = sight.activations, sight.activations.means()
        self.check(seen.positions, seen.n_layers, means.harmful.shape[-1])
        parts = [self._part(sight, held_out) for held_out in (False, True)]
        own = [self._own(sight, part) for part in parts]
        at = self._beginning(sight, own[1]) if self.at is None else Component(*self.at)
        direction = difference(seen, at)
        if direction is None:
            raise RefusalCmpError(
                f"{method} cannot begin at {at}: the difference in means vanishes there; choose another."
            )
        goals = [self._goals(sight, part, of, direction) for part, of in zip(parts, own, strict=True)]
        least = min(len(part.answers) for part in goals)
        if least < FEWEST:
            raise RefusalCmpError(
                f"{method} needs at least {FEWEST} harmful prompts, trained on and held out, that the model answers "
                f"without the difference in means at {at}, and there are {least}; give more prompts, or another "
                "component by its option at."
            )
        found = descend(
            Objective(sight, at.layer, means.distance(at), (self.answer, self.refusal, self.keep)),
            self.begin(direction),
            *goals,
            steps=self.steps,
            rate=self.rate,
            batch=self.batch,
            samples=self.samples,
            patience=self.patience,
            seed=self.seed,
            progress=progress,
            name=f"optimising {method}",
        )
        changes = [f"{was:.3f} to {is_now:.3f}" for was, is_now in zip(found.start, found.best, strict=True)]
        sight.say(
            f"{method}: from the difference in means at {at}, the objective on held-out prompts falls from "
            f"{sum(found.start):.3f} to {sum(found.best):.3f} within {found.steps} steps: of answers {changes[0]}, of "
            f"refusals {changes[1]}, of what is to be kept {changes[2]}."
        )
        why = f"it is optimised at {at} alone"
        missing = {other: why for other in seen.components() if other != at}
        return SubspaceField(method, means, {at: _subspace(seen, at, found.basis)}, missing)

    def _part(self, sight: Sight, held_out: bool) -> Part:
        seen, most = sight.activations, max(FEWEST, self.prompts // 3) if held_out else self.prompts
        chosen = seen.dev == held_out
        kinds = (chosen & (seen.harmful == kind) for kind in (True, False))
        return Part(*([sight.prompts[i] for i in kind.nonzero()[:most, 0].tolist()] for kind in kinds))

    def _own(self, sight: Sight, part: Part) -> tuple[list[Said], list[Said]]:
        """Its own refusals of harmful prompts, and its own answers to harmless ones."""
        answers = [self._answered(sight, instructions) for instructions in part]
        refusals = [
            Said(one.instruction, first_sentence(one.answer)) for one in answers[0] if sight.refuses(one.answer)
        ]
        if not refusals or not answers[1]:
            raise RefusalCmpError(
                f"The model refuses {len(refusals)} of {len(part.harmful)} harmful prompts and says something to "
                f"{len(answers[1])} of {len(part.harmless)} harmless ones; directions of refusal are optimised where "
                "it does both, so give other prompts."
            )
        return refusals, answers[1]

    def _goals(
        self, sight: Sight, part: Part, own: tuple[list[Said], list[Said]], direction: Float[Tensor, " d"]
    ) -> Goals:
        refusals, kept = own
        answers = self._answered(sight, part.harmful, direction)
        texts = [refusals[index % len(refusals)].answer for index in range(len(part.harmless))]
        return Goals(
            [one for one in answers if not sight.refuses(one.answer)],
            [Said(*pair) for pair in zip(part.harmless, texts, strict=True)],
            kept,
        )

    def _answered(self, sight: Sight, instructions: Sequence[str], ablated: Tensor | None = None) -> list[Said]:
        edits = {} if ablated is None else ablation(ablated, sight.activations.n_layers)
        answers = sight.answers(instructions, edits, self.tokens)
        return [Said(*pair) for pair in zip(instructions, answers, strict=True) if pair[1].strip()]

    @torch.no_grad()
    def _beginning(self, sight: Sight, own: tuple[list[Said], list[Said]]) -> Component:
        seen = sight.activations
        most = max(1, int(self.below * seen.n_layers)) - 1
        layers = set(np.linspace(0, most, BEGINNINGS).round().astype(int).tolist())
        among = {
            at: one for at in seen.components() if at.layer in layers and (one := difference(seen, at)) is not None
        }
        if not among:
            raise RefusalCmpError("The difference in means vanishes at every component; give other or more prompts.")
        refusals, kept = (some[:TOGETHER] for some in own)
        unedited = sight.foresees(kept, {})

        def left(at: Component) -> float:
            """How likely the model's own refusals still are without the direction."""
            foreseen = sight.foresees(refusals, ablation(among[at], seen.n_layers))
            return float(torch.stack([(-cross_entropy(*one)).exp() for one in foreseen]).mean())

        def lost(at: Component) -> float:
            """How far its answers to harmless prompts are changed."""
            foreseen = sight.foresees(kept, ablation(among[at], seen.n_layers))
            pairs = zip(foreseen, unedited, strict=True)
            return float(torch.stack([divergence(one.logits, was.logits) for one, was in pairs]).mean())

        refused = {at: left(at) for at in among}
        return min(sorted(among, key=lambda at: refused[at])[:BEGINNINGS], key=lambda at: refused[at] + lost(at))


def difference(activations: Activations, at: Component) -> Float[Tensor, " d"] | None:
    """The unit difference in means; None where it vanishes."""
    train, _ = activations.moments_at(at)
    harmful, harmless = train.means()
    try:
        return unit(harmful - harmless, "difference of the class means", train.scale)
    except NoSubspaceError:
        return None


def _subspace(activations: Activations, at: Component, basis: Float[Tensor, "k d"]) -> Subspace:
    """The rows and the middle of their cone; evidence is the dev accuracy of the midpoint between the means."""
    train, dev = activations.moments_at(at)
    harmful, harmless = train.means()
    direction = basis.sum(0) / basis.sum(0).norm()
    midpoint = basis @ (harmful + harmless) / 2
    accuracy = balanced_accuracy((dev.x @ basis.mT > midpoint).mT, dev.y)
    return Subspace(basis, direction, float(direction @ (harmful - harmless)), accuracy)
