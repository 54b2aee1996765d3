"""One logistic regression, a linear probe: Alain & Bengio 2016, arXiv:1610.01644.

    minimise over w, b:   ½ w·w + c Σⱼ log(1 + exp(−sⱼ (xⱼ·w + b))),      sⱼ = ±1;      r = w

At INLP's c it is INLP's first classifier, without the dev split's say in whether it counts.

Cost: a few Newton steps in the span of the prompts, O(n² d + n³).
Use it to tell what one probe does from what INLP's repetition adds: it has rank one under every intervention.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_cmp.activations import Labelled
from refusal_cmp.config.values import Penalty
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._newton import newton
from refusal_cmp.methods._rows import apart, placed
from refusal_cmp.subspace import Subspace, unit


@register_extractor("logistic")
@dataclass(frozen=True)
class Logistic(Extractor):
    """The weights of one L2-regularised logistic regression (Alain & Bengio 2016)."""

    c: Penalty = 0.1
    """Inverse strength of the L2 penalty, as in scikit-learn; the activations are not rescaled."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """A subspace of rank one; its evidence is the dev accuracy of the midpoint between the projected means."""
        apart(train)
        weight, _ = newton(train.x[None], train.y, self.c)
        return placed(unit(weight[0])[None], train.means(), train.scale, dev)
