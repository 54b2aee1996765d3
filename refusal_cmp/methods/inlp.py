"""Iterative nullspace projection: Ravfogel et al. 2020, ACL main.647, algorithm 1.

    repeat:  w_i = a linear classifier of the classes on x;    x ← x − (x·ŵ_i) ŵ_i

until the classifier is no better than chance on the dev split. The subspace is the span of the classifiers
that were better; the one that failed is not part of it.

An L2-regularised linear classifier lies in the span of its training vectors and does not depend on the basis
they are written in. So everything happens in at most n coordinates instead of d: x = z Q with z (n, r), Q (r, d)
orthonormal rows from one thin factorisation. Each iteration is then a rank-one deflation of z, and each
classifier is orthogonal to the ones before it, up to rounding, which re-orthogonalisation removes.

The components of a model are independent, so that many go through an iteration at a time; one that stops
leaves the batch. Results do not depend on the batch, beyond rounding.

Cost: one factorisation, O(n² d), and a classifier per direction in n coordinates, O(n³) each.
Use it to ask how many directions classifiers can tell the classes apart by, and what removing more than one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

from refusal_cmp.activations import MIN_PROMPTS, Labelled, balanced_accuracy
from refusal_cmp.config import RunConfig
from refusal_cmp.config.values import AtLeastOne, Penalty
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError, unknown_name
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods._classifiers import CLASSIFIERS, classifier
from refusal_cmp.subspace import VANISHING, Subspace

LEVEL = 0.05


@register_extractor("inlp")
@dataclass(frozen=True)
class INLP(Extractor):
    """The span of successive classifiers, each blind to the ones before it (Ravfogel et al. 2020)."""

    has_k: ClassVar[bool] = True
    rank_by_dev: ClassVar[bool] = True

    c: Penalty = 0.1
    """Inverse strength of the L2 penalty, as in scikit-learn; the activations are not rescaled."""
    stop: str | float = "binomial"
    """`binomial`: dev accuracy no better than chance, one-sided at 5 %; or a fixed balanced accuracy such as `0.55`."""
    max_k: AtLeastOne = 100
    """Most classifiers."""
    classifier: str = "newton"
    """`newton`: logistic regression, ours; scikit-learn's `logistic`, `linear-svc`, `ridge`, `perceptron`."""
    device: str = "cpu"
    """Where the iterations run: `cpu`, `cuda`, …"""
    batch_size: AtLeastOne = 4
    """Components that go through an iteration at a time."""
    n_jobs: int = -1
    """Processes for scikit-learn's classifiers; -1 is all cores."""

    def __post_init__(self) -> None:
        if self.stop != "binomial" and not _is_share(self.stop):
            raise RefusalCmpError(f"inlp-stop must be 'binomial' or an accuracy between 0 and 1, and is {self.stop!r}.")
        if self.classifier not in CLASSIFIERS:
            raise unknown_name("INLP classifier", self.classifier, CLASSIFIERS)

    @classmethod
    def options(cls, config: RunConfig) -> dict[str, Any]:
        """The `inlp_…` settings, and the run's device."""
        on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
        return {
            "c": config.inlp_c,
            "stop": config.inlp_stop,
            "max_k": config.inlp_max_k,
            "classifier": config.inlp_classifier,
            "device": config.device.replace("auto", "cuda") if on_gpu else "cpu",
            "batch_size": 32 if on_gpu else cls.batch_size,
        }

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """One orthonormal row per accepted classifier, in order of extraction, with its dev accuracy."""
        (result,) = self.fit_many([(train, dev)])
        if isinstance(result, NoSubspaceError):
            raise result
        return result

    def fit_many(self, data: Sequence[tuple[Labelled, Labelled]]) -> list[Subspace | NoSubspaceError]:
        """The subspace of each component; all hold the same prompts."""
        y, y_dev = data[0][0].y, data[0][1].y
        coordinates, spans = zip(*(factorise(train.x.to(self.device)) for train, _ in data), strict=True)
        z = torch.stack(coordinates)
        z_dev = torch.stack([dev.x.to(span) @ span.mT for (_, dev), span in zip(data, spans, strict=True)])
        found = self._iterate(z, y.to(z.device), z_dev, y_dev.to(z.device))
        return [
            _subspace((rows @ span).cpu(), evidence.cpu(), train)
            for (rows, evidence), span, (train, _) in zip(found, spans, data, strict=True)
        ]

    def _iterate(
        self,
        z: Float[Tensor, "m n r"],
        y: Bool[Tensor, " n"],
        z_dev: Float[Tensor, "m v r"],
        y_dev: Bool[Tensor, " v"],
    ) -> list[tuple[Float[Tensor, "k r"], Float[Tensor, " k"]]]:
        """The accepted classifiers of every component, in the coordinates of its span, and their dev accuracies."""
        fit = classifier(self.classifier, self.c, self.n_jobs)
        beats_chance = self.beats_chance(len(y), y_dev)
        size = z.square().sum((1, 2))
        most = min(self.max_k, z.shape[-1])
        rows, evidence = z.new_zeros(len(z), most, z.shape[-1]), z.new_zeros(len(z), most)
        k = [0] * len(z)
        alive = torch.arange(len(z), device=z.device)
        for i in range(most):
            weight, intercept = fit(z[alive], y)
            margin = (z_dev[alive] @ weight[..., None])[..., 0] + intercept[:, None]
            said = margin > 0
            better = beats_chance(said) & (_spread(z[alive]) > VANISHING**2 * size[alive])
            alive, weight, said = alive[better], weight[better], said[better]
            if not len(alive):
                break
            row = _orthonormal(weight, rows[alive, :i])
            rows[alive, i], evidence[alive, i] = row, balanced_accuracy(said, y_dev).to(z)
            z[alive], z_dev[alive] = _without(z[alive], row), _without(z_dev[alive], row)
            for component in alive.tolist():
                k[component] = i + 1
        return [(rows[component, :found], evidence[component, :found]) for component, found in enumerate(k)]

    def beats_chance(
        self, n_train: int, y_dev: Bool[Tensor, " v"]
    ) -> Callable[[Bool[Tensor, "m v"]], Bool[Tensor, " m"]]:
        """Whether classifiers are part of the subspace, by what they say of the dev prompts.

        Where the classes are unequal, saying the larger one throughout is no better than chance: the binomial test is
        of its share, and a fixed accuracy is a balanced one.
        """
        n, harmful = len(y_dev), int(y_dev.sum())
        if n_train + n < MIN_PROMPTS:
            raise RefusalCmpError(f"INLP needs at least {MIN_PROMPTS} prompts, and there are {n_train + n}.")
        if self.stop != "binomial":
            return lambda said: balanced_accuracy(said, y_dev) >= float(self.stop)
        counts = np.arange(n + 1)
        enough = binom.sf(counts - 1, n, max(harmful, n - harmful) / n) <= LEVEL
        if not enough.any():
            raise RefusalCmpError(
                f"On a dev split of {harmful} harmful and {n - harmful} harmless prompts no classifier can be better "
                "than chance; give more prompts, a larger dev split, or a fixed accuracy to stop at.",
                dev_share="",
                inlp_stop="0.55",
            )
        least = int(counts[enough][0])
        return lambda said: (said == y_dev).sum(-1) >= least


def factorise(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r d"]]:
    """x = z Q with r = min(n, d) orthonormal rows Q: one thin QR factorisation of xᵀ for the whole of INLP."""
    q, r = torch.linalg.qr(x.mT)
    return r.mT, q.mT


def _spread(z: Float[Tensor, "m n r"]) -> Float[Tensor, " m"]:
    """Sum of squared distances from the mean: what a classifier has left to work with."""
    return (z - z.mean(1, keepdim=True)).square().sum((1, 2))


def _without(z: Float[Tensor, "m n r"], row: Float[Tensor, "m r"]) -> Float[Tensor, "m n r"]:
    """z − (z·row) row."""
    return z - (z @ row[..., None]) * row[:, None]


def _orthonormal(weight: Float[Tensor, "m r"], rows: Float[Tensor, "m i r"]) -> Float[Tensor, "m r"]:
    """The unit vector along what of the weight is orthogonal to the rows; Gram-Schmidt, where twice is enough."""
    for _ in range(2):
        weight = weight - ((rows @ weight[..., None]).mT @ rows)[:, 0]
        weight = weight / torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
    return weight


def _subspace(
    basis: Float[Tensor, "k d"], evidence: Float[Tensor, " k"], train: Labelled
) -> Subspace | NoSubspaceError:
    if not len(basis):
        if float(_spread(train.x[None])) <= (VANISHING * train.scale) ** 2 * len(train):
            return NoSubspaceError("the activations of all prompts coincide")
        return NoSubspaceError("no classifier is better than chance on the dev split")
    harmful, harmless = train.means()
    return Subspace(basis, basis[0], float(basis[0] @ (harmful - harmless)), evidence)


def _is_share(value: str | float) -> bool:
    try:
        return 0 < float(value) < 1
    except ValueError:
        return False
