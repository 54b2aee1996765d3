"""Evaluators: what a plan does, measured. The same inputs for all, tidy rows out. One file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refusal_cmp.engines import Engine
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry
from refusal_cmp.statistics import Estimate


@dataclass(frozen=True)
class Answer:
    """A line of a completions file: a prompt of a test set and what the model said under the plan."""

    instruction: str
    category: str
    completion: str
    n_tokens: int
    finish: str


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a plan, its completions on each test set, and the engine to run it again."""

    plan: Plan
    answers: Mapping[str, Sequence[Answer]]
    engine: Callable[[], Engine]
    """Loads the model on first use; evaluators of completions never call it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the evaluate stage."""
    progress: Progress = silent


@dataclass(frozen=True)
class Metric:
    """One number of one plan on one dataset."""

    dataset: str
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator gives back for a plan: metrics, and the judgement of every example by dataset."""

    metrics: list[Metric]
    examples: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


class Evaluator(ABC):
    """Measures a plan."""

    reads: str = "completions"
    """`completions`: only what is stored; `model`: it runs the model under the plan."""

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation:
        """The metrics of one plan."""


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator", __name__)
register_evaluator = EVALUATORS.register
