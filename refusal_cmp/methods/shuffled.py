"""A control: difference in means of two halves that both hold as many harmful as harmless prompts.

Labels permuted without that balance would not do: the halves then differ by chance in their share of harmful
prompts, and where the classes are far apart, the difference of their means still points from one to the other.

Cost: two means, O(n d).
Use it to tell what labels bring from what any difference of two halves of the prompts does.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.config.values import Seed
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.subspace import Subspace


@register_extractor("shuffled")
class Shuffled(Extractor):
    """Control: difference in means after permuting the labels, balanced over the true ones.

    Parameters
    ----------
    seed
        Of the permutation, which is the same at every component; several seeds are several methods:
        `shuffled[seed=1]`.
    """

    def __init__(self, seed: Seed = 0) -> None:
        self.seed = seed

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is its accuracy on the dev split's true labels."""
        return DiffInMeans().fit(Labelled(train.x, self._labels(train.y)), dev)

    def _labels(self, y: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Half of each class is called harmful; of odd classes, one gives the larger and one the smaller half."""
        generator = torch.Generator().manual_seed(self.seed)
        labels = torch.zeros_like(y)
        for kind in (False, True):
            rows = (y == kind).nonzero()[:, 0]
            half = (len(rows) + kind) // 2
            labels[rows[torch.randperm(len(rows), generator=generator)[:half]]] = True
        return labels
