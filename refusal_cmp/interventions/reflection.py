"""Counterfactual reflection: Rocchetti & Ferrara 2026, arXiv:2606.13720.

    x ↦ x − α Vᵀ V x          α = 1 projects, α = 2 mirrors

Mirroring the stream again at the next layer undoes it (R² = I at α = 2). Composed `once`, the stream is
reflected on entry to the first layer in scope, and after that only what the layers in scope write is.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, register_intervention
from refusal_cmp.plan import Place


@register_intervention("reflection")
class Reflection(Intervention):
    """Mirror the stream in the subspace: x − α Vᵀ V x (Rocchetti & Ferrara 2026)."""

    strengths = (2.0,)
    uses = ("sites", "compose")

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At every site of every layer in scope; composed once, at the first layer's `resid_pre` only."""
        entry = min(target.layer for target in targets)
        return {
            Place(target.layer, site): LowRankEdit(
                V=target.subspace.basis, A=-(1.0 if strength is None else strength) * target.subspace.basis
            )
            for target in targets
            for site in setting.sites
            if setting.compose == "repeat" or site != "resid_pre" or target.layer == entry
        }
