"""Activation addition, norm-matched: Arditi et al. 2024, section 2.4; Rocchetti & Ferrara 2026.

x ↦ x + c û          c = multiplier × difference-in-means norm of the layer / number of layers in scope
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, register_intervention
from refusal_cmp.plan import Place


@register_intervention("actadd")
class ActivationAddition(Intervention):
    """Add the direction, at the class means' distance: x + c û (Arditi et al. 2024)."""

    strengths = (-1.0, 1.0)
    uses = ("spread", "norm")

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope; negative multipliers bypass refusal, positive induce it."""
        share = (1.0 if strength is None else strength) / (len(targets) if setting.spread else 1)
        return {
            Place(target.layer, "resid_pre"): LowRankEdit(b=share * target.unit_norm * target.subspace.direction)
            for target in targets
        }
