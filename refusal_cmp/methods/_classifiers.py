"""The linear classifiers that INLP can be made of, on the coordinates of many components at a time.

`newton` is ours; the others are scikit-learn's, a component per job. None depends on the basis that the
coordinates are written in, which is what lets INLP work in the span of its training vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor

from refusal_cmp.methods._newton import newton

SKLEARN = ("logistic", "linear-svc", "ridge", "perceptron")
CLASSIFIERS = ("newton", *SKLEARN)
MAX_ITERATIONS = 100_000
SEED = 0
"""Of the order in which the perceptron sees the prompts, and of liblinear's."""

Fit = Callable[[Float[Tensor, "m n r"], Bool[Tensor, " n"]], tuple[Float[Tensor, "m r"], Float[Tensor, " m"]]]
"""Coordinates and labels → weights and intercepts."""


def classifier(name: str, c: float, n_jobs: int) -> Fit:
    """The fitting function of a classifier of `CLASSIFIERS`.

    Parameters
    ----------
    c
        Inverse strength of the L2 penalty: scikit-learn's C, and 1 / 2C is ridge's alpha. The perceptron has none.
    n_jobs
        Processes for scikit-learn's, as joblib counts them.
    """
    if name == "newton":
        return lambda z, y: newton(z, y, c)
    return lambda z, y: _with_sklearn(name, c, n_jobs, z, y)


def _with_sklearn(
    name: str, c: float, n_jobs: int, z: Float[Tensor, "m n r"], y: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, "m r"], Float[Tensor, " m"]]:
    labels = y.cpu().numpy()
    fits = Parallel(n_jobs=n_jobs)(delayed(_fit)(name, c, one.cpu().numpy(), labels) for one in z)
    weights, intercepts = zip(*fits, strict=True)
    return torch.as_tensor(np.stack(weights)).to(z), torch.as_tensor(np.stack(intercepts)).to(z)


def _fit(name: str, c: float, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    estimator = _estimator(name, c).fit(z, y)
    return np.ravel(estimator.coef_), float(np.ravel(estimator.intercept_)[0])


def _estimator(name: str, c: float) -> Any:
    from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier
    from sklearn.svm import LinearSVC

    if name == "logistic":
        return LogisticRegression(C=c, tol=1e-8, max_iter=MAX_ITERATIONS)
    if name == "linear-svc":
        return LinearSVC(C=c, random_state=SEED, max_iter=MAX_ITERATIONS)
    if name == "ridge":
        return RidgeClassifier(alpha=1 / (2 * c))
    return Perceptron(random_state=SEED)
