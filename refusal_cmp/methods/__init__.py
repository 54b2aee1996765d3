"""Extractors: labelled activations → one subspace per component. One file each; see `Extractor`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from refusal_cmp.activations import Activations, Labelled, Needs
from refusal_cmp.config import RunConfig
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods._sight import Foreseen, Said, Sight
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry, parse_spec
from refusal_cmp.subspace import Component, Subspace, SubspaceField

__all__ = ["EXTRACTORS", "Extractor", "Foreseen", "Method", "ModelMethod", "Said", "Sight", "configured"]
__all__ += ["register_extractor"]


class Method(ABC):
    """Gives a subspace for the components of a model; an `Extractor` fits one for each."""

    needs: ClassVar[Needs] = "activations"
    """What of the training activations it looks at: all of them, or no more than the class means."""
    has_k: ClassVar[bool] = False
    """Whether the rows have an order, so that a k policy (`--inlp-k`) may keep the leading ones."""

    @classmethod
    def options(cls, config: RunConfig) -> dict[str, Any]:
        """Hyper-parameters that a run's settings give."""
        return {}

    def inputs(self) -> dict[str, Any]:
        """What the field is made from beside activations and hyper-parameters, such as a file's digest."""
        return {}

    def positions(self, post_instruction: tuple[int, ...]) -> tuple[int, ...]:
        """The positions of the components that it has: by default the post-instruction tokens.

        One that reads elsewhere, such as the last token of the instruction, says it here, and is given activations of
        these positions alone.

        Parameters
        ----------
        post_instruction
            Of the model, first to last: (-4, -3, -2, -1).
        """
        return post_instruction

    def check(self, positions: Sequence[int], n_layers: int, d_model: int) -> None:  # noqa: B027
        """RefusalCmpError if it cannot be used with a model of this shape; asked before the long work."""

    @abstractmethod
    def fit_field(self, activations: Activations, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspaces of all components."""


class Extractor(Method):
    """Finds the subspace of one component. Hyper-parameters go to the constructor, data to `fit`.

    `fit` is all that an extractor has to have. One that looks at no more than the class means says so by
    `needs = "means"`: it is then given `Moments` for `train`, and the activations behind them are not kept. One
    that is faster on many components at a time overrides `fit_many` and sets `batch_size`.
    """

    batch_size: int = 1
    """Components that `fit_many` is given at a time."""
    rank_by_dev: ClassVar[bool] = False
    """Whether the dev split decides how many directions there are; extract then says how that varies over splits."""

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


class ModelMethod(Method):
    """Finds subspaces by what the model does under edits with them; `fit_seeing` is all that it has to have."""

    @abstractmethod
    def fit_seeing(self, sight: Sight, method: str, progress: Progress = silent) -> SubspaceField:
        """The subspaces of the components that it looks at; the others are missing, with the reason."""

    def fit_field(self, activations: Activations, method: str, progress: Progress = silent) -> SubspaceField:
        """Not from activations alone."""
        raise RefusalCmpError(f"{method} has to see the model, and there are activations alone; use fit_seeing.")


EXTRACTORS: Registry[type[Method]] = Registry("method", __name__, Method)
register_extractor = EXTRACTORS.register


def configured(config: RunConfig, name: str) -> Method:
    """A run's method with its hyper-parameters: those of the settings, of the configuration, and in its brackets."""
    if name in config.given_files:
        return EXTRACTORS.create("given", path=config.given_files[name], at=config.direction_at)
    base, own = parse_spec(name)
    of_base, of_name = (config.method_options.get(key, {}) for key in (base, name))
    return EXTRACTORS.create(base, **(EXTRACTORS.get(base).options(config) | of_base | of_name | own))
