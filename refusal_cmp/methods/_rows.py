"""Rows found in labelled activations: made orthonormal, turned to harmful, and tried on the dev split."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.activations import Labelled, Moments, balanced_accuracy
from refusal_cmp.subspace import VANISHING, Subspace, unit

Centres = tuple[Float[Tensor, " d"], Float[Tensor, " d"]]
"""Where the harmful and the harmless activations are: their means, or what a method takes instead."""


def apart(train: Labelled | Moments) -> Float[Tensor, " d"]:
    """δ, harmful minus harmless mean; NoSubspaceError where it vanishes, and no linear classifier beats chance."""
    harmful, harmless = train.means()
    unit(harmful - harmless, "difference of the class means", train.scale)
    return harmful - harmless


def orthonormal(rows: Float[Tensor, "m d"], least: float) -> Float[Tensor, "k d"]:
    """The rows made orthonormal one after the other; one that is no longer than `least` beside those before is none.

    Gram-Schmidt, where twice is enough. The first j span what the first j rows do.
    """
    basis = rows[:0]
    for row in rows:
        for _ in range(2):
            row = row - (basis @ row) @ basis
        length = torch.linalg.vector_norm(row)
        if length > least:
            row = row / length
            row = row - (basis @ row) @ basis
            basis = torch.cat([basis, row[None] / torch.linalg.vector_norm(row)])
    return basis


def placed(
    basis: Float[Tensor, "k d"],
    centres: Centres,
    scale: float,
    dev: Labelled,
    *,
    direction: Float[Tensor, " d"] | None = None,
    dual: Float[Tensor, "k d"] | None = None,
) -> Subspace:
    """The subspace of orthonormal rows with what activations say of it: orientation, norm, evidence.

    Parameters
    ----------
    centres
        Rows point from the harmless to the harmful one; the evidence is the dev accuracy of their midpoint.
    scale
        Size of the activations, beside which a difference is rounding.
    direction
        The one direction, of length one; by default the first row.
    dual
        Rows that coordinates are read by, where they are not the basis.
    """
    harmful, harmless = centres
    difference = harmful - harmless
    least = VANISHING * scale
    sign = _towards(basis, difference, least)
    basis, dual = sign * basis, None if dual is None else sign * dual
    direction = basis[0] if direction is None else _towards(direction[None], difference, least)[0] * direction
    reading = basis if dual is None else dual
    midpoint = reading @ (harmful + harmless) / 2
    accuracy = balanced_accuracy((dev.x @ reading.mT > midpoint).mT, dev.y)
    return Subspace(basis, direction, float(direction @ difference), accuracy, dual)


def _towards(rows: Float[Tensor, "k d"], difference: Float[Tensor, " d"], least: float) -> Float[Tensor, "k 1"]:
    """−1 for each row that points away from harmful by more than rounding, 1 for the others."""
    return 1.0 - 2.0 * (rows @ difference < -least).to(rows.dtype)[:, None]
