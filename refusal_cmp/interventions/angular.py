"""Angular steering, at constant norm: Vu & Nguyen 2025, arXiv:2510.26243; Dang & Ngo 2026, arXiv:2601.19375.

    x ↦ x − P x + ‖P x‖ (cos φ û + sin φ m̂)          P = û ûᵀ + m̂ m̂ᵀ

m̂ is the unit vector along what the harmless mean of the edited layer has across û, and the strength is φ in degrees. In
the plane of the two every vector is turned to the angle φ: 0 is all along û, 90 nothing along it, 180 all against it.
The published second axis is the first principal component of the directions of all layers; along m̂ activations of both
classes are long and much the same, so that turning there costs little else: 90 bypasses refusal, as ablation does, and
75, near the harmful mean of smol-refuser, induces it. A rotation is orthogonal: û reads itself, whatever a subspace's
dual is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, register_intervention
from refusal_cmp.plan import Place
from refusal_cmp.subspace import unit


@register_intervention("angular")
class AngularSteering(Intervention):
    """Turn the stream to an angle from the direction, at constant norm (Vu & Nguyen 2025)."""

    strengths = (90.0, 75.0)
    uses = ()

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope; larger angles bypass refusal, smaller ones induce it."""
        angle = math.radians(90.0 if strength is None else strength)
        return {Place(target.layer, "resid_pre"): _turned(target, angle) for target in targets}


def _turned(target: Target, angle: float) -> LowRankEdit:
    direction, mean = target.subspace.direction, target.harmless_mean
    scale = float(torch.linalg.vector_norm(mean))
    across = unit(mean - (mean @ direction) * direction, "harmless mean across the direction", scale)
    plane = torch.stack([direction, across])
    return LowRankEdit(V=plane, A=-plane, r=math.cos(angle) * direction + math.sin(angle) * across)
