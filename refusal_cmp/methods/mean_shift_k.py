"""A direction per category of harmful prompts.

    r_c = mean of the harmful activations of category c − harmless mean

The rows are made orthonormal in the order of ‖r_c‖, the longest first; `direction` is along the mean of the r_c, in
which every category counts alike, however many prompts it has. Categories are a column of the prompts' file.

Cost: means alone, O(n d), and O(k² d) for k categories.
Use it where prompts come with categories, to ask whether they share a direction (the rows behind the first are short
beside it then), and to remove what each of them has. `som` finds such groups by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from refusal_cmp.activations import Labelled
from refusal_cmp.config.values import AtLeastOne
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import apart, orthonormal, placed
from refusal_cmp.subspace import VANISHING, Subspace, unit


@register_extractor("mean-shift-k")
@dataclass(frozen=True)
class MeanShiftK(Extractor):
    """Directions from the harmless mean to the mean of each category of harmful prompts."""

    has_k: ClassVar[bool] = True

    least: AtLeastOne = 2
    """Harmful training prompts that a category must have to count."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """Orthonormal rows; the evidence of each is the dev accuracy of its midpoint between the class means.

        Raises
        ------
        RefusalCmpError
            If no category of harmful prompts has enough of them.
        """
        means = self._means(train)
        apart(train)
        shifts = torch.stack(means) - train.means()[1]
        rows = shifts[torch.linalg.vector_norm(shifts, dim=1).argsort(descending=True, stable=True)]
        direction = unit(rows.mean(0), "mean of the categories' directions", train.scale)
        basis = orthonormal(rows, VANISHING * train.scale)
        return placed(basis, train.means(), train.scale, dev, direction=direction)

    def _means(self, train: Labelled) -> list[torch.Tensor]:
        harmful, groups = train.x[train.y], None if train.group is None else train.group[train.y]
        if groups is None or not (groups >= 0).any():
            raise RefusalCmpError(
                "mean-shift-k takes a direction per category, and the harmful training prompts have none; give a file "
                "with a column of categories, or leave mean-shift-k out.",
                category_column="NAME",
            )
        members = [harmful[groups == group] for group in groups[groups >= 0].unique()]
        means = [of_one.mean(0) for of_one in members if len(of_one) >= self.least]
        if not means:
            raise RefusalCmpError(
                f"mean-shift-k needs a category with {self.least} harmful training prompts, and the largest of "
                f"{len(members)} has {max(map(len, members))}; give more prompts, or set its option least lower."
            )
        return means
