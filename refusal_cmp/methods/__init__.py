"""Extractors: labelled activations → one subspace per component. One file each; see `Extractor`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from refusal_cmp.activations import Activations, Labelled, Needs
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry
from refusal_cmp.subspace import Component, Subspace, SubspaceField


class Extractor(ABC):
    """Finds the subspace of one component. Hyper-parameters go to the constructor, data to `fit`.

    `fit` is all that an extractor has to have. One that looks at no more than the class means says so by
    `needs = "means"`: it is then given `Moments` for `train`, and the activations behind them are not kept. One
    that is faster on many components at a time overrides `fit_many` and sets `batch_size`.
    """

    needs: ClassVar[Needs] = "activations"
    batch_size: int = 1
    """Components that `fit_many` is given at a time."""

    @abstractmethod
    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """The subspace that tells the classes of `train` apart; `dev` is held out for evidence and stopping.

        Raises
        ------
        NoSubspaceError
            Where the classes coincide; the component is then left out of rankings, and counted.
        """

    def fit_many(self, data: Sequence[tuple[Labelled, Labelled]]) -> list[Subspace | NoSubspaceError]:
        """The subspace of each of several components, or why it has none."""
        return [self._subspace_or_reason(*each) for each in data]

    def fit_field(self, activations: Activations, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspaces of all components."""
        found: dict[Component, Subspace] = {}
        missing: dict[Component, str] = {}
        components = list(activations.components())
        read: Callable[[Component], Any] = activations.moments_at if self.needs == "means" else activations.at
        with progress(f"extracting {method}", len(components)) as advance:
            for start in range(0, len(components), self.batch_size):
                batch = components[start : start + self.batch_size]
                results = self.fit_many([read(component) for component in batch])
                for component, result in zip(batch, results, strict=True):
                    if isinstance(result, Subspace):
                        found[component] = result
                    else:
                        missing[component] = str(result)
                advance(len(batch))
        return SubspaceField(method, activations.means(), found, missing)

    def _subspace_or_reason(self, train: Labelled, dev: Labelled) -> Subspace | NoSubspaceError:
        try:
            return self.fit(train, dev)
        except NoSubspaceError as error:
            return error


EXTRACTORS: Registry[type[Extractor]] = Registry("method", __name__)
register_extractor = EXTRACTORS.register
