"""Where activations land under a plan: with the harmful prompts, with the harmless ones, between, or beyond.

Rocchetti & Ferrara 2026 found that projection lands harmful activations between the clusters of harmful and
harmless ones, and reflection in the opposite one. Read at the component that selection chose for the plan's method,
on entry to its block and after the plan's edits there, and once more on entry to the last block. Another checkpoint,
which has no method, is read at the component of the first of them.

With the unedited means m₊ (harmful) and m₋ (harmless) and the mean m of harmful activations under the plan,

    landing     = (m − m₋)·(m₊ − m₋) / |m₊ − m₋|²        0: at the harmless mean, 1: at the harmful one
    to_harmful  = |m − m₊| / |m₊ − m₋|
    to_harmless = |m − m₋| / |m₊ − m₋|
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.config import KINDS
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Selected, Subject, register_evaluator
from refusal_cmp.model import ChatModel
from refusal_cmp.model.reading import streams_at
from refusal_cmp.plan import BASELINE
from refusal_cmp.statistics import LEVEL, RESAMPLES, SEED, Estimate, mean
from refusal_cmp.subspace import Component

MOST_PROMPTS = 32
"""Test prompts of each kind that are read, at most."""
AT_LAST = "_last"
"""Ends the metrics of the last prompt token on entry to the last block; the others are of the selected component."""

Streams = Mapping[Component, Float[Tensor, "2 n d"]]
"""By component the activations of harmful and of harmless prompts; float64."""


@dataclass(frozen=True)
class Plane:
    """The plane of a method at its component: along its direction, and along the first principal component of what
    is orthogonal to that, measured from the midpoint of the unedited means."""

    component: Component
    axes: Float[Tensor, "2 d"]
    origin: Float[Tensor, " d"]

    @classmethod
    def of(cls, one: Selected, x: Float[Tensor, "2 n d"]) -> Plane:
        """The plane of a method, given the unedited activations at its component."""
        direction = one.field[one.component].direction.double()
        rest = (x - x.mean((0, 1))).flatten(0, 1)
        rest = rest - torch.outer(rest @ direction, direction)
        component = torch.linalg.svd(rest, full_matrices=False).Vh[0]
        component = component * component[component.abs().argmax()].sign()  # the sign of a component is arbitrary
        return cls(one.component, torch.stack([direction, component]), x.mean(1).mean(0))

    def coordinates(self, x: Float[Tensor, "2 n d"]) -> Float[Tensor, "2 n 2"]:
        """Activations in the plane."""
        return (x - self.origin) @ self.axes.mT


@register_evaluator("geometry")
class Geometry(Evaluator):
    """Where harmful activations land: along the way from the harmless to the harmful mean, and how far from both."""

    reads = ("completions", "model", "subspaces")
    measures = tuple(
        Measure(
            f"landing{name}{end}",
            heading,
            f"{meaning}, {place}",
            interval=interval,
            shown="never",
            positive=name.startswith("_to"),
        )
        for end, place in (("", "at the selected component"), (AT_LAST, "on entry to the last block"))
        for name, heading, meaning, interval in (
            ("", "Lands at", "the mean of harmful activations, on the way from harmless (0) to harmful (1)", "t"),
            (
                "_to_harmful",
                "To harmful",
                "its distance to the harmful mean, as a share of that between the two",
                "bootstrap",
            ),
            (
                "_to_harmless",
                "To harmless",
                "its distance to the harmless mean, as a share of that between the two",
                "bootstrap",
            ),
        )
    )
    order = 9

    def __init__(self) -> None:
        self._unedited: Streams = {}
        self._planes: dict[str, Plane] = {}

    def evaluate(self, subject: Subject) -> Evaluation:
        """The measures of both places.

        The examples are the first test prompts of each kind with their coordinates in the plane of each method (of
        the plan's own, under a plan), for figures.
        """
        prompts = _prompts(subject)
        if not prompts or not subject.selected():
            return Evaluation([])
        batch_size, selected = subject.batch_size, subject.selected()
        last = Component(-1, selected[0].field.means.n_layers - 1)
        if not self._planes:
            components = [*(one.component for one in selected), last]
            self._unedited = read(subject.base(), prompts, components, batch_size)
            self._planes = {one.field.method: Plane.of(one, self._unedited[one.component]) for one in selected}
        if subject.plan.label == BASELINE:
            return Evaluation([], _examples(prompts, self._planes, self._unedited))
        method = subject.plan.method or next(iter(self._planes))
        plane = self._planes[method]
        model = subject.model()
        with model.edited(subject.plan):
            edited = read(model, prompts, [plane.component, last], batch_size)
        metrics = [
            metric
            for place, end in ((plane.component, ""), (last, AT_LAST))
            for metric in landing(self._unedited[place], edited[place][0], end)
        ]
        return Evaluation(metrics, _examples(prompts, {method: plane}, edited))


def _prompts(subject: Subject) -> dict[str, list[str]]:
    """As many test prompts of each kind; none if a kind is not among the test sets."""
    if not all(kind in subject.answers for kind in KINDS):
        return {}
    n = min(MOST_PROMPTS, *(len(subject.answers[kind]) for kind in KINDS))
    return {kind: [answer.instruction for answer in subject.answers[kind][:n]] for kind in KINDS}


def read(
    model: ChatModel, prompts: Mapping[str, Sequence[str]], components: Sequence[Component], batch_size: int | None
) -> dict[Component, Float[Tensor, "2 n d"]]:
    """The residual stream of the prompts of each kind at these components, under the edits in force."""
    places = list(dict.fromkeys(components))
    of_kinds = [
        model.per_prompt(prompts[kind], lambda batch: streams_at(model, batch, places)[0], batch_size) for kind in KINDS
    ]
    return dict(zip(places, torch.stack(of_kinds).unbind(2), strict=True))


def landing(unedited: Float[Tensor, "2 n d"], landed: Float[Tensor, "n d"], end: str = "") -> list[Metric]:
    """The three metrics of a place, with a t interval of the mean and bootstrap intervals of the distances."""
    harmful, harmless = unedited.mean(1)
    axis = harmful - harmless
    size = float(axis.norm())
    along = ((landed - harmless) @ axis / size**2).tolist()
    found = {"landing": mean(along)}
    for kind, centre in zip(KINDS, (harmful, harmless), strict=True):
        found[f"landing_to_{kind}"] = _distance((landed - centre).numpy() / size)
    return [Metric(KINDS[0], f"{name}{end}", estimate) for name, estimate in found.items()]


def _distance(x: Float[np.ndarray, "n d"]) -> Estimate:
    """|mean of the rows| with the percentile interval of drawing the rows anew."""
    n = len(x)
    value = float(np.linalg.norm(x.mean(0)))
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    low, high = np.percentile(np.linalg.norm(draws @ x, axis=1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _examples(
    prompts: Mapping[str, Sequence[str]], planes: Mapping[str, Plane], streams: Streams
) -> dict[str, list[dict[str, Any]]]:
    """By kind the prompts with their coordinates in each plane, to four digits."""
    found = {method: plane.coordinates(streams[plane.component]).tolist() for method, plane in planes.items()}
    return {
        kind: [
            {"instruction": text, "plane": {method: [_rounded(x) for x in found[method][row][i]] for method in found}}
            for i, text in enumerate(prompts[kind])
        ]
        for row, kind in enumerate(KINDS)
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
