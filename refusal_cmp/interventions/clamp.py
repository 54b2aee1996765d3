"""Clamp, or directional patching: the projection on the direction is set to a value.

    x ↦ x − û ûᵀ x + p û

p is the mean projection of training activations: harmless ones at strength −1, harmful ones at +1, and the
line through them in between and beyond.
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


@register_intervention("clamp")
class Clamp(Intervention):
    """Set the projection on the direction to a class mean: x − û ûᵀ x + p û."""

    strengths = (-1.0, 1.0)
    uses = ("sites",)

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """The direction is removed at every site of every layer in scope, and p û added at `resid_pre`."""
        harmful = (1 + (1.0 if strength is None else strength)) / 2
        return remove(
            targets,
            setting,
            along_direction,
            lambda target: harmful * target.harmful_mean + (1 - harmful) * target.harmless_mean,
        )
