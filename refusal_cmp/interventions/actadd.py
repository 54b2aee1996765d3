"""Activation addition, norm-matched: Arditi et al. 2024, section 2.4.

    x ↦ x + (m / n) c û

m is the multiplier, n how many layers are in scope, and c the difference-in-means norm of the edited layer, at the
position that the direction û is from. In the published comparison c is that of the selected component, and the one
layer is its own, whatever the scope.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Scope, Setting, Target, register_intervention
from refusal_cmp.plan import Place


@register_intervention("actadd")
class ActivationAddition(Intervention):
    """Add the direction, at the class means' distance: x + c û (Arditi et al. 2024)."""

    strengths = (-1.0, 1.0)
    neutral = 0.0
    farthest = 8.0
    uses = ("spread", "norm", "layers")

    def reach(self, scope: Scope, setting: Setting) -> Scope:
        """The scope of the plan, or the selected component's layer alone."""
        return Scope("single") if setting.layers == "selected" else scope

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope; negative multipliers bypass refusal, positive induce it."""
        share = (1.0 if strength is None else strength) / (len(targets) if setting.spread else 1)
        return {
            Place(target.layer, "resid_pre"): LowRankEdit(b=share * target.unit_norm * target.subspace.direction)
            for target in targets
        }
