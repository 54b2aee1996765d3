"""AlterRep, the sign-forced counterfactual: Ravfogel et al. 2021, arXiv:2105.06965.

    x ↦ x − Vᵀ (V x − t) − α Vᵀ |V x − t|          t = V m, m: the midpoint of the layer's class means

Along every row of V, which points to harmful, t + c becomes t − α |c|: on the harmless side of the midpoint,
whichever side it was on. Applying it again at α = 1 changes nothing. Published is t = 0, where the two sides need
not be those of the classes: of the 186 rows that INLP finds on tiny-refuser, 146 have both means on one side of zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, along_basis, register_intervention
from refusal_cmp.plan import Place


@register_intervention("alterrep")
class AlterRep(Intervention):
    """Force every coordinate to the harmless side: x − Vᵀ (V x − t) − α Vᵀ |V x − t| (Ravfogel et al. 2021)."""

    strengths = (1.0,)
    uses = ("about",)
    whole_subspace = True

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope."""
        alpha = 1.0 if strength is None else strength
        return {Place(target.layer, "resid_pre"): _forced(target, alpha, setting.about) for target in targets}


def _forced(target: Target, alpha: float, about: str) -> LowRankEdit:
    read, written = along_basis(target.subspace)
    if about == "zero":
        return LowRankEdit(V=read, A=-written, B=-alpha * written)
    t = read @ (target.harmful_mean + target.harmless_mean) / 2
    return LowRankEdit(V=read, A=-written, B=-alpha * written, t=t, b=t @ written)
