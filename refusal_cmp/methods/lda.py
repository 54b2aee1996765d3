"""Linear discriminant analysis: Fisher 1936, with the shrinkage of Ledoit & Wolf 2004.

    r = Σ_w⁻¹ δ,     Σ_w = Σ_c (n_c / n) D_c ((1 − γ_c) R_c + γ_c s_c I) D_c          δ: harmful − harmless mean

of the classes c, R_c the correlation and D_c the standard deviations within a class: each class is shrunk on a scale
where all coordinates vary alike, so that a few coordinates that are much larger than the others, as residual streams
have, do not decide how much the others are shrunk.

Cost: one covariance per class in the span of the prompts, O(n² d).
Use it for the direction that separates the classes best. Its normal is not the direction that the classes differ
along: reading it is right for classifying, removing it leaves most of δ. `leace` reads alike, and writes along δ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._covariance import inverse_times, ledoit_wolf
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import VANISHING, Subspace, unit


@register_extractor("lda")
@dataclass(frozen=True)
class LDA(Extractor):
    """The linear discriminant, with shrunk covariances within the classes (Fisher 1936)."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is the dev accuracy of the midpoint between the projected means."""
        difference = apart(train)
        diagonals, factors = zip(*[_shrunk(train.x[train.y == kind]) for kind in (False, True)], strict=True)
        shares = [float((train.y == kind).double().mean()) for kind in (False, True)]
        diagonal = sum(share * one for share, one in zip(shares, diagonals, strict=True))
        factor = torch.cat([share**0.5 * one for share, one in zip(shares, factors, strict=True)])
        if not (diagonal > 0).all():
            raise NoSubspaceError("the activations of a class do not vary enough to shrink their covariance")
        direction = unit(inverse_times(diagonal, factor, difference))
        return placed(direction[None], train.means(), train.scale, dev)


def _shrunk(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "n d"]]:
    """The covariance of a class as a diagonal and a factor: diag + Fᵀ F. Coordinates that do not vary have scale 1."""
    n, d = x.shape
    centred = x - x.mean(0)
    deviation = centred.square().mean(0).sqrt()
    deviation = torch.where(deviation > VANISHING**2 * x.abs().amax(0), deviation, 1.0)
    z = centred / deviation
    shrinkage = ledoit_wolf(z)
    mean_variance = float(z.square().sum()) / (n * d)
    return shrinkage * mean_variance * deviation.square(), ((1 - shrinkage) / n) ** 0.5 * centred
