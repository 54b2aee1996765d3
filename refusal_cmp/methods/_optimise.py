"""Directions found by gradient descent through the model: what `rdo` and `cones` share.

    L(r) = λ₁ CE(answer | harmful, r ablated) + λ₂ CE(refusal | harmless, r added)
         + λ₃ KL(r ablated ‖ unedited | harmless)

(Wollschläger et al. 2025, arXiv:2502.17420, section 3), each a mean over the tokens of an answer and over prompts. The
answers are the model's own: to harmful prompts with the difference in means ablated, those of them that do not refuse;
refusals of the unedited model, up to their first sentence's end; what it answers to harmless prompts unedited. Ablation
acts at every site of every layer, addition on entry to the component's layer, by the distance of the class means there.

Adam turns the orthonormal rows, by `rate` radians in the first step, and after each step they are made orthonormal
again, by the nearest such rows. What is returned is the best on the held-out prompts, the start included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.config import SITES
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.methods._sight import Edits, Said, Sight
from refusal_cmp.plan import Place
from refusal_cmp.progress import Progress

TOGETHER = 4
"""Prompts of a kind in one pass, which keeps all that its gradient needs."""
EVERY = 5
"""Steps between two looks at the held-out prompts."""
_SENTENCE = re.compile(r".*?[.!?。！？](?=\s|$)", re.DOTALL)


class Goals(NamedTuple):
    """What the model is to say; one of each kind goes with one of the others."""

    answers: list[Said]
    """To harmful prompts, with the direction ablated."""
    refusals: list[Said]
    """To harmless prompts, with the direction added."""
    kept: list[Said]
    """To harmless prompts, as it does unedited, with the direction ablated."""

    def some(self, indices: Sequence[int]) -> Goals:
        """Of each kind those at these indices, which start anew where a kind has fewer."""
        return Goals(*([kind[index % len(kind)] for index in indices] for kind in self))

    def parts(self) -> Iterator[Goals]:
        """All of them, as many at a time as go together in a pass."""
        n = max(map(len, self))
        for start in range(0, n, TOGETHER):
            yield self.some(range(start, min(start + TOGETHER, n)))


class Terms(NamedTuple):
    """The weighted terms of the objective."""

    answer: float
    refusal: float
    keep: float


@dataclass(frozen=True)
class Objective:
    """L(r) at one component."""

    sight: Sight
    layer: int
    norm: float
    """The length of an addition."""
    weights: tuple[float, float, float]
    """λ₁, λ₂, λ₃"""

    def __call__(self, direction: Float[Tensor, " d"], goals: Goals) -> Float[Tensor, " 3"]:
        """The weighted terms of a unit direction, in which they are differentiable; the objective is their sum."""
        n_layers, n = self.sight.activations.n_layers, len(goals.answers)
        ablated = self.sight.foresees([*goals.answers, *goals.kept], ablation(direction, n_layers))
        added = self.sight.foresees(
            goals.refusals, {Place(self.layer, "resid_pre"): LowRankEdit(b=self.norm * direction)}
        )
        with torch.no_grad():
            unedited = self.sight.foresees(goals.kept, {})
        answer, refusal = (_mean([cross_entropy(*one) for one in some]) for some in (ablated[:n], added))
        kept = _mean([divergence(one.logits, was.logits) for one, was in zip(ablated[n:], unedited, strict=True)])
        return torch.stack([answer, refusal, kept]) * torch.tensor(self.weights).to(answer)

    @torch.no_grad()
    def of(self, directions: Float[Tensor, "m d"], goals: Goals) -> Terms:
        """The weighted terms, on average over directions and over all the goals."""
        parts = [(part, len(part.answers)) for part in goals.parts()]
        total = torch.stack([n * self(direction, part) for direction in directions for part, n in parts]).sum(0)
        return Terms(*(total / (len(directions) * sum(n for _, n in parts))).tolist())


def ablation(direction: Float[Tensor, " d"], n_layers: int) -> Edits:
    """x ↦ x − r̂ r̂ᵀ x everywhere."""
    edit = LowRankEdit(V=direction[None], A=-direction[None])
    return {Place(layer, site): edit for layer in range(n_layers) for site in SITES}


def cross_entropy(logits: Float[Tensor, "n vocab"], tokens: Tensor) -> Float[Tensor, ""]:
    """Mean over the tokens, nats."""
    return torch.nn.functional.cross_entropy(logits, tokens)


def divergence(edited: Float[Tensor, "n vocab"], unedited: Float[Tensor, "n vocab"]) -> Float[Tensor, ""]:
    """Mean KL(edited ‖ unedited) over the tokens, nats."""
    p, q = edited.log_softmax(-1), unedited.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def first_sentence(answer: str) -> str:
    """An answer up to the end of its first sentence, where it has one."""
    found = _SENTENCE.match(answer)
    return found[0] if found else answer


def orthonormal(rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """The orthonormal rows that are nearest to these: U Wᵀ of U S Wᵀ."""
    u, _, w = torch.linalg.svd(rows, full_matrices=False)
    return u @ w


def in_cone(basis: Float[Tensor, "k d"], n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Unit directions drawn evenly from the non-negative combinations of orthonormal rows."""
    drawn = torch.randn(n, len(basis), generator=generator, dtype=torch.float64).abs()
    return (drawn / drawn.norm(dim=-1, keepdim=True)) @ basis


class Adam:
    """Adam (Kingma & Ba 2015) with its usual constants: what to subtract, given the gradients one after the other.

    torch's own imports a compiler, which takes seconds.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.n = rate, 0
        self.mean, self.square = torch.zeros(()), torch.zeros(())

    def __call__(self, gradient: Tensor) -> Tensor:
        self.n += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean, square = self.mean / (1 - 0.9**self.n), self.square / (1 - 0.999**self.n)
        return self.rate * mean / (square.sqrt() + 1e-8)


class Descent(NamedTuple):
    """What gradient descent found."""

    basis: Float[Tensor, "k d"]
    """Orthonormal rows; float64."""
    start: Terms
    """The objective of the rows that it began with, on the held-out goals."""
    best: Terms
    """That of those that it found."""
    steps: int
    """How many steps were made."""


def descend(
    objective: Objective,
    basis: Float[Tensor, "k d"],
    goals: Goals,
    held_out: Goals,
    *,
    steps: int,
    rate: float,
    batch: int,
    samples: int,
    patience: int,
    seed: int,
    progress: Progress,
    name: str,
) -> Descent:
    """Turn orthonormal rows to where the objective is least on average over directions in their cone.

    Each step sees a few goals, one row in its turn, and `samples` directions of the cone; the held-out goals are looked
    at every few steps, with every row and `samples` fixed directions. It ends early where `patience` looks find nothing
    better.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(seed).get_state()

    def value(rows: Float[Tensor, "k d"]) -> Terms:
        again = torch.Generator()
        again.set_state(fixed)
        return objective.of(torch.cat([rows, in_cone(rows, samples, again)]), held_out)

    rows = basis.clone().requires_grad_()
    adam = Adam(rate / math.sqrt(basis.shape[1]))
    order = _shuffled(max(map(len, goals)), generator)
    best, start, since, done = basis, value(basis), 0, 0
    least = start
    with progress(name, steps) as advance:
        for step in range(steps):
            some = goals.some([next(order) for _ in range(batch)])
            drawn = in_cone(torch.eye(len(basis), dtype=torch.float64), samples, generator)
            mixed = torch.cat([torch.eye(len(basis), dtype=torch.float64)[[step % len(basis)]], drawn])
            step_down = adam(_gradient(rows, mixed, some, objective))
            rows = orthonormal(rows.detach() - step_down).requires_grad_()
            done += 1
            advance(1)
            if done % EVERY and done < steps:
                continue
            found, since = value(rows.detach()), since + 1
            if sum(found) < sum(least):
                best, least, since = rows.detach().clone(), found, 0
            if since == patience:
                break
    return Descent(best, start, least, done)


def _gradient(
    rows: Tensor, mixed: Float[Tensor, "m k"], goals: Goals, objective: Callable[[Tensor, Goals], Tensor]
) -> Tensor:
    """Of the mean objective of some directions in the cone, a pass at a time."""
    total = torch.zeros_like(rows)
    for weights in mixed:
        for part in goals.parts():
            share = len(part.answers) / (len(goals.answers) * len(mixed))
            (gradient,) = torch.autograd.grad(share * objective(weights @ rows, part).sum(), rows)
            total += gradient
    return total


def _shuffled(n: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
