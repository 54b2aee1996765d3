"""One pass over the prompts → residual-stream activations at every component, for all methods.

The pass ends on entry to the last block: nothing behind it is read, so neither that block nor the logits are
computed. What it reads is streamed: running float64 sums of each class, and rows to an `ActivationStore` on
disk: all of them where a method needs them, else only the dev split's, which evidence is measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.model_selection import train_test_split
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.progress import Progress, silent
from refusal_cmp.store import ActivationStore
from refusal_cmp.structure import before, installed
from refusal_cmp.subspace import ClassMeans, Component

MIN_PROMPTS = 10

Needs = Literal["activations", "means"]
"""What a method needs of the training part: every activation, or no more than the class means."""


@dataclass(frozen=True)
class Moments:
    """Labelled activations of one component of which only sums are left."""

    sums: Float[Tensor, "2 d"]
    """Over the harmless and over the harmful activations; float64."""
    counts: Float[Tensor, " 2"]
    squares: float
    """Sum of the activations' squared lengths."""

    def means(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The harmful and the harmless mean."""
        return self.sums[1] / self.counts[1], self.sums[0] / self.counts[0]

    @property
    def scale(self) -> float:
        """Root mean square length of the activations: what a vanishing length is measured against."""
        return float((self.squares / self.counts.sum()).sqrt())

    def __add__(self, other: Moments | Labelled) -> Moments:
        other = other.moments() if isinstance(other, Labelled) else other
        return Moments(self.sums + other.sums, self.counts + other.counts, self.squares + other.squares)


@dataclass(frozen=True)
class Labelled:
    """Activations of one component with their classes.

    Raises
    ------
    RefusalCmpError
        If the activations hold a NaN or an infinity, are not a row per label, or are all of one class.
    """

    x: Float[Tensor, "n d"]
    """float64"""
    y: Bool[Tensor, " n"]
    """True for harmful."""

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.x.shape[:1] != self.y.shape:
            raise RefusalCmpError(
                f"Labelled activations are (n, d) with n labels; these are {tuple(self.x.shape)} with labels "
                f"{tuple(self.y.shape)}."
            )
        if self.y.all() or not self.y.any():
            there = "harmful" if len(self.y) and self.y[0] else "harmless"
            raise RefusalCmpError(
                f"Labelled activations need both classes, and all {len(self.y)} are {there}; add prompts of the other."
            )
        if not self.x.isfinite().all():
            broken = int((~self.x.isfinite().all(1)).sum())
            raise RefusalCmpError(f"{broken} of {len(self.x)} activations hold a NaN or an infinity; leave them out.")

    def moments(self) -> Moments:
        """The sums over each class."""
        of_class = torch.stack([~self.y, self.y]).to(self.x.dtype)
        return Moments(of_class @ self.x, of_class.sum(1), float(self.x.square().sum()))

    def means(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The harmful and the harmless mean."""
        return self.x[self.y].mean(0), self.x[~self.y].mean(0)

    @property
    def scale(self) -> float:
        """Root mean square length of the activations: what a vanishing length is measured against."""
        return float(self.x.square().sum(-1).mean().sqrt())

    def __len__(self) -> int:
        return len(self.y)

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


class Activations:
    """`resid_pre` of labelled prompts at every component, and which prompts are held out as the dev split.

    It is filled batch by batch, by `add` and then `done`; `collect` does that from a model's forward passes.

    Parameters
    ----------
    positions, n_layers, d_model
        The components, and the width of the residual stream.
    harmful, dev
        (n,) which prompts are harmful, and which are held out.
    needs
        With `means`, activations of the training part are not kept, only their sums.
    folder
        Where activations are stored; by default the system's folder for temporary files.
    """

    def __init__(
        self,
        positions: tuple[int, ...],
        n_layers: int,
        d_model: int,
        harmful: Bool[Tensor, " n"],
        dev: Bool[Tensor, " n"],
        *,
        needs: Needs = "activations",
        folder: Path | None = None,
    ) -> None:
        self.positions, self.n_layers = positions, n_layers
        self.harmful, self.dev = harmful, dev
        self.kept = dev if needs == "means" else torch.ones_like(dev)
        self._sums = torch.zeros(2, len(positions), n_layers, d_model, dtype=torch.float64)
        self._squares = torch.zeros(len(positions), n_layers, dtype=torch.float64)
        self._store = ActivationStore(list(self.components()), int(self.kept.sum()), d_model, folder)
        self._stored: list[int] = []  # the prompt behind each row of the store

    def components(self) -> Iterator[Component]:
        """Every (position, layer), layer by layer."""
        for layer in range(self.n_layers):
            for position in self.positions:
                yield Component(position, layer)

    def add(self, rows: Sequence[int], layer: int, values: Float[Tensor, "b p d"]) -> None:
        """Take the activations of some prompts at one layer."""
        values = values.detach().float().cpu()
        if not values.isfinite().all():
            broken = int((~values.isfinite().flatten(1).all(1)).sum())
            raise RefusalCmpError(
                f"In layer {layer} the activations of {broken} of {len(rows)} prompts hold a NaN or an infinity; "
                "load the model in another precision (--dtype float32 or bfloat16)."
            )
        train = ~self.dev[rows]
        harmful = self.harmful[rows]
        of_class = torch.stack([~harmful & train, harmful & train]).double()
        self._sums[:, :, layer] += torch.einsum("gb, bpd -> gpd", of_class, values.double())
        self._squares[:, layer] += of_class.sum(0) @ values.double().square().sum(-1)
        kept = values[self.kept[rows]]
        for index, position in enumerate(self.positions):
            self._store.write(Component(position, layer), len(self._stored), kept[:, index])

    def done(self, rows: Sequence[int]) -> None:
        """These prompts have been added at every layer."""
        self._stored += [row for row in rows if self.kept[row]]

    def at(self, component: Component) -> tuple[Labelled, Labelled]:
        """The training part and the dev part of a component's activations."""
        if not self.kept.all():
            raise RefusalCmpError("These activations were collected as means; collect them with needs='activations'.")
        x = self._read(component)
        return Labelled(x[~self.dev], self.harmful[~self.dev]), Labelled(x[self.dev], self.harmful[self.dev])

    def moments_at(self, component: Component) -> tuple[Moments, Labelled]:
        """The sums of the training part, and the dev part, of a component's activations."""
        position, layer = self.positions.index(component.position), component.layer
        squares = float(self._squares[position, layer])
        moments = Moments(self._sums[:, position, layer], self._counts(), squares)
        return moments, Labelled(self._read(component)[self.dev], self.harmful[self.dev])

    def means(self) -> ClassMeans:
        """Class means over the training part, which every method sees."""
        harmless, harmful = self._sums / self._counts()[:, None, None, None]
        return ClassMeans(self.positions, harmful, harmless)

    def _read(self, component: Component) -> Float[Tensor, "n d"]:
        """The stored activations in the prompts' order; NaN where none is stored."""
        x = torch.full((len(self.harmful), self._store.d), torch.nan, dtype=torch.float64)
        x[self._stored] = self._store.read(component).double()
        return x

    def _counts(self) -> Float[Tensor, " 2"]:
        return torch.stack([~self.harmful & ~self.dev, self.harmful & ~self.dev]).double().sum(1)


def collect(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    needs: Needs = "activations",
    dev_share: float = 0.2,
    seed: int = 42,
    batch_size: int = 64,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Activations:
    """Activations of both classes with a stratified dev split, drawn with `seed`, from one set of forward passes.

    A prompt that is repeated counts once: copies in both parts of the split would make the evidence worthless.

    Raises
    ------
    RefusalCmpError
        If there are fewer than 10 different prompts of a kind, a prompt is of both kinds, or activations are
        not finite.
    """
    harmful, harmless = _distinct(harmful, harmless)
    prompts = [*harmful, *harmless]
    labels = np.arange(len(prompts)) < len(harmful)
    _, held_out = train_test_split(np.arange(len(prompts)), test_size=dev_share, random_state=seed, stratify=labels)
    dev = torch.zeros(len(prompts), dtype=torch.bool)
    dev[held_out] = True
    activations = Activations(
        model.positions, model.n_layers, model.d_model, torch.from_numpy(labels), dev, needs=needs, folder=folder
    )
    with progress("reading activations", len(prompts)) as advance:

        def read(rows: list[int], batch: Batch) -> None:
            read_all: dict[int, Tensor] = {}  # added only when complete: a batch may run out of memory on the way
            read_streams(model, batch, lambda layer, x: read_all.update({layer: x.clone()}), len(model.positions))
            for layer, x in read_all.items():
                activations.add(rows, layer, x)
            activations.done(rows)
            advance(len(rows))

        model.over_batches(prompts, batch_size, read)
    return activations


def _distinct(harmful: Sequence[str], harmless: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each prompt once, in order, after checking that there are enough and none is of both kinds."""
    both = set(harmful) & set(harmless)
    if both:
        raise RefusalCmpError(
            f"{len(both)} prompts are harmful and harmless at once, such as {min(both)!r}; remove them from one set."
        )
    kinds = list(dict.fromkeys(harmful)), list(dict.fromkeys(harmless))
    if min(map(len, kinds)) < MIN_PROMPTS:
        raise RefusalCmpError(
            f"Extraction needs at least {MIN_PROMPTS} different prompts of each kind, and there are {len(kinds[0])} "
            f"harmful and {len(kinds[1])} harmless ones; give more prompts or a higher --limit."
        )
    return kinds


class _EnoughReadError(Exception):
    """Ends a forward pass from within: everything that was wanted has been read."""


def read_streams(
    model: ChatModel, batch: Batch, read: Callable[[int, Float[Tensor, "b p d"]], None], n_positions: int
) -> None:
    """Give `read` each layer and its `resid_pre` at the last positions, and stop on entry to the last block."""
    last = model.n_layers - 1

    def on_entry(layer: int, stream: Float[Tensor, "b s d"]) -> None:
        read(layer, stream[:, -n_positions:])
        if layer == last:
            raise _EnoughReadError

    handles = [before(block.module, partial(on_entry, layer)) for layer, block in enumerate(model.blocks)]
    with torch.inference_mode(), installed(handles), suppress(_EnoughReadError):
        model.last_logits(batch)
