"""L2-regularised logistic regression of many components at a time, by Newton steps in float64.

    minimise over w, b:   ½ w·w + c Σⱼ log(1 + exp(−sⱼ (zⱼ·w + b))),      sⱼ = ±1

which is scikit-learn's `LogisticRegression(C=c)`. The intercept is not penalised, so the z may be centred, and
the solution lies in the span of the z: w = Σⱼ αⱼ zⱼ. With the Gram matrix K = z zᵀ (n, n) and u = K α, the
Newton step (δ, β) in (α, b) solves

    (I + W K) δ = g − α − β W 1,     1·(α + δ) = 0,        g = c s σ(−s (u + b)),   W = c σ (1 − σ) on the diagonal

through the Cholesky factor of B = I + W^½ K W^½, whose eigenvalues are never below 1 (Rasmussen & Williams 2006,
section 3.4.3): n³/3 operations a step, whatever d.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from refusal_cmp.errors import RefusalCmpError

TOLERANCE = 1e-8
"""A step this short, relative to where it starts, is the last: it doubles the digits that are right."""
MAX_STEPS = 200
MAX_HALVINGS = 40
SUFFICIENT = 1e-4
"""Armijo's constant: the part of the predicted decrease that a step has to bring."""
EPSILON = 2.2e-16
"""Relative rounding of float64; a sum of n terms rounds by about √n of it."""


def newton(
    z: Float[Tensor, "m n r"], y: Bool[Tensor, " n"], c: float
) -> tuple[Float[Tensor, "m r"], Float[Tensor, " m"]]:
    """The weights and the intercepts of m classifiers of the same labels; float64, on the device of z.

    Raises
    ------
    RefusalCmpError
        If the steps do not converge.
    """
    centre = z.mean(1, keepdim=True)
    centred = z - centre
    sign = torch.where(y, 1.0, -1.0).to(z)
    alpha, intercept = _solve(centred @ centred.mT, sign, c)
    weight = (alpha[:, None] @ centred)[:, 0]
    return weight, intercept - (weight * centre[:, 0]).sum(-1)


def _solve(
    gram: Float[Tensor, "m n n"], sign: Float[Tensor, " n"], c: float
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"]]:
    """α and b of every component; those that have converged leave the batch."""
    m, n, _ = gram.shape
    solved_alpha, solved_intercept = gram.new_zeros(m, n), gram.new_zeros(m)
    alpha, intercept = gram.new_zeros(m, n), gram.new_zeros(m)
    left: Int[Tensor, " l"] = torch.arange(m, device=gram.device)
    for _ in range(MAX_STEPS):
        margin = _times(gram, alpha) + intercept[:, None]
        wrong = torch.sigmoid(-sign * margin)
        gradient = alpha - c * sign * wrong
        delta, beta = _step(gram, alpha, gradient, c * wrong * (1 - wrong))
        size = _line_search(gram, alpha, gradient, delta, beta, margin, sign, c)
        alpha, intercept = alpha + size[:, None] * delta, intercept + size * beta
        done = (size == 1) & _is_last(gram, alpha, delta, intercept, beta)
        solved_alpha[left[done]], solved_intercept[left[done]] = alpha[done], intercept[done]
        if done.all():
            return solved_alpha, solved_intercept
        if done.any():
            left, gram, alpha, intercept = left[~done], gram[~done], alpha[~done], intercept[~done]
    raise RefusalCmpError(
        f"INLP's logistic regression did not converge in {MAX_STEPS} Newton steps at {len(left)} of {m} components; "
        "lower c, or check the activations' scale.",
        inlp_c="",
    )


def _is_last(
    gram: Float[Tensor, "m n n"],
    alpha: Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    intercept: Float[Tensor, " m"],
    beta: Float[Tensor, " m"],
) -> Bool[Tensor, " m"]:
    """Whether the step was short, beside the solution or beside what rounding makes of it."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    terms = torch.linalg.vector_norm(alpha, dim=-1) * squares.sum(-1).sqrt()  # ‖w‖ if nothing cancelled
    rounding = 2 * alpha.shape[-1] ** 0.5 * EPSILON * terms
    short = _length(gram, delta) <= TOLERANCE * _length(gram, alpha) + rounding
    return short & (beta.abs() <= TOLERANCE * (1 + intercept.abs()) + rounding * squares.amax(-1).sqrt())


def _step(
    gram: Float[Tensor, "m n n"],
    alpha: Float[Tensor, "m n"],
    gradient: Float[Tensor, "m n"],
    curvature: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"]]:
    """The Newton step (δ, β)."""
    root = curvature.sqrt()
    b = root[:, :, None] * gram * root[:, None, :]
    b.diagonal(dim1=-2, dim2=-1).add_(1)
    sides = torch.stack([root * _times(gram, gradient), root], dim=-1)
    solution = torch.cholesky_solve(sides, torch.linalg.cholesky(b))
    without, per_beta = root * solution[..., 0] - gradient, root * solution[..., 1]
    beta = (alpha + without).sum(-1) / per_beta.sum(-1)
    return without - beta[:, None] * per_beta, beta


def _line_search(
    gram: Float[Tensor, "m n n"],
    alpha: Float[Tensor, "m n"],
    gradient: Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    beta: Float[Tensor, " m"],
    margin: Float[Tensor, "m n"],
    sign: Float[Tensor, " n"],
    c: float,
) -> Float[Tensor, " m"]:
    """How much of the step to go: the first of 1, ½, ¼, … that lowers the objective enough."""
    moved = _times(gram, delta)
    along = moved + beta[:, None]
    linear, quadratic = (alpha * moved).sum(-1), (delta * moved).sum(-1)
    slope = (gradient * moved).sum(-1) - beta * (alpha - gradient).sum(-1)
    start = c * softplus(-sign * margin).sum(-1)
    slack = 2 * len(sign) ** 0.5 * EPSILON * (start + (alpha * _times(gram, alpha)).sum(-1))
    size = torch.ones_like(beta)
    for _ in range(MAX_HALVINGS):
        loss = c * softplus(-sign * (margin + size[:, None] * along)).sum(-1)
        change = loss - start + size * linear + size**2 / 2 * quadratic
        short = change > SUFFICIENT * size * slope + slack
        if not short.any():
            break
        size = torch.where(short, size / 2, size)
    return size


def _times(gram: Float[Tensor, "m n n"], vector: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    return (gram @ vector[..., None])[..., 0]


def _length(gram: Float[Tensor, "m n n"], vector: Float[Tensor, "m n"]) -> Float[Tensor, " m"]:
    """‖Σ vⱼ zⱼ‖."""
    return (vector * _times(gram, vector)).sum(-1).clamp(min=0).sqrt()
