"""The one edit that every intervention is: a low-rank map of a residual vector.

    x ↦ x + (x Vᵀ) A + |x Vᵀ − t| B + ‖x Vᵀ‖ r + b            V, A, B: (k, d);  t: (k,);  r, b: (d,)

Where it has a gate (c, τ), it acts on vectors with cos(x, c) > τ alone; where it keeps norms, what it gives is
rescaled to ‖x‖. Every intervention (see `refusal_cmp.interventions`) is a choice of these numbers. The dense d × d
matrix is never built: an edit costs O(k d) a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRankEdit:
    """x ↦ x + (x Vᵀ) A + |x Vᵀ − t| B + ‖x Vᵀ‖ r + b, or a stack of such maps, one for each group of rows of a batch.

    A term that is None is absent. A stacked edit has one more leading dimension g on every tensor.
    """

    V: Float[Tensor, "*g k d"] | None = None
    """Rows that are read: the coordinates of x along them enter the edit."""
    A: Float[Tensor, "*g k d"] | None = None
    """Rows that are written, in proportion to the coordinates."""
    B: Float[Tensor, "*g k d"] | None = None
    """Rows that are written, in proportion to the coordinates' distances from t."""
    t: Float[Tensor, "*g k"] | None = None
    """What the distances are from, along each row read; zero if None."""
    r: Float[Tensor, "*g d"] | None = None
    """What is written in proportion to the length of the coordinates."""
    b: Float[Tensor, "*g d"] | None = None
    """A constant offset."""
    c: Float[Tensor, "*g d"] | None = None
    """The unit direction of the gate: the edit acts where the cosine of x and c is above tau."""
    tau: Float[Tensor, "*g"] | None = None
    """The gate's threshold."""
    keep: Float[Tensor, "*g"] | None = None
    """1: what the edit gives is rescaled to the norm of x; 0 or None: it is not."""

    def __post_init__(self) -> None:
        if (self.V is None) != (self.A is None and self.B is None and self.r is None):
            raise ValueError("V comes with A, B or r, and none of them comes without V")
        if self.t is not None and self.B is None:
            raise ValueError("t comes with B alone: the distances from it are what B is for")
        if (self.c is None) != (self.tau is None):
            raise ValueError("a gate has a direction c and a threshold tau")

    @property
    def affine(self) -> bool:
        """Whether it is a linear map and an offset: no absolute values, lengths, gate or kept norm."""
        return self.B is None and self.r is None and self.c is None and self.keep is None

    def tensors(self) -> dict[str, Tensor]:
        """The terms that are present, by name."""
        terms = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: term for name, term in terms.items() if term is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LowRankEdit:
        """The same edit on another device and in the precision it is applied in: float32 or better."""
        return LowRankEdit(**{name: term.to(device).to(dtype) for name, term in self.tensors().items()})

    def __call__(self, x: Float[Tensor, "n *s d"]) -> Float[Tensor, "n *s d"]:
        """The edited vectors: a new tensor of x's dtype, computed in the precision of the edit's own terms.

        A stacked edit takes x in g equal groups of rows, group i under edit i.
        """
        if (some := self.V if self.V is not None else self.b) is None:
            return x
        groups = 1 if some.ndim == (1 if self.V is None else 2) else some.shape[0]
        rows = x.to(some.dtype).reshape(groups, -1, x.shape[-1])
        edited = rows
        if self.V is not None:
            coordinates = rows @ self.V.mT
            if self.A is not None:
                edited = plus(edited, coordinates, self.A)
            if self.B is not None:
                offsets = coordinates if self.t is None else coordinates - self.t.unsqueeze(-2)
                edited = plus(edited, offsets.abs(), self.B)
            if self.r is not None:
                edited = edited + length(coordinates) * self.r.unsqueeze(-2)
        if self.b is not None:
            edited = edited + self.b.unsqueeze(-2)
        if self.keep is not None:
            scale = length(rows) / length(edited).clamp_min(torch.finfo(rows.dtype).tiny)
            edited = torch.where(self.keep.view(-1, 1, 1) > 0, edited * scale, edited)
        if self.c is not None and self.tau is not None:
            along = (rows @ self.c.unsqueeze(-1)).reshape(*rows.shape[:-1], 1)
            edited = torch.where(along > self.tau.view(-1, 1, 1) * length(rows), edited, rows)
        return edited.reshape(x.shape).to(x.dtype)


ALWAYS = -2.0
"""A threshold below every cosine: the gate of an edit that has none."""


def plus(
    rows: Float[Tensor, "g n d"], factors: Float[Tensor, "g n k"], written: Float[Tensor, "*g k d"]
) -> Float[Tensor, "g n d"]:
    """rows + factors · written, in one product: where k is 1, two steps are up to ten times slower on a CPU."""
    if written.ndim == 2:
        return torch.addmm(rows.flatten(0, 1), factors.flatten(0, 1), written).view_as(rows)
    return torch.baddbmm(rows, factors, written)


def length(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 1"]:
    """The norm of each vector."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def stack(edits: Sequence[LowRankEdit | None]) -> LowRankEdit:
    """One batched edit of several; ranks are padded with zero rows, None and absent terms are zeros.

    An edit without a gate has one that is always open.
    """
    present = [edit for edit in edits if edit is not None and edit.tensors()]
    names = {name for edit in present for name in edit.tensors()}
    if not names:
        return LowRankEdit()
    rank = max((edit.V.shape[0] for edit in present if edit.V is not None), default=0)
    some = next(term for edit in present for term in edit.tensors().values())  # V or b: both end in d
    d = some.shape[-1]
    shapes = {"V": (rank, d), "A": (rank, d), "B": (rank, d), "t": (rank,), "tau": (), "keep": ()}

    def padded(edit: LowRankEdit | None, name: str) -> Tensor:
        full = some.new_full(shapes.get(name, (d,)), ALWAYS if name == "tau" else 0.0)
        term = None if edit is None else edit.tensors().get(name)
        if term is not None:
            full[tuple(map(slice, term.shape))] = term
        return full

    return LowRankEdit(**{name: torch.stack([padded(edit, name) for edit in edits]) for name in names})
