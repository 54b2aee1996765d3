"""Difference in winsorised means, coordinate by coordinate: Tukey 1962; on refusal directions, Lai 2025.

    r = w(harmful activations) − w(harmless activations)

w is the mean of a class after the ⌊share · n⌋ smallest values of each coordinate are set to the next larger one, and
as many of the largest to the next smaller one. At share 0 it is the mean; towards 1/2 it becomes the median.

Cost: a sort of every coordinate, O(n d log n).
Use it between `diff-in-means` and `median`: a few prompts cannot move it far, and it is nearly as certain as the mean.
Residual streams have coordinates of which single prompts are far out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("winsorised")
@dataclass(frozen=True)
class DifferenceInWinsorisedMeans(Extractor):
    """The one direction between the class means, the outermost values drawn in (Tukey 1962)."""

    share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Of a class's prompts, drawn in at either end of every coordinate."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its norm and its evidence, the dev accuracy of the midpoint, are of those means."""
        harmful, harmless = self._mean(train.x[train.y]), self._mean(train.x[~train.y])
        direction = unit(harmful - harmless, "difference of the winsorised class means", train.scale)
        return placed(direction[None], (harmful, harmless), train.scale, dev)

    def _mean(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        n = len(x)
        drawn_in = int(self.share * n)
        ordered = x.sort(0).values
        return ordered.clamp(ordered[drawn_in], ordered[n - 1 - drawn_in]).mean(0)
