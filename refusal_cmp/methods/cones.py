"""Concept cones of refusal: Wollschläger et al. 2025, arXiv:2502.17420, section 4.

    B = argmin E L(Σᵢ cᵢ bᵢ),    c ≥ 0, ‖c‖ = 1, bᵢ orthonormal

L is the objective of `rdo`, which is the case k = 1, and c is drawn evenly: every direction of the cone is to act as a
refusal direction. Descent begins with rows in the middle of which is the difference in means, at right angles in a
plane that is drawn with the seed.

Cost: that of `rdo` for each direction that a step looks at, one row and `samples` draws.
Use it to ask whether refusal has several directions: the objective rises with k once it has no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from refusal_cmp.methods import register_extractor
from refusal_cmp.methods._optimised import Optimised


@register_extractor("cones")
@dataclass(frozen=True)
class Cones(Optimised):
    """Gradient descent to a cone of directions that all act as refusal (Wollschläger et al. 2025).

    Parameters
    ----------
    k
        Rows of the basis.
    draws
        Directions of the cone that a step looks at, beside one row.
    """

    k: Annotated[int, Field(ge=2, le=64)] = 2
    draws: Annotated[int, Field(ge=1)] = 3

    @property
    def samples(self) -> int:
        """Directions drawn from the cone in a step."""
        return self.draws

    def begin(self, direction: Float[Tensor, " d"]) -> Float[Tensor, "k d"]:
        """Orthonormal rows whose sum points along `direction`: drawn ones, mirrored from their own middle to it."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(len(direction), self.k, generator=generator, dtype=torch.float64)
        rows = torch.linalg.qr(drawn).Q.mT
        middle = rows.sum(0) / rows.sum(0).norm()
        normal = (middle - direction) / (middle - direction).norm()
        return rows - 2 * (rows @ normal)[:, None] * normal
