"""What an extractor finds: a subspace for one component, and the field of them over all components."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.errors import NoSubspaceError, RefusalCmpError

BIORTHOGONAL = 1e-4
"""How far a dual's products with its basis may be from the identity, for each unit of its largest number."""
VANISHING = 1e-6
"""Class means closer than this, relative to the activations' size, are the same: rounding, not a direction."""


class Component(NamedTuple):
    """A place where a direction is read: a token near the prompt's end and the input of a decoder block."""

    position: int
    """Negative index into the prompt's tokens: -1 is the last token of the prompt."""
    layer: int
    """0-based decoder block; activations are its `resid_pre`."""

    def __str__(self) -> str:
        return f"({self.position}, {self.layer})"


@dataclass(frozen=True)
class Subspace:
    """The subspace of one component that an extractor found."""

    basis: Float[Tensor, "k d"]
    """Orthonormal rows in order of extraction, each pointing to harmful; float64."""
    direction: Float[Tensor, " d"]
    """The one unit direction, pointing to harmful, for edits and additions of rank one; float64."""
    norm: float
    """Natural norm: how far apart the class means are along `direction`."""
    evidence: Float[Tensor, " k"]
    """Balanced accuracy on the dev split of the classifier behind each row; NaN for rows without one."""
    oblique: Float[Tensor, "k d"] | None = None
    """Rows that coordinates are read by, where they are not the basis itself: oblique · basisᵀ = I; float64."""

    def __post_init__(self) -> None:
        if self.oblique is None:
            return
        if self.oblique.shape != self.basis.shape:
            raise ValueError(
                f"the dual has to have the shape of the basis, {tuple(self.basis.shape)}, and has "
                f"{tuple(self.oblique.shape)}"
            )
        off = float((self.oblique @ self.basis.mT - torch.eye(self.k).to(self.basis)).abs().max())
        if not off <= BIORTHOGONAL * max(1.0, float(self.oblique.abs().max())):
            raise ValueError(f"the dual's products with the basis have to be the identity, and are off by {off:.1e}")

    @property
    def k(self) -> int:
        """Number of directions."""
        return self.basis.shape[0]

    @property
    def dual(self) -> Float[Tensor, "k d"]:
        """Rows that coordinates are read by: dual · basisᵀ = I. The projection onto the basis is x ↦ basisᵀ dual x."""
        return self.basis if self.oblique is None else self.oblique

    @property
    def reading(self) -> Float[Tensor, " d"]:
        """The row that the coordinate along `direction` is read by: its product with the direction is 1."""
        if self.oblique is None:
            return self.direction
        coordinates = self.oblique @ self.direction
        return coordinates @ self.oblique / (coordinates @ coordinates)

    def leading(self, k: int) -> Subspace:
        """The first k directions, or all if there are fewer."""
        oblique = None if self.oblique is None else self.oblique[:k]
        return replace(self, basis=self.basis[:k], evidence=self.evidence[:k], oblique=oblique)


def leading_k(policy: str, evidence: Float[Tensor, " k"]) -> int:
    """How many leading directions a k policy that needs no scores keeps: at least one, at most all.

    `full`, a number, or `acc99`: up to the first with an accuracy below 0.99.
    """
    if policy == "full":
        return len(evidence)
    if policy.startswith("acc"):
        least = float(policy.removeprefix("acc")) / 100 - 1e-6  # evidence has been through float32
        below = (evidence < least).nonzero()
        return max(1, int(below[0])) if len(below) else len(evidence)
    return min(int(policy), len(evidence))


@dataclass(frozen=True)
class ClassMeans:
    """Mean training activations of the two classes at every component; float64."""

    positions: tuple[int, ...]
    harmful: Float[Tensor, "p l d"]
    harmless: Float[Tensor, "p l d"]

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.harmful.shape[1]

    def at(self, component: Component) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The harmful and the harmless mean at a component."""
        row = self.positions.index(component.position)
        return self.harmful[row, component.layer], self.harmless[row, component.layer]

    def distance(self, component: Component) -> float:
        """‖harmful mean − harmless mean‖: the difference-in-means norm, the unit of activation addition."""
        harmful, harmless = self.at(component)
        return float(torch.linalg.vector_norm(harmful - harmless))

    def to_tensors(self) -> dict[str, Tensor]:
        """The means as float32 tensors."""
        positions = torch.tensor(self.positions, dtype=torch.int64)
        return {"positions": positions, "harmful_mean": self.harmful.float(), "harmless_mean": self.harmless.float()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassMeans:
        """The means that `to_tensors` wrote, float64 again."""
        positions = tuple(tensors["positions"].tolist())
        return cls(positions, tensors["harmful_mean"].double(), tensors["harmless_mean"].double())


Along = tuple[Component, int, int]
"""Along what coordinates are read, and where: the first k directions of a component's subspace, at a layer."""


@dataclass(frozen=True)
class ClassCovariances:
    """Covariances of the two classes' coordinates along subspaces, of training activations; float64."""

    of: Mapping[Along, tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]]
    """The harmful and the harmless one, on entry to that layer, at the component's position."""

    def __or__(self, other: ClassCovariances) -> ClassCovariances:
        return ClassCovariances({**self.of, **other.of})

    def to_tensors(self) -> dict[str, Tensor]:
        """Both covariances as one tensor, by what they are along, as in `-1.8.2.11`."""
        return {".".join(map(str, (*at, k, layer))): torch.stack(both) for (at, k, layer), both in self.of.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassCovariances:
        """The covariances that `to_tensors` wrote."""
        found = {}
        for name, (harmful, harmless) in tensors.items():
            position, layer, k, at = map(int, name.split("."))
            found[Component(position, layer), k, at] = harmful, harmless
        return cls(found)


@dataclass(frozen=True)
class SubspaceField:
    """One method's subspaces over the components of a model, with what interventions need beside them."""

    method: str
    """The method with what differs from its defaults: `inlp`, `inlp[k=1]`."""
    means: ClassMeans
    subspaces: Mapping[Component, Subspace]
    missing: Mapping[Component, str] = field(default_factory=dict)
    """Components without a subspace, and why."""
    leading_of: str | None = None
    """The method whose field this is the leading part of; None if it is all that was extracted."""

    @property
    def extracted_by(self) -> str:
        """The method as it was extracted, without a k policy."""
        return self.leading_of or self.method

    def __getitem__(self, component: Component) -> Subspace:
        if component not in self.subspaces:
            reason = self.missing.get(component, "the model has no such component")
            raise RefusalCmpError(f"{self.method} has no subspace at component {component}: {reason}.")
        return self.subspaces[component]

    def __iter__(self) -> Iterator[Component]:
        return iter(self.subspaces)

    def __len__(self) -> int:
        return len(self.subspaces)

    def only(self, components: Collection[Component]) -> SubspaceField:
        """The field of these components, in its own order."""
        return replace(self, subspaces={at: one for at, one in self.subspaces.items() if at in components})

    def leading(self, policy: str) -> SubspaceField:
        """The field of the leading directions by a k policy, which its label names: see `leading_k`."""
        k = {component: leading_k(policy, subspace.evidence) for component, subspace in self.subspaces.items()}
        before = f"{self.method[:-1]}," if self.method.endswith("]") else f"{self.method}["
        return replace(self.first(k), method=f"{before}k={policy}]")

    def first(self, k: Mapping[Component, int]) -> SubspaceField:
        """The field of the first k directions of each component.

        It bears the label of the whole, as the k policy `budget`, which it is made by, is the default. Components that
        have no k, as they are not scored, are left out.
        """
        subspaces = {at: subspace.leading(k[at]) for at, subspace in self.subspaces.items() if at in k}
        return replace(self, leading_of=self.extracted_by, subspaces=subspaces)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The subspaces as float32 tensors, rows of all components one after the other, and metadata.

        `direction` is there if it is not everywhere the first row of `basis`, and `dual` if some subspace is oblique.
        The means are written by themselves.
        """
        found = list(self.subspaces.values())
        d = self.means.harmful.shape[-1]
        tensors = {
            "components": torch.tensor(list(self.subspaces), dtype=torch.int64).reshape(-1, 2),
            "k": torch.tensor([one.k for one in found], dtype=torch.int64),
            "basis": torch.cat([one.basis for one in found] or [torch.zeros(0, d)]).float(),
            "evidence": torch.cat([one.evidence for one in found] or [torch.zeros(0)]).float(),
            "norm": torch.tensor([one.norm for one in found], dtype=torch.float32),
        }
        if not all(torch.equal(one.direction, one.basis[0]) for one in found):
            tensors["direction"] = torch.stack([one.direction for one in found]).float()
        if any(one.oblique is not None for one in found):
            tensors["dual"] = torch.cat([one.dual for one in found]).float()
        missing = [[*component, reason] for component, reason in self.missing.items()]
        return tensors, {"method": self.method, "missing": json.dumps(missing)}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], means: ClassMeans
    ) -> SubspaceField:
        """The field that `to_tensors` wrote, with its means; float64 again."""
        missing = {Component(*where): reason for *where, reason in json.loads(metadata["missing"])}
        return cls(metadata["method"], means, subspaces_of(tensors), missing)


def subspaces_of(tensors: Mapping[str, Tensor]) -> dict[Component, Subspace]:
    """The subspaces that `SubspaceField.to_tensors` wrote, by component; float64 again."""
    sizes = tensors["k"].tolist()
    bases = tensors["basis"].double().split(sizes)
    directions = tensors["direction"].double() if "direction" in tensors else [basis[0] for basis in bases]
    duals = tensors["dual"].double().split(sizes) if "dual" in tensors else [None] * len(sizes)
    columns = (bases, directions, tensors["norm"].tolist(), tensors["evidence"].double().split(sizes), duals)
    found = [Subspace(*column) for column in zip(*columns, strict=True)]
    return dict(zip([Component(*at) for at in tensors["components"].tolist()], found, strict=True))


def unit(vector: Float[Tensor, " d"], what: str = "direction", scale: float = 1.0) -> Float[Tensor, " d"]:
    """The vector at length one; NoSubspaceError where it vanishes (relative to `scale`) or is not finite."""
    norm = torch.linalg.vector_norm(vector)
    if not torch.isfinite(norm):
        raise NoSubspaceError(f"the {what} is not finite")
    if norm <= VANISHING * scale:
        raise NoSubspaceError(f"the {what} vanishes (norm {float(norm):.1e})")
    return vector / norm


METADATA = "refusal_cmp"
"""The one metadata key of our safetensors files: several would be written in an order that changes."""
