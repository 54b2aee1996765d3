"""Iterative nullspace projection: Ravfogel et al. 2020, ACL main.647, algorithm 1.

    repeat:  w_i = a linear classifier of the classes on x;    x ← x − (x·ŵ_i) ŵ_i

until the classifier is no better than chance on the dev split. The subspace is the span of the classifiers
that were better; the one that failed is not part of it.

An L2-regularised linear classifier lies in the span of its training vectors and does not depend on the basis
they are written in. So everything happens in n coordinates instead of d: x = z Q with z (n, r), Q (r, d)
orthonormal rows from one thin factorisation. Each iteration is then a rank-one deflation of z, and each
classifier is orthogonal to the ones before it, up to rounding, which one re-orthogonalisation removes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from torch import Tensor

from refusal_cmp.activations import Labelled
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.subspace import Subspace

RANK_TOLERANCE = 1e-10
NEWTON_TOLERANCE = 1e-10
MAX_NEWTON_STEPS = 100
LEVEL = 0.05


@register_extractor("inlp")
@dataclass(frozen=True)
class INLP(Extractor):
    """The span of successive classifiers, each blind to the ones before it (Ravfogel et al. 2020)."""

    c: float = 0.1
    """Inverse strength of the L2 penalty, as in scikit-learn; the activations are not rescaled."""
    stop: str = "binomial"
    """`binomial`: dev accuracy no better than chance, one-sided at 5 %; or a fixed accuracy such as `0.55`."""
    max_k: int = 100
    """Most classifiers."""

    def __post_init__(self) -> None:
        if self.stop != "binomial" and not _is_share(self.stop):
            raise RefusalCmpError(f"inlp-stop must be 'binomial' or an accuracy between 0 and 1, and is {self.stop!r}.")

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """One orthonormal row per accepted classifier, in order of extraction, with its dev accuracy."""
        span = row_space(train.x)
        z, z_dev = train.x @ span.mT, dev.x @ span.mT
        rows: list[Tensor] = []
        evidence: list[float] = []
        while len(rows) < min(self.max_k, len(span)):
            weight, intercept = logistic(z, train.y, self.c)
            accuracy = float(((z_dev @ weight + intercept > 0) == dev.y).double().mean())
            if not self.accepts(accuracy, dev.y):
                break
            row = weight - sum((weight @ found * found for found in rows), torch.zeros_like(weight))
            row = row / torch.linalg.vector_norm(row)
            rows.append(row)
            evidence.append(accuracy)
            z, z_dev = z - (z @ row)[:, None] * row, z_dev - (z_dev @ row)[:, None] * row
        if not rows:
            raise NoSubspaceError("no classifier is better than chance on the dev split")
        basis = torch.stack(rows) @ span
        harmful, harmless = train.means()
        return Subspace(
            basis,
            basis[0],
            float(basis[0] @ (harmful - harmless)),
            torch.tensor(evidence, dtype=torch.float64),
        )

    def accepts(self, accuracy: float, y_dev: Bool[Tensor, " n"]) -> bool:
        """Whether a dev accuracy is good enough for its classifier to be part of the subspace."""
        if self.stop != "binomial":
            return accuracy >= float(self.stop)
        n, harmful = len(y_dev), int(y_dev.sum())
        chance = max(harmful, n - harmful) / n
        return binomtest(round(accuracy * n), n, chance, alternative="greater").pvalue <= LEVEL


def row_space(x: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """Orthonormal rows that span the rows of x, one thin SVD for the whole of INLP."""
    _, values, rows = torch.linalg.svd(x, full_matrices=False)
    rank = int((values > RANK_TOLERANCE * values[0]).sum()) if values[0] > 0 else 0
    if not rank:
        raise NoSubspaceError("all activations are zero")
    return rows[:rank]


def logistic(z: Float[Tensor, "n r"], y: Bool[Tensor, " n"], c: float) -> tuple[Float[Tensor, " r"], float]:
    """L2-regularised logistic regression with an unpenalised intercept, by damped Newton steps in float64.

    Minimises  ½ w·w + c Σ log(1 + exp(−s (z·w + b))),  s = ±1: scikit-learn's `LogisticRegression(C=c)`.
    """
    ones = torch.ones(len(z), 1, dtype=z.dtype)
    design = torch.cat([z, ones], dim=1)
    sign = torch.where(y, 1.0, -1.0).to(z.dtype)
    penalty = torch.ones(design.shape[1], dtype=z.dtype)
    penalty[-1] = 0

    def loss(theta: Tensor) -> Tensor:
        margins = sign * (design @ theta)
        return 0.5 * (penalty * theta) @ theta + c * torch.nn.functional.softplus(-margins).sum()

    theta = torch.zeros(design.shape[1], dtype=z.dtype)
    for _ in range(MAX_NEWTON_STEPS):
        p = torch.sigmoid(-sign * (design @ theta))
        gradient = penalty * theta - c * design.mT @ (sign * p)
        if gradient.abs().max() <= NEWTON_TOLERANCE * max(1.0, c * float(design.abs().sum(0).max())):
            break
        curvature = (c * p * (1 - p))[:, None] * design
        hessian = design.mT @ curvature + torch.diag(penalty)
        hessian[-1, -1] += 1e-12
        step = torch.linalg.solve(hessian, gradient)
        size, before, slope = 1.0, loss(theta), gradient @ step
        while size > 1e-8 and loss(theta - size * step) > before - 1e-4 * size * slope:
            size /= 2
        theta = theta - size * step
    return theta[:-1], float(theta[-1])


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False
