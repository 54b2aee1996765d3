"""The one edit that every intervention is: a low-rank map of a residual vector.

    x ↦ x + (x Vᵀ) A + |x Vᵀ − t| B + b            V, A, B: (k, d);  t: (k,);  b: (d,)

Ablation, nullspace projection, reflection, AlterRep, activation addition, clamp and affine ablation differ
only in the numbers (see `refusal_cmp.interventions`). The dense d × d matrix is never built: an edit costs
O(k d) a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRankEdit:
    """x ↦ x + (x Vᵀ) A + |x Vᵀ − t| B + b, or a stack of such maps, one for each group of rows of a batch.

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
    b: Float[Tensor, "*g d"] | None = None
    """A constant offset."""

    def __post_init__(self) -> None:
        if (self.V is None) != (self.A is None and self.B is None):
            raise ValueError("V comes with A, B or both, and neither comes without V")
        if self.t is not None and self.B is None:
            raise ValueError("t comes with B alone: the distances from it are what B is for")

    def tensors(self) -> dict[str, Tensor]:
        """The terms that are present, by name."""
        terms = {"V": self.V, "A": self.A, "B": self.B, "t": self.t, "b": self.b}
        return {name: term for name, term in terms.items() if term is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LowRankEdit:
        """The same edit on another device and in the precision it is applied in: float32 or better."""
        return LowRankEdit(**{name: term.to(device, dtype) for name, term in self.tensors().items()})

    def __call__(self, x: Float[Tensor, "n *s d"]) -> Float[Tensor, "n *s d"]:
        """The edited vectors: a new tensor of x's dtype, computed in the precision of the edit's own terms.

        A stacked edit takes x in g equal groups of rows, group i under edit i.
        """
        some = next(iter(self.tensors().values()), None)
        if some is None:
            return x
        stacked = (self.b.ndim == 2) if self.b is not None else (some.ndim == 3)
        groups = some.shape[0] if stacked else 1
        rows = x.to(some.dtype).reshape(groups, -1, x.shape[-1])
        edited = rows
        if self.V is not None:
            coordinates = rows @ self.V.mT
            if self.A is not None:
                edited = edited + coordinates @ self.A
            if self.B is not None:
                offsets = coordinates if self.t is None else coordinates - self.t.unsqueeze(-2)
                edited = edited + offsets.abs() @ self.B
        if self.b is not None:
            edited = edited + self.b.unsqueeze(-2)
        return edited.reshape(x.shape).to(x.dtype)


def stack(edits: Sequence[LowRankEdit | None]) -> LowRankEdit:
    """One batched edit of several; ranks are padded with zero rows, None and absent terms are zeros."""
    present = [edit for edit in edits if edit is not None]
    names = {name for edit in present for name in edit.tensors()}
    if not names:
        return LowRankEdit()
    rank = max((edit.V.shape[0] for edit in present if edit.V is not None), default=0)
    some = next(iter(present[0].tensors().values()))  # V or b: both end in d
    d = some.shape[-1]

    def padded(edit: LowRankEdit | None, name: str) -> Tensor:
        full = some.new_zeros({"t": (rank,), "b": (d,)}.get(name, (rank, d)))
        term = None if edit is None else edit.tensors().get(name)
        if term is not None:
            full[: len(term)] = term
        return full

    return LowRankEdit(**{name: torch.stack([padded(edit, name) for edit in edits]) for name in names})
