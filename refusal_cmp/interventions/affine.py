"""Affine ablation: Marshall et al. 2024, arXiv:2411.09003.

x ↦ x − Vᵀ V (x − μ)          μ: the harmless mean of the layer
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.interventions import Edits, Intervention, Setting, Target, along_basis, register_intervention, remove


@register_intervention("affine")
class AffineAblation(Intervention):
    """Move the subspace's coordinates to the harmless mean: x − Vᵀ V (x − μ) (Marshall et al. 2024)."""

    uses = ("sites",)
    whole_subspace = True

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """The subspace is removed at every site of every layer in scope, and Vᵀ V μ added at `resid_pre`."""
        return remove(targets, setting, along_basis, lambda target: target.harmless_mean)
