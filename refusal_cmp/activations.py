"""One pass over the prompts → residual-stream activations at every component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.model_selection import train_test_split
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel
from refusal_cmp.progress import Progress, silent
from refusal_cmp.structure import before, installed
from refusal_cmp.subspace import ClassMeans, Component

MIN_PROMPTS = 10


@dataclass(frozen=True)
class Labelled:
    """Activations of one component with their classes."""

    x: Float[Tensor, "n d"]
    """float64"""
    y: Bool[Tensor, " n"]
    """True for harmful."""

    def means(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The harmful and the harmless mean."""
        return self.x[self.y].mean(0), self.x[~self.y].mean(0)

    @property
    def scale(self) -> float:
        """Root mean square length of the activations: what a vanishing length is measured against."""
        return float(self.x.square().sum(-1).mean().sqrt())

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


@dataclass(frozen=True)
class Activations:
    """`resid_pre` of labelled prompts at every component, and which prompts are held out as the dev split."""

    positions: tuple[int, ...]
    values: Float[Tensor, "n p l d"]
    """float32"""
    harmful: Bool[Tensor, " n"]
    dev: Bool[Tensor, " n"]

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.values.shape[2]

    def components(self) -> Iterator[Component]:
        """Every (position, layer), layer by layer."""
        for layer in range(self.n_layers):
            for position in self.positions:
                yield Component(position, layer)

    def at(self, component: Component) -> tuple[Labelled, Labelled]:
        """The training part and the dev part of a component's activations."""
        x = self.values[:, self.positions.index(component.position), component.layer].double()
        return Labelled(x[~self.dev], self.harmful[~self.dev]), Labelled(x[self.dev], self.harmful[self.dev])

    def means(self) -> ClassMeans:
        """Class means over the training part, which every method sees."""
        train = self.values[~self.dev].double()
        harmful = self.harmful[~self.dev]
        return ClassMeans(self.positions, train[harmful].mean(0), train[~harmful].mean(0))


def resid_pre(
    model: ChatModel, instructions: Sequence[str], *, batch_size: int = 64, progress: Progress = silent
) -> Float[Tensor, "n p l d"]:
    """`resid_pre` at every post-instruction position and block, float32 on the CPU, in the prompts' order."""
    n_positions = len(model.positions)
    values = torch.empty(len(instructions), n_positions, model.n_layers, model.d_model)
    of_batch: list[int] = []  # the rows that the batch in flight fills

    def record(layer: int, stream: Tensor) -> None:
        values[of_batch, :, layer] = stream[:, -n_positions:].float().cpu()

    handles = [before(block.module, partial(record, layer)) for layer, block in enumerate(model.blocks)]
    with (
        torch.inference_mode(),
        installed(*handles),
        progress("reading activations", len(instructions)) as advance,
    ):
        for of_batch, batch in model.batches(instructions, batch_size):  # noqa: B007
            model.last_logits(batch)
            advance(len(batch))
    if not values.isfinite().all():
        broken = int((~values.isfinite().flatten(1).all(1)).sum())
        raise RefusalCmpError(
            f"The activations of {broken} of {len(instructions)} prompts hold a NaN or an infinity; "
            "load the model in another precision (--dtype float32 or bfloat16)."
        )
    return values


def collect(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    dev_share: float = 0.2,
    seed: int = 42,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Activations:
    """Activations of both classes with a stratified dev split, drawn with `seed`."""
    if min(len(harmful), len(harmless)) < MIN_PROMPTS:
        raise RefusalCmpError(
            f"Extraction needs at least {MIN_PROMPTS} prompts of each kind, and there are {len(harmful)} harmful and "
            f"{len(harmless)} harmless ones; give more prompts or a higher --limit."
        )
    values = resid_pre(model, [*harmful, *harmless], batch_size=batch_size, progress=progress)
    labels = np.arange(len(values)) < len(harmful)
    _, held_out = train_test_split(np.arange(len(values)), test_size=dev_share, random_state=seed, stratify=labels)
    dev = torch.zeros(len(values), dtype=torch.bool)
    dev[held_out] = True
    return Activations(model.positions, values, torch.from_numpy(labels), dev)
