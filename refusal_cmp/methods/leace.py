"""LEACE, least-squares concept erasure: Belrose et al. 2023, arXiv:2306.03819, section 4, for two classes.

    x ↦ x − δ δᵀ Σ⁻¹ (x − μ) / (δᵀ Σ⁻¹ δ)          δ: harmful − harmless mean;  Σ, μ: of all activations

It writes along δ and reads along Σ⁻¹ δ. Of all affine maps after which no linear classifier tells the classes apart
better than chance it changes the activations least. Σ is shrunk (Ledoit & Wolf 2004): with fewer prompts than
dimensions, Σ⁺ δ reads the training prompts by heart. Classes coincide after it whatever Σ is, as the coordinate that
is read of δ is its length.

Cost: one covariance in the span of the prompts, O(n² d).
Use it with `affine`, which has a μ, the harmless mean: without one, what is read of μ is taken out of every prompt. The
least change is that of the training prompts at the component. An edit acts on other tokens too, of which the dual, a
longer row than û, may read anything: look at the KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._covariance import inverse_times, ledoit_wolf, pseudo_inverse_times
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("leace")
@dataclass(frozen=True)
class LEACE(Extractor):
    """Written along the difference in means, read where that is least damage (Belrose et al. 2023)."""

    shrinkage: Literal["ledoit-wolf", "none"] = "ledoit-wolf"
    """Of the covariance; `none`: its pseudo-inverse."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """An oblique subspace of rank one; its evidence is the dev accuracy of the midpoint of what is read."""
        difference = apart(train)
        direction = unit(difference)
        read = self._whitened(train.x - train.x.mean(0), difference)
        dual = read / (read @ direction)
        return placed(direction[None], train.means(), train.scale, dev, dual=dual[None])

    def _whitened(self, centred: Float[Tensor, "n d"], vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Σ⁻¹ v, up to a factor."""
        n, d = centred.shape
        shrinkage = ledoit_wolf(centred) if self.shrinkage == "ledoit-wolf" else 0.0
        if not shrinkage:
            return pseudo_inverse_times(centred, vector)
        ridge = shrinkage * float(centred.square().sum()) / (n * d)
        return inverse_times(centred.new_full((d,), ridge), ((1 - shrinkage) / n) ** 0.5 * centred, vector)
