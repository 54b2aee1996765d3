"""AlterRep, the sign-forced counterfactual: Ravfogel et al. 2021.

    x ↦ x − Vᵀ V x − α Vᵀ |V x|

Every coordinate goes to the harmless side, whichever side it was on; applying it again at α = 1 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, register_intervention
from refusal_cmp.plan import Place


@register_intervention("alterrep")
class AlterRep(Intervention):
    """Force every coordinate to the harmless side: x − Vᵀ V x − α Vᵀ |V x| (Ravfogel et al. 2021)."""

    strengths = (1.0,)
    uses: tuple[str, ...] = ()

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope."""
        return {
            Place(target.layer, "resid_pre"): LowRankEdit(
                V=target.subspace.basis,
                A=-target.subspace.basis,
                B=-(1.0 if strength is None else strength) * target.subspace.basis,
            )
            for target in targets
        }
