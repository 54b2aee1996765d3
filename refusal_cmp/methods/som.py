"""Several directions from a self-organising map of the harmful prompts: Piras et al. 2025, arXiv:2511.08379.

    r_j = c_j − harmless mean          c_j: the neurons of a map of the harmful activations

The map here is a square of side² neurons that learns in batches (Kohonen 1982): each neuron moves to the mean of all
prompts, weighted by how near it is on the square to the neuron nearest to the prompt,

    c_j ← Σ_i h(j, b_i) x_i / Σ_i h(j, b_i),     h(j, b) = exp(−‖g_j − g_b‖² / 2σ²),     σ falling from side/2 to 0.3

from a start on the plane of the first two principal components: nothing is drawn. `k-means` has clusters in place of
neurons. Those that are nearest to no prompt are left out. The rows are made orthonormal in the order of how many
prompts each stands for, most first (of equally many the longer), so that the first k stand for as many as k can;
`direction` is along the mean of the r_j. A map of one neuron is the difference in means. A small map is a coarse one:
of four groups far apart, two share a neuron of a square of 3, and one of 4 tells all apart.

Cost: a singular value decomposition of the harmful activations, O(n² d).
Use it where refusal may not be one thing: harmful prompts of several kinds. The rows behind the first say how the
kinds differ, so that `nullspace` takes out more than refusal; a k policy keeps the first ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.config.values import AtLeastOne, Seed
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import apart, orthonormal, placed
from refusal_cmp.subspace import VANISHING, Subspace, unit

STEPS, NARROWEST = 50, 0.3
"""How often the neurons move, and σ at the last: a neighbour then has 0.4 % of the weight."""


@register_extractor("som")
@dataclass(frozen=True)
class SelfOrganisingMap(Extractor):
    """Directions from the harmless mean to each neuron of a map of the harmful prompts (Piras et al. 2025)."""

    has_k: ClassVar[bool] = True

    side: AtLeastOne = 4
    """Neurons along each side of the map, as published; k-means has side² clusters."""
    clusters: Literal["som", "k-means"] = "som"
    """What harmful prompts are gathered by."""
    seed: Seed = 0
    """Of k-means."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """Orthonormal rows; the evidence of each is the dev accuracy of its midpoint between the class means."""
        apart(train)
        harmful, harmless = train.means()
        u, sizes, axes = torch.linalg.svd(train.x[train.y] - harmful, full_matrices=False)
        z = u * sizes  # the prompts along their principal components: distances are the same there
        neurons = _map(z, self.side) if self.clusters == "som" else self._k_means(z)
        counts = _nearest(z, neurons).bincount(minlength=len(neurons))
        rows = harmful - harmless + neurons @ axes
        lengths = torch.linalg.vector_norm(rows, dim=1).tolist()
        order = sorted(counts.nonzero()[:, 0].tolist(), key=lambda j: (int(counts[j]), lengths[j]), reverse=True)
        rows = rows[order]
        direction = unit(rows.mean(0), "mean of the directions", train.scale)
        basis = orthonormal(rows, VANISHING * train.scale)
        return placed(basis, train.means(), train.scale, dev, direction=direction)

    def _k_means(self, z: Float[Tensor, "n r"]) -> Float[Tensor, "m r"]:
        from sklearn.cluster import KMeans

        found = KMeans(min(self.side**2, len(z)), n_init=10, random_state=self.seed).fit(z.numpy())
        return torch.from_numpy(found.cluster_centers_)


def _map(z: Float[Tensor, "n r"], side: int) -> Float[Tensor, "m r"]:
    """The neurons of a batch map of centred prompts."""
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, side, dtype=z.dtype) if side > 1 else z.new_zeros(1)] * 2)
    neurons = z.new_zeros(len(grid), z.shape[1])
    plane = min(2, z.shape[1])
    neurons[:, :plane] = grid[:, :plane] * z[:, :plane].std(0, correction=0)
    apart_on_grid = torch.cdist(grid, grid) * (side - 1) / 2  # neighbours are 1 apart
    for width in np.geomspace(max(side / 2, NARROWEST), NARROWEST, STEPS):
        near = torch.exp(-apart_on_grid[_nearest(z, neurons)].square() / (2 * width**2))
        neurons = near.mT @ z / near.sum(0)[:, None]
    return neurons


def _nearest(z: Float[Tensor, "n r"], neurons: Float[Tensor, "m r"]) -> Int[Tensor, " n"]:
    return torch.cdist(z, neurons, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
