"""Engines run a model under a plan: completions and losses. All have one interface; see `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from refusal_cmp.data import Document
from refusal_cmp.generation import Completion
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent


class Loss(NamedTuple):
    """Cross-entropy of one document."""

    total: float
    """Sum over the scored tokens, nats; NaN or infinite if the logits were."""
    n_tokens: int


class Engine(ABC):
    """Runs one model under one plan after another."""

    @abstractmethod
    def generate(
        self, plan: Plan, instructions: Sequence[str], max_new_tokens: int, progress: Progress = silent
    ) -> list[Completion]:
        """Greedy completions under the plan, in the order of the instructions."""

    @abstractmethod
    def losses(self, plan: Plan, documents: Sequence[Document], progress: Progress = silent) -> list[Loss]:
        """Cross-entropy of each document's text under the plan; an instruction before it is not scored."""
