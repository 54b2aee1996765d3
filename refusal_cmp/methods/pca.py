"""Principal components of differences: Zou et al. 2023b, arXiv:2310.01405, section 3.1.

    D = U S Vᵀ,     rows of D: harmful − harmless activations;     V: the first right singular vectors

Each is turned to the harmful side by the class means. With `pairs`, a row of D is a harmful activation minus a
harmless one, drawn without return. With `classes`, it is an activation minus the mean of the other class: what many
draws of pairs come to, without a draw, but with the difference in means counted twice: of n prompts of each class,

    Dᵀ D = n (Σ_harmful + Σ_harmless + 2 δ δᵀ)          in place of    n (Σ_harmful + Σ_harmless + δ δᵀ)

Cost: one singular value decomposition of n differences, O(n² d).
Use it as published, or with `max-k` for the directions that differences vary along most; the first is near the
difference in means where the classes are far apart beside what varies within them, and else it is not about refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.config.values import AtLeastOne, Seed
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import VANISHING, Subspace


@register_extractor("pca")
@dataclass(frozen=True)
class PCA(Extractor):
    """The first principal components of the differences between harmful and harmless (Zou et al. 2023b)."""

    has_k: ClassVar[bool] = True

    max_k: AtLeastOne = 1
    """Components, by how much the differences vary along them."""
    centre: Literal["pairs", "classes"] = "pairs"
    """What is subtracted from an activation: one of the other class, or that class's mean."""
    seed: Seed = 0
    """Of the pairs."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """Orthonormal rows; the evidence of each is the dev accuracy of its midpoint between the class means."""
        apart(train)
        differences = self._differences(train)
        _, sizes, rows = torch.linalg.svd(differences, full_matrices=False)
        kept = sizes > VANISHING * train.scale * len(differences) ** 0.5
        return placed(rows[kept][: self.max_k], train.means(), train.scale, dev)

    def _differences(self, train: Labelled) -> Float[Tensor, "n d"]:
        harmful, harmless = train.x[train.y], train.x[~train.y]
        if self.centre == "classes":
            return torch.cat([harmful - harmless.mean(0), harmful.mean(0) - harmless])
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randperm(len(rows), generator=generator) for rows in (harmful, harmless)]
        n = min(map(len, drawn))
        return harmful[drawn[0][:n]] - harmless[drawn[1][:n]]
