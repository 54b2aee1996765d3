"""Extractors: labelled activations → one subspace per component. One file each; see `Extractor`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from refusal_cmp.activations import Activations, Labelled
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry
from refusal_cmp.subspace import Component, Subspace, SubspaceField


class Extractor(ABC):
    """Finds the subspace of one component. Hyper-parameters go to the constructor, data to `fit`."""

    @abstractmethod
    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """The subspace that tells the classes of `train` apart; `dev` is held out for evidence and stopping.

        Raises
        ------
        NoSubspaceError
            Where the classes coincide; the component is then left out of rankings, and counted.
        """

    def fit_field(self, activations: Activations, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspaces of all components; override it to fit many at a time."""
        found: dict[Component, Subspace] = {}
        missing: dict[Component, str] = {}
        components = list(activations.components())
        with progress(f"extracting {method}", len(components)) as advance:
            for component in components:
                try:
                    found[component] = self.fit(*activations.at(component))
                except NoSubspaceError as error:
                    missing[component] = str(error)
                advance(1)
        return SubspaceField(method, activations.means(), found, missing)


EXTRACTORS: Registry[type[Extractor]] = Registry("method", __name__)
register_extractor = EXTRACTORS.register
