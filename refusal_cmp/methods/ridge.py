"""The ridge residual of the difference in means: Cristofano 2026, arXiv:2601.08489.

    r = δ − C (Cᵀ C + λ I)⁻¹ Cᵀ δ          columns of C: directions to be spared;  λ = penalty · tr Cᵀ C / n

Published, C holds directions of capabilities that are named by hand and read from prompts of their own. Here it is
what the harmless training prompts differ by: their n activations about their mean, over √n. So δ loses the part
λ_i / (λ_i + λ) along the principal component of harmless activations with variance λ_i: most where they vary most,
nothing where they do not.

Cost: one system of n equations, O(n² d).
Use it in place of difference in means where that costs too much on harmless prompts. What it spares is what *these*
prompts need, no more: a capability that none of them exercises is not in C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from refusal_cmp.activations import Labelled
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("ridge")
@dataclass(frozen=True)
class RidgeResidual(Extractor):
    """The difference in means without what harmless prompts vary along (Cristofano 2026)."""

    penalty: Annotated[float, Field(gt=0)] = 10.0
    """λ beside the mean squared length of C's columns: the larger, the nearer to the difference in means."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is the dev accuracy of the midpoint between the projected means."""
        difference = apart(train)
        harmless = train.x[~train.y]
        columns = (harmless - harmless.mean(0)) / len(harmless) ** 0.5
        gram = columns @ columns.mT
        system = gram + self.penalty * gram.trace() / len(gram) * torch.eye(len(gram)).to(gram)
        # least squares, as the system is zero where all harmless prompts coincide
        explained = torch.linalg.lstsq(system, columns @ difference).solution @ columns
        direction = unit(difference - explained, "residual of the difference of the class means", train.scale)
        return placed(direction[None], train.means(), train.scale, dev)
