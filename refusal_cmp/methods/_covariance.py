"""Covariances of n vectors in d dimensions, shrunk by Ledoit & Wolf 2004, and what their inverses do to a vector.

    Σ = (1 − γ) S + γ s I,      S = Xᵀ X / n of centred rows X (n, d),      s = tr S / d

γ makes the expected squared error of Σ least. All that it depends on is in the Gram matrix X Xᵀ (n, n), and the
inverse of a diagonal plus n rank-one terms takes one system of n equations (Woodbury): O(n² d), and no d × d matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.subspace import VANISHING


def ledoit_wolf(centred: Float[Tensor, "n d"]) -> float:
    """γ, the weight of the multiple of the identity: 0 to 1, and 0 where the rows determine S alone."""
    n, d = centred.shape
    gram = centred @ centred.mT
    trace = gram.trace() / n
    squares = gram.square().sum() / n**2  # ‖S‖²
    distance = (squares - trace**2 / d) / d  # ‖S − s I‖² / d
    error = (gram.diagonal().square().mean() - squares) / (n * d)  # of S itself
    shrinkage = torch.minimum(error.clamp(min=0), distance) / distance
    return float(shrinkage) if shrinkage > VANISHING**2 else 0.0  # rounding, and where 0 / 0: nothing varies


def inverse_times(
    diagonal: Float[Tensor, " d"], factor: Float[Tensor, "n d"], vector: Float[Tensor, " d"]
) -> Float[Tensor, " d"]:
    """(D + Fᵀ F)⁻¹ v for a positive diagonal D."""
    scaled = factor / diagonal
    inner = factor @ scaled.mT
    inner.diagonal().add_(1)
    solution = torch.cholesky_solve((scaled @ vector)[:, None], torch.linalg.cholesky(inner))[:, 0]
    return vector / diagonal - solution @ scaled


def pseudo_inverse_times(centred: Float[Tensor, "n d"], vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """S⁺ v."""
    _, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
    kept = sizes > sizes[0] * max(centred.shape) * torch.finfo(sizes.dtype).eps
    return len(centred) * ((rows[kept] @ vector) / sizes[kept].square()) @ rows[kept]
