"""A direction or subspace from elsewhere, in the place of an extractor: `--direction FILE.safetensors`.

The file holds a `direction` (d,), a `basis` (k, d), both, or one tensor of either shape under any name; its metadata
may say the `position` and `layer` that it belongs to. Or it is what another run's extract wrote, a subspace at every
component, which is then scored and selected from like any method's.

Nothing is fitted. The rows are made orthonormal in their order, and each is turned to point to harmful, as class
means of this run's training prompts say; these also give the norm, and the dev split the evidence.

Cost: class means alone, O(n d).
Use it for a published direction, one of another tool, or one that another run of ours found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusal_cmp.activations import Activations, Needs
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import check_regular
from refusal_cmp.methods import Method, register_extractor
from refusal_cmp.methods._rows import placed
from refusal_cmp.progress import Progress, silent
from refusal_cmp.subspace import METADATA, VANISHING, Component, SubspaceField, subspaces_of

LAST = -1
"""The position of a direction that names only its layer: the last token of the prompt."""


@register_extractor("given")
@dataclass(frozen=True)
class GivenDirection(Method):
    """A direction or subspace that a safetensors file holds.

    Parameters
    ----------
    path
        The safetensors file.
    at
        The (position, layer) that it belongs to, where the file does not say it.
    """

    needs: ClassVar[Needs] = "means"

    path: Path
    at: tuple[int, int] | None = None

    def positions(self, post_instruction: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the file, if it is of the instruction's last token, as that of another run may be."""
        found = tuple(sorted({component.position for component in self.rows()}))
        return found if found[:1] == (post_instruction[0] - 1,) else post_instruction

    def inputs(self) -> dict[str, Any]:
        """What the field is made from beside the activations, after a look at whether it can be."""
        self.rows()
        return {"file": hashlib.sha256(self.path.read_bytes()).hexdigest()[:16], "at": self.at}

    def fit_field(self, activations: Activations, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspace at its component, or at each that the file has.

        Raises
        ------
        RefusalCmpError
            If the file is not of this model: other width, positions or layers.
        """
        means = activations.means()
        self._check(means.positions, means.n_layers, means.harmful.shape[-1])
        found = {
            component: placed(basis, train.means(), train.scale, dev, direction=direction, dual=dual)
            for component, (basis, direction, dual) in self.rows().items()
            for train, dev in [activations.moments_at(component)]
        }
        return SubspaceField(method, means, found)

    def check(self, positions: Sequence[int], n_layers: int, d_model: int) -> None:
        """RefusalCmpError if the file is not of a model with these post-instruction tokens, layers and width."""
        self._check(self.positions(tuple(positions)), n_layers, d_model)

    def _check(self, positions: Sequence[int], n_layers: int, d_model: int) -> None:
        for component, (basis, _, _) in self.rows().items():
            if component.position not in positions or not 0 <= component.layer < n_layers:
                raise RefusalCmpError(
                    f"{self.path} is for component {component}, and the model has positions "
                    f"{', '.join(map(str, positions))} and layers 0 to {n_layers - 1}; give its place.",
                    direction_at="POSITION,LAYER",
                )
            if basis.shape[1] != d_model:
                raise RefusalCmpError(
                    f"The directions of {self.path} have {basis.shape[1]} numbers, and the model's residual stream has "
                    f"{d_model}; give one of this model."
                )

    def rows(self) -> dict[Component, tuple[Tensor, Tensor, Tensor | None]]:
        """At each component that the file has: the orthonormal basis, the unit direction, and a dual; float64."""
        tensors, metadata = _read(self.path)
        if METADATA in metadata and "components" in tensors:
            return self._of_run(tensors)
        basis, direction = _basis_and_direction(self.path, tensors)
        rows = orthonormal(basis, self.path), orthonormal(direction[None], self.path)[0], None
        return {self._component(metadata): rows}

    def _of_run(self, tensors: Mapping[str, Tensor]) -> dict[Component, tuple[Tensor, Tensor, Tensor | None]]:
        try:
            found = subspaces_of(tensors)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise RefusalCmpError(f"{self.path} is a damaged file of subspaces ({error}); give another.") from None
        if self.at is not None and Component(*self.at) not in found:
            raise RefusalCmpError(
                f"{self.path} has no subspace at component {Component(*self.at)}; give another place."
            )
        rows = {}
        for at, one in found.items():
            if self.at in (None, at):
                basis, direction = orthonormal(one.basis, self.path), orthonormal(one.direction[None], self.path)[0]
                dual = None if one.oblique is None else torch.linalg.solve(one.oblique @ basis.mT, one.oblique)
                rows[at] = basis, direction, dual
        return rows

    def _component(self, metadata: Mapping[str, str]) -> Component:
        if self.at is not None:
            return Component(*self.at)
        try:
            return Component(int(metadata.get("position", LAST)), int(metadata["layer"]))
        except (KeyError, ValueError):
            raise RefusalCmpError(
                f"{self.path} does not say which layer its direction is of; give its place, or write position and "
                "layer into its metadata.",
                direction_at="POSITION,LAYER",
            ) from None


def orthonormal(rows: Float[Tensor, "k d"], path: Path) -> Float[Tensor, "k d"]:
    """The rows made orthonormal one after the other, so that the first j span what the first j given rows do."""
    rows = rows.double()
    if not rows.isfinite().all():
        raise RefusalCmpError(f"{path} holds a NaN or an infinity; give finite numbers.")
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if not lengths.all():
        raise RefusalCmpError(f"{path} holds a direction that is zero; give one with a length.")
    q, r = torch.linalg.qr((rows / lengths).mT)
    diagonal = r.diagonal()
    if len(rows) > rows.shape[1] or (diagonal.abs() < VANISHING).any():
        rank = int((diagonal.abs() >= VANISHING).sum())
        raise RefusalCmpError(f"The {len(rows)} rows of {path} span only {rank} dimensions; give independent ones.")
    return q.mT * diagonal.sign()[:, None]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    check_regular(path, "direction", give="a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["unknown"])[0]
        raise RefusalCmpError(f"Cannot read the direction {path}: {reason}; give a safetensors file.") from None


def _basis_and_direction(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Float[Tensor, "k d"], Float[Tensor, " d"]]:
    """The rows and the one direction: that of the file, or else the first row."""
    named = {name: tensor for name, tensor in tensors.items() if name in ("basis", "direction")}
    some = named or (dict(tensors) if len(tensors) == 1 else {})
    if not some or any(tensor.ndim not in (1, 2) or not tensor.numel() for tensor in some.values()):
        there = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()] or ["no tensor"]
        more = f" and {len(there) - 4} more" if len(there) > 4 else ""
        raise RefusalCmpError(
            f"{path} must hold a direction (d,) or a basis (k, d), and holds {', '.join(there[:4])}{more}."
        )
    rows = {name: torch.atleast_2d(tensor) for name, tensor in some.items()}
    basis = rows.get("basis", next(iter(rows.values())))
    direction = rows.get("direction", basis)[0]
    if direction.shape[0] != basis.shape[1]:
        raise RefusalCmpError(
            f"The direction of {path} has {direction.shape[0]} numbers and its basis {basis.shape[1]}; give one width."
        )
    return basis, direction
