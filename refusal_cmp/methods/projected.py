"""Projected difference in means: Lai 2025, *Projected Abliteration*.

    r = δ − (δ·μ̂) μ̂          δ: harmful − harmless mean;  μ̂: the unit harmless mean

What of the difference is along the harmless mean says that harmful activations are longer or shorter, not that they
are elsewhere; removing it would take from every harmless prompt what all of them share.

Cost: class means alone, O(n d).
Use it in place of difference in means where that costs too much on harmless prompts: ablating r leaves the
harmless mean where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from refusal_cmp.activations import Labelled, Moments, Needs
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("projected")
@dataclass(frozen=True)
class Projected(Extractor):
    """The difference in means without its part along the harmless mean (Lai 2025)."""

    needs: ClassVar[Needs] = "means"

    def fit(self, train: Labelled | Moments, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is the dev accuracy of the midpoint between the projected means."""
        difference = apart(train)
        harmless = unit(train.means()[1], "harmless mean", train.scale)
        direction = unit(
            difference - (difference @ harmless) * harmless,
            "difference of the class means beside the harmless mean",
            train.scale,
        )
        return placed(direction[None], train.means(), train.scale, dev)
