"""Refusal direction optimisation: Wollschläger et al. 2025, arXiv:2502.17420, section 3.

    r̂ = argmin λ₁ CE(answer | harmful, r̂ ablated) + λ₂ CE(refusal | harmless, r̂ added)
              + λ₃ KL(r̂ ablated ‖ unedited | harmless)

Gradient descent through the model, from the difference in means of one component, on answers that the model itself
gives (see `refusal_cmp.methods._optimise`). What it finds is what acts as a refusal direction, whether or not it is
what tells the classes apart. All other components have no subspace.

Cost: 60 steps of seven passes over a few prompts and their answers, so it wants a GPU for models of some billions of
parameters.
Use it to see how far the difference in means is from the best direction there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_cmp.methods import register_extractor
from refusal_cmp.methods._optimised import Optimised


@register_extractor("rdo")
@dataclass(frozen=True)
class RefusalDirectionOptimisation(Optimised):
    """Gradient descent to the direction that acts most as refusal (Wollschläger et al. 2025)."""
