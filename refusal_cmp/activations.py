"""Labelled activations: of one component, their sums, and those of all components, stored on disk.

What a pass over the prompts reads (`refusal_cmp.model.reading.collect`) is streamed: running float64 sums of each
class, and rows to an `ActivationStore`: all of them where a method needs them, else only the dev split's, which
evidence is measured on.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.lib.format import open_memmap
from sklearn.model_selection import train_test_split
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.subspace import ClassMeans, Component

MIN_PROMPTS = 10
"""Of each kind, to extract from."""
ACTIVATIONS = ".refusal-cmp-activations-"
"""How the folder of a store is called, until its process ends."""

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
    group: Int[Tensor, " n"] | None = None
    """The number of each prompt's category, −1 for one without; None where nobody says."""

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
        group = None if self.group is None or other.group is None else torch.cat([self.group, other.group])
        return Labelled(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]), group)


def balanced_accuracy(said: Bool[Tensor, "*m n"], y: Bool[Tensor, " n"]) -> Float[Tensor, "*m"]:
    """The mean over both classes of the share that is said right: 1/2 for saying one class throughout.

    It is one quotient of whole numbers, and so the plain accuracy to the last bit where the classes are equally large.
    """
    harmful, harmless = int(y.sum()), int((~y).sum())
    right = (said == y) * torch.where(y, harmless, harmful)
    return right.sum(-1).double() / (2 * harmful * harmless)


def numbered(categories: Sequence[str]) -> Int[Tensor, " n"]:
    """A number for each category, in the order of their names; −1 for a prompt without one."""
    numbers = {name: number for number, name in enumerate(sorted({*categories} - {""}))}
    return torch.tensor([numbers.get(name, -1) for name in categories])


def dev_split(harmful: Bool[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Which prompts are held out: this share of either class, drawn with the seed."""
    _, held_out = train_test_split(
        np.arange(len(harmful)), test_size=share, random_state=seed, stratify=harmful.numpy()
    )
    dev = torch.zeros_like(harmful)
    dev[held_out] = True
    return dev


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
    group
        (n,) the number of each prompt's category, as `Labelled` has it.
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
        group: Int[Tensor, " n"] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.positions, self.n_layers = positions, n_layers
        self.harmful, self.dev, self.group = harmful, dev, group
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

    def only(self, positions: tuple[int, ...]) -> Activations:
        """The same activations, seen at some of the positions alone; nothing is copied on disk."""
        index = [self.positions.index(position) for position in positions]
        view = copy(self)
        view.positions, view._sums, view._squares = positions, self._sums[:, index], self._squares[index]
        return view

    def add(self, rows: Sequence[int], layer: int, values: Float[Tensor, "b p d"]) -> None:
        """Take the activations of some prompts at one layer."""
        values = values.detach().float().cpu()
        if not values.isfinite().all():
            broken = int((~values.isfinite().flatten(1).all(1)).sum())
            raise RefusalCmpError(
                f"In layer {layer} the activations of {broken} of {len(rows)} prompts hold a NaN or an infinity; "
                "load the model in another precision.",
                dtype="float32 or bfloat16",
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

    def at(self, component: Component, dev: Bool[Tensor, " n"] | None = None) -> tuple[Labelled, Labelled]:
        """The training part and the dev part of a component's activations; by another dev split if one is given."""
        if not self.kept.all():
            raise RefusalCmpError("These activations were collected as means; collect them with needs='activations'.")
        x, dev = self._read(component), self.dev if dev is None else dev
        return self._labelled(x, ~dev), self._labelled(x, dev)

    def moments_at(self, component: Component) -> tuple[Moments, Labelled]:
        """The sums of the training part, and the dev part, of a component's activations."""
        position, layer = self.positions.index(component.position), component.layer
        squares = float(self._squares[position, layer])
        moments = Moments(self._sums[:, position, layer], self._counts(), squares)
        return moments, self._labelled(self._read(component), self.dev)

    def means(self) -> ClassMeans:
        """Class means over the training part, which every method sees."""
        harmless, harmful = self._sums / self._counts()[:, None, None, None]
        return ClassMeans(self.positions, harmful, harmless)

    def _labelled(self, x: Float[Tensor, "n d"], among: Bool[Tensor, " n"]) -> Labelled:
        return Labelled(x[among], self.harmful[among], None if self.group is None else self.group[among])

    def _read(self, component: Component) -> Float[Tensor, "n d"]:
        """The stored activations in the prompts' order; NaN where none is stored."""
        x = torch.full((len(self.harmful), self._store.d), torch.nan, dtype=torch.float64)
        x[self._stored] = self._store.read(component).double()
        return x

    def _counts(self) -> Float[Tensor, " 2"]:
        return torch.stack([~self.harmful & ~self.dev, self.harmful & ~self.dev]).double().sum(1)


class ActivationStore:
    """Rows of float32 activations at every component, in a file that lives as long as this object.

    A NumPy file that is opened for each access, so that neither writing nor reading holds more than what is in flight.

    Parameters
    ----------
    components
        What is stored.
    n, d
        Rows at each component, and their width.
    folder
        Where the file is put; by default the system's folder for temporary files.
    """

    def __init__(self, components: Sequence[Component], n: int, d: int, folder: Path | None = None) -> None:
        self.n, self.d = n, d
        self._index = {component: index for index, component in enumerate(components)}
        shape = (len(components), n, d)
        try:
            home = tempfile.mkdtemp(prefix=ACTIVATIONS, dir=folder)
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
            self.path = Path(home) / "activations.npy"
            open_memmap(self.path, "w+", np.float32, shape)
            _allocate(self.path)
        except OSError as error:
            size = math.prod(shape) * np.dtype(np.float32).itemsize / 2**20
            raise RefusalCmpError(
                f"Cannot keep {size:.0f} MB of activations in {folder or tempfile.gettempdir()}: {error.strerror}; "
                "free space, or take fewer prompts.",
                limit="",
            ) from None

    def write(self, component: Component, row: int, values: Float[Tensor, "b d"]) -> None:
        """Rows `row`, `row + 1`, … of a component."""
        open_memmap(self.path, "r+")[self._index[component], row : row + len(values)] = values.numpy()

    def read(self, component: Component) -> Float[Tensor, "n d"]:
        """All rows of a component; float32."""
        return torch.from_numpy(np.array(open_memmap(self.path, "r")[self._index[component]]))


def _allocate(path: Path) -> None:
    """Take the space that the file will need: a disk that fills up under a memory map ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
