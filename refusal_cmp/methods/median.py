"""Difference in medians, coordinate by coordinate.

    r = median of harmful activations − median of harmless activations

Half of the prompts of a class can be anything before its median is; one is enough for its mean. Where nothing is
amiss a median is less certain than a mean: of normal activations its variance is π / 2 times as large.

Cost: a sort of every coordinate, O(n d log n).
Use it to see whether a difference in means is that of a few prompts: mislabelled ones, or ones far from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("median")
@dataclass(frozen=True)
class DifferenceInMedians(Extractor):
    """The one direction between the class medians, coordinate by coordinate."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its norm and its evidence, the dev accuracy of the midpoint, are of the medians."""
        harmful, harmless = _median(train.x[train.y]), _median(train.x[~train.y])
        direction = unit(harmful - harmless, "difference of the class medians", train.scale)
        return placed(direction[None], (harmful, harmless), train.scale, dev)


def _median(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    return torch.from_numpy(np.median(x.numpy(), axis=0))  # torch's is the lower one of the two in the middle
