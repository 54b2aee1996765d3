"""Covariances of few samples, shrunk so that they can be inverted: Chen et al. 2010, arXiv:0907.4698.

    S ↦ (1 − ρ) S + ρ (tr S / k) I          ρ = min(1, (tr S² + (tr S)²) k⁻² / ((n + 1) (tr S² − (tr S)² / k) k⁻²))

This is the oracle approximating shrinkage (OAS), which takes nothing but S and the number n of samples. It is nothing
for one dimension, small where n is many times k, and all but complete where n is below k.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def covariance(x: Float[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """The mean of the outer products of what is left of the samples without their mean."""
    centred = x - x.mean(0)
    return centred.mT @ centred / len(x)


def shrunk(covariance: Float[Tensor, "k k"], n: int) -> Float[Tensor, "k k"]:
    """A covariance of n samples, shrunk towards a sphere by OAS."""
    k = len(covariance)
    mean = covariance.trace() / k
    squares = covariance.square().mean()
    apart = (n + 1) * (squares - mean**2 / k)
    rho = 1.0 if apart <= 0 else min(1.0, float((squares + mean**2) / apart))
    return (1 - rho) * covariance + rho * mean * torch.eye(k).to(covariance)
