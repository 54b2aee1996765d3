"""Engines complete prompts under a plan. All have one interface; see `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence

from refusal_cmp.model.generation import Completion
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent


class Engine(ABC):
    """Runs one model under one plan after another."""

    @abstractmethod
    def generate(
        self,
        plan: Plan,
        instructions: Sequence[str],
        max_new_tokens: int,
        progress: Progress = silent,
        done: MutableMapping[int, Completion] | None = None,
    ) -> list[Completion]:
        """Greedy completions under the plan, in the order of the instructions.

        Parameters
        ----------
        done
            Completions by the index of their instruction that there are already. They are not made again, and
            each new one is added as soon as it is finished, so that killed work can go on from there.
        """

    def close(self) -> None:  # noqa: B027
        """Free what the engine holds; nothing is asked of it afterwards."""
