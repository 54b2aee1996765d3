"""Directional ablation: Arditi et al. 2024, arXiv:2406.11717, section 2.4.

x ↦ x − û ûᵀ x
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.interventions import (
    Edits,
    Intervention,
    Setting,
    Target,
    along_direction,
    register_intervention,
    remove,
)


@register_intervention("ablation")
class Ablation(Intervention):
    """Remove the one direction from the stream: x − û ûᵀ x (Arditi et al. 2024)."""

    uses = ("sites",)

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At every site of every layer in scope."""
        return remove(targets, setting, along_direction)
