"""Gaussian optimal transport of the harmful activations to the harmless ones: Singh et al. 2024, arXiv:2402.09631.

    x ↦ x + s Vᵀ [(T − I) V (x − μ_h) + V (μ_s − μ_h)]          T = Σ_h^−½ (Σ_h^½ Σ_s Σ_h^½)^½ Σ_h^−½

μ_h, μ_s and Σ_h, Σ_s are the harmful and the harmless mean, and the covariances (k, k) of the coordinates V x, on entry
to the edited layer. At s = 1 it is the map of least effort that gives what is distributed as harmful prompts are along
V the harmless mean and covariance. Where several layers are edited each goes its share of the way, s = 1 / n, as
activation addition does: what has been moved once is not harmful any more. Covariances of fewer prompts than would do
are shrunk when they are read; along what does not vary, T is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.interventions import Edits, Intervention, Setting, Target, along_basis, register_intervention
from refusal_cmp.plan import Place
from refusal_cmp.subspace import VANISHING


@register_intervention("transport")
class Transport(Intervention):
    """Move the harmful distribution in the subspace onto the harmless one, by optimal transport (Singh et al. 2024)."""

    uses = ("spread",)
    whole_subspace = True
    needs_covariances = True

    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """At `resid_pre` of every layer in scope."""
        share = 1 / len(targets) if setting.spread else 1.0
        return {Place(target.layer, "resid_pre"): _moved(target, share) for target in targets}


def _moved(target: Target, share: float) -> LowRankEdit:
    read, written = along_basis(target.subspace)
    harmful, harmless = read @ target.harmful_mean, read @ target.harmless_mean
    source, goal = target.covariances
    rounding = VANISHING**2 * float(harmful @ harmful + harmless @ harmless)
    stretch = transport_map(source, goal, rounding) - torch.eye(len(read)).to(read)
    return LowRankEdit(
        V=read, A=share * stretch @ written, b=share * (harmless - harmful - stretch @ harmful) @ written
    )


def transport_map(
    source: Float[Tensor, "k k"], goal: Float[Tensor, "k k"], rounding: float = 0.0
) -> Float[Tensor, "k k"]:
    """The symmetric T with T source T = goal; the identity along what varies by no more than `rounding` in source."""
    values, vectors = torch.linalg.eigh(source)
    varies = values > max(rounding, VANISHING**2 * float(values.max()))
    along = vectors[:, varies]
    roots = values[varies].sqrt()
    between, axes = torch.linalg.eigh(roots[:, None] * (along.mT @ goal @ along) * roots)
    middle = (axes * between.clamp_min(0).sqrt()) @ axes.mT
    stretched = along @ (middle / roots[:, None] / roots) @ along.mT
    return stretched + torch.eye(len(source)).to(source) - along @ along.mT
