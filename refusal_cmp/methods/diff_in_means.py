"""Difference in means: Arditi et al. 2024, arXiv:2406.11717, section 2.3.

    r = mean of harmful activations − mean of harmless activations,    r̂ = r / ‖r‖

Cost: class means alone, O(n d); activations are not kept.
Use it first, and beside every other method: it is what they have to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from refusal_cmp.activations import Labelled, Moments, Needs, balanced_accuracy
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.subspace import Subspace, unit


@register_extractor("diff-in-means")
@dataclass(frozen=True)
class DiffInMeans(Extractor):
    """The one direction between the class means (Arditi et al. 2024)."""

    needs: ClassVar[Needs] = "means"

    data: Literal["train", "all"] = "train"
    """`train`: the prompts that every method is fitted on; `all`: the dev split too."""

    def fit(self, train: Labelled | Moments, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is the dev accuracy of the midpoint between the means."""
        data = train + dev if self.data == "all" else train
        harmful, harmless = data.means()
        difference = harmful - harmless
        direction = unit(difference, "difference of the class means", data.scale)
        midpoint = (harmful + harmless) / 2 @ direction
        accuracy = balanced_accuracy(dev.x @ direction > midpoint, dev.y)
        return Subspace(direction[None], direction, float(torch.linalg.vector_norm(difference)), accuracy[None])
