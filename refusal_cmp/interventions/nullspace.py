"""Nullspace projection: Ravfogel et al. 2020, ACL main.647.

x ↦ x − Vᵀ V x
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.interventions import Edits, Intervention, Setting, Target, along_basis, register_intervention, remove


@register_intervention("nullspace")
class NullspaceProjection(Intervention):
    """Remove the whole subspace from the stream: x − Vᵀ V x (Ravfogel et al. 2020)."""

    uses = ("sites",)
    whole_subspace = True

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At every site of every layer in scope."""
        return remove(targets, setting, along_basis)
