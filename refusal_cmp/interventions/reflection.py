"""Counterfactual reflection: Rocchetti & Ferrara 2026, arXiv:2606.13720.

    x ↦ x − α Vᵀ V x          α = 1 projects, α = 2 mirrors

Mirroring the stream again at the next layer undoes it (R² = I at α = 2). Composed `once`, the stream is
reflected on entry to the first layer in scope, and after that only what the layers in scope write is. Composed by
`component`, as published, a layer with m components in scope has m such hooks at every site:

    Rᵐ = I − (1 − (1 − α)ᵐ) Vᵀ V          the identity for even m at α = 2
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, along_basis, register_intervention
from refusal_cmp.plan import Place


@register_intervention("reflection")
class Reflection(Intervention):
    """Mirror the stream in the subspace: x − α Vᵀ V x (Rocchetti & Ferrara 2026)."""

    strengths = (2.0,)
    neutral = 0.0
    farthest = 2.0
    uses = ("sites", "compose")
    whole_subspace = True

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At every site of every layer in scope; composed once, at the first layer's `resid_pre` only."""
        alpha = 1.0 if strength is None else strength
        entry = min(target.layer for target in targets)
        edits: Edits = {}
        for target in targets:
            share = _of_power(alpha, target.n_components) if setting.compose == "component" else alpha
            read, written = along_basis(target.subspace)
            edit = LowRankEdit(V=read, A=-share * written)
            edits |= {
                Place(target.layer, site): edit
                for site in setting.sites
                if share and (setting.compose != "once" or site != "resid_pre" or target.layer == entry)
            }
        return edits


def _of_power(alpha: float, m: int) -> float:
    """The α of Rᵐ; 0 where it is the identity."""
    return alpha if m == 1 else 1 - (1 - alpha) ** m
