"""A control: random subspaces of the rank that INLP finds. What any edit of that size does.

Cost: INLP's, which says the ranks.
Use it to tell an effect of refusal from that of editing the stream at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from refusal_cmp.activations import Labelled
from refusal_cmp.config import RunConfig
from refusal_cmp.config.values import AtLeastOne, Seed
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.subspace import Subspace


@register_extractor("random")
class Random(Extractor):
    """Control: a random subspace of the rank that INLP finds at the component.

    Parameters
    ----------
    seed
        Of the directions, drawn anew for every component; several seeds are several methods: `random[seed=1]`.
    k
        Another rank; by default INLP's.
    inlp
        INLP's hyper-parameters; a run gives those of its own INLP.
    """

    def __init__(self, seed: Seed = 0, k: AtLeastOne | None = None, inlp: Mapping[str, Any] | None = None) -> None:
        self.k = k
        self._inlp = INLP(**(inlp or {}))
        self._generator = torch.Generator().manual_seed(seed)
        self.batch_size = self._inlp.batch_size

    @classmethod
    def options(cls, config: RunConfig) -> dict[str, Any]:
        """INLP's hyper-parameters in this run."""
        return {"inlp": INLP.options(config) | config.method_options.get("inlp", {})}

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """Orthonormal rows, each turned to the harmful side, without evidence."""
        (result,) = self.fit_many([(train, dev)])
        if isinstance(result, NoSubspaceError):
            raise result
        return result

    def fit_many(self, data: Sequence[tuple[Labelled, Labelled]]) -> list[Subspace | NoSubspaceError]:
        """The subspace of each component; where INLP finds none, there is none."""
        found = self._inlp.fit_many(data)
        return [
            one if isinstance(one, NoSubspaceError) else self._draw(train, one.k if self.k is None else self.k)
            for one, (train, _) in zip(found, data, strict=True)
        ]

    def _draw(self, train: Labelled, k: int) -> Subspace:
        d = train.x.shape[1]
        drawn = torch.randn(d, min(k, d), generator=self._generator, dtype=torch.float64)
        basis = torch.linalg.qr(drawn).Q.mT
        harmful, harmless = train.means()
        along = basis @ (harmful - harmless)
        basis = torch.where(along[:, None] < 0, -basis, basis)
        return Subspace(basis, basis[0], float(along[0].abs()), torch.full((len(basis),), torch.nan))
