"""Evaluators: what a plan does, measured. The same inputs for all, tidy rows out. One file each."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from refusal_cmp.config import MODEL, MachineSettings, RunConfig, digest_of, is_marked
from refusal_cmp.data import stamped
from refusal_cmp.judges.completion import Judgement, judge
from refusal_cmp.judges.phrases import Phrases
from refusal_cmp.model import Answer as Answer
from refusal_cmp.model import ChatModel
from refusal_cmp.model.chat import NO_TURNS, Turns
from refusal_cmp.model.loading import content_of
from refusal_cmp.model.source import ModelSource
from refusal_cmp.plan import Plan
from refusal_cmp.planning import Selected as Selected
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry, parse_spec
from refusal_cmp.statistics import Estimate, rate

Source = Literal["completions", "baseline", "model", "subspaces"]
Unit = Literal["share", "nats", "nats a token", "number"]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a plan, its completions on each test set, and what there is to compare them with."""

    plan: Plan
    answers: Mapping[str, Sequence[Answer]]
    baseline: Mapping[str, Sequence[Answer]]
    """The unedited model's completions on each test set."""
    model: Callable[[], ChatModel]
    """Loads the model of the plan on first use; it is unedited until `model().edited(plan)`.

    A plan that is another checkpoint has a model of its own. What is loaded is alone in memory: keep none of them."""
    batch_size: int | None = None
    """Prompts in one forward pass, at most."""
    selected: Callable[[], Sequence[Selected]] = tuple
    """What every method found."""
    judged: Callable[[str], Sequence[Mapping[str, Any]]] | None = None
    """Of a plan that the evaluator is done with: for a test set, the examples that it gave back; None of others."""
    refusal_tokens: tuple[int, ...] = ()
    turns: Turns = NO_TURNS
    """What the model's chat template writes around an answer."""
    progress: Progress = silent
    say: Callable[[str], None] = lambda _: None
    """Told what a reader of the results should know."""
    unedited: Callable[[], ChatModel] | None = None
    """Loads the model of the baseline, where the plan may be another checkpoint."""

    def base(self) -> ChatModel:
        """The model of the baseline, which is that of every plan but other checkpoints."""
        return (self.unedited or self.model)()

    def judge(self, answer: Answer, phrases: Phrases) -> Judgement:
        """What a completion is, as the model's own template has it."""
        return judge(answer.completion, answer.finish, phrases=phrases, turns=self.turns)


@dataclass(frozen=True)
class Measure:
    """What a metric is. It stands once, at the evaluator that returns it, and every table, figure and page reads it."""

    name: str
    """The metric, or a pattern of metrics: `magnitude_auroc:*`."""
    heading: str
    """What columns of it are called."""
    meaning: str = ""
    """What it is, in a line that begins in lower case."""
    unit: Unit = "number"
    interval: str = ""
    """How its interval is made, by the name that the documentation explains."""
    better: Literal["higher", "lower", "neither"] = "neither"
    """Which way a model gets better; neither where that depends on what is asked of it."""
    shown: Literal["always", "if any", "never"] = "always"
    """Whether the summary has columns of it; `if any`: where it is above zero for some plan."""
    only_on: str = ""
    """The one test set that it means something on."""
    same_as: str = ""
    """A metric that says the same; where that one is there, this one needs no column."""
    positive: bool = False
    """Whether it is never negative, as a loss, so that no interval over seeds goes below zero."""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Between which values it is by definition, where neither its unit nor `positive` says so."""
    is_distance: bool = False
    """Whether it is a distance from the baseline, which of the baseline is zero by definition and of any other plan is
    not: no plan is tested against the baseline by it."""

    @classmethod
    def share(cls, name: str, heading: str, of: str, **more: Any) -> Measure:
        """The measure that a share of examples is, with Wilson's interval."""
        return cls(name, heading, f"share of {of}", "share", "Wilson", **more)

    def within(self, one: Estimate) -> Estimate:
        """An estimate whose interval ends where there are no more values: a share's at 0 and 1."""
        least, most = self.limits
        least = max(least, 0.0) if self.positive or self.unit == "share" else least
        most = min(most, 1.0) if self.unit == "share" else most
        low, high = (min(max(end, least), most) if math.isfinite(end) else end for end in (one.low, one.high))
        return one._replace(low=low, high=high)

    @property
    def in_a_sentence(self) -> str:
        """The heading without a capital, unless it begins with an abbreviation."""
        return self.heading if self.heading[:2].isupper() else self.heading[0].lower() + self.heading[1:]

    @property
    def title(self) -> str:
        """The heading with the unit, where numbers do not show theirs."""
        return f"{self.heading}, {self.unit}" if self.unit.startswith("nats") else self.heading


NON_FINITE = Measure.share(
    "non_finite",
    "Broken numbers",
    "completions or questions that meet a NaN or an infinity in the logits",
    better="lower",
    shown="if any",
)


@dataclass(frozen=True)
class Metric:
    """One number of one plan on one dataset."""

    dataset: str
    """A test set, a part of one (`harmful:fraud`), a text set, or a task."""
    metric: str
    estimate: Estimate
    values: Sequence[float | None] | None = None
    """What each example contributes, in an order that is the same for all plans, None where there is nothing;
    with them, plans are compared in pairs: 0 and 1 by McNemar's test, others by permutation."""
    weights: Sequence[float] | None = None
    """Of the values, if the estimate is their weighted mean: tokens of each document."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator gives back for a plan: metrics, and the judgement of every example by dataset."""

    metrics: list[Metric]
    examples: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


class Evaluator(ABC):
    """Measures plans, one after the other; one instance serves all plans of a run.

    Hyper-parameters go to the constructor, as an extractor's do. One that is called like a setting of the run is given
    the setting; others are in brackets, `--evals my-eval[threshold=2]`. Results depend on all of them but on those that
    say where and how the work is done, such as `device`: when one changes, this evaluator alone works again.
    """

    reads: ClassVar[tuple[Source, ...]] = ("completions",)
    """What it is made from: the plan's completions, the baseline's, the model under the plan, the subspaces."""
    loads_model: ClassVar[bool] = False
    """Whether it loads a model of its own; the run's model is released before."""
    measures: ClassVar[tuple[Measure, ...]] = ()
    """What its metrics are, in the order of columns."""
    order: ClassVar[int] = 100
    """Columns of evaluators of a lower order stand first; ours have 0 to 9."""

    def check(self, test_sets: Sequence[str]) -> None:  # noqa: B027
        """RefusalCmpError if it cannot work with its hyper-parameters on these test sets; asked before any work."""

    def prepare(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:  # noqa: B027
        """Work for all plans together, before any of them is evaluated: what two of them say alike is judged once.

        Parameters
        ----------
        subjects
            All plans in order, also those that were evaluated before, of which there is `judged`.
        known
            What is known already, by whatever names the evaluator gives it. It is kept on disk until all of them are
            evaluated, so that a killed run goes on from it.
        """

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation:
        """The metrics of one plan."""

    def close(self) -> None:  # noqa: B027
        """Free what the evaluator holds; nothing is asked of it afterwards."""


def share(dataset: str, metric: str, hits: Sequence[bool]) -> Metric:
    """The share of examples that are hits."""
    return Metric(dataset, metric, rate(sum(hits), len(hits)), [float(hit) for hit in hits])


def by_category(dataset: str, metric: str, answers: Sequence[Answer], hits: Sequence[bool]) -> list[Metric]:
    """The share of hits in each category, as the dataset `harmful:fraud`; nothing where there is one category."""
    of = [answer.category or OTHER for answer in answers]
    categories = sorted(set(of))
    if len(categories) < 2:
        return []
    rows = list(zip(of, hits, strict=True))
    return [
        Metric(f"{dataset}:{category}", metric, rate(sum(of_one), len(of_one)))
        for category in categories
        for of_one in [[hit for one, hit in rows if one == category]]
    ]


OTHER = "other"
"""The category of what has none."""


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator", __name__, Evaluator)
register_evaluator = EVALUATORS.register


def configured(config: RunConfig, spec: str) -> Evaluator:
    """A run's evaluator with its hyper-parameters: settings of the run, and those in its brackets."""
    return EVALUATORS.create(spec, **settings_of(config, spec))


def facts(config: RunConfig, spec: str) -> dict[str, Any]:
    """The hyper-parameters that an evaluator's results depend on, as JSON values; of files, models in folders and
    texts that can change, by name and content.
    """
    given = {
        name: value for name, value in settings_of(config, spec).items() if name not in MachineSettings.model_fields
    }
    plain = config.model_dump(mode="json", include=set(given))
    for name, value in given.items():
        if isinstance(value, Path):
            plain[name] = f"{value.name} ({digest_of(value)})"
        elif is_marked(RunConfig.model_fields[name], MODEL) and Path((source := ModelSource(value)).path).exists():
            plain[name] = f"{value} ({content_of(source)})"
        elif name == "texts":
            plain[name] = [stamped(one) for one in value]
    return plain


def settings_of(config: RunConfig, spec: str) -> dict[str, Any]:
    """The settings of the run that the evaluator's constructor takes, by name."""
    takes = inspect.signature(EVALUATORS.get(parse_spec(spec)[0])).parameters
    return {name: getattr(config, name) for name in takes if name in RunConfig.model_fields}


def all_measures() -> list[Measure]:
    """What every registered evaluator says of its metrics, in the order of columns."""
    evaluators = sorted(map(EVALUATORS.get, EVALUATORS), key=lambda one: one.order)
    return [measure for evaluator in evaluators for measure in evaluator.measures]


def measure_of(metric: str) -> Measure:
    """What a metric is; one that no evaluator declares goes by its own name."""
    fitting = (measure for measure in all_measures() if fnmatchcase(metric, measure.name))
    return next(fitting, Measure(metric, metric.replace("_", " ")))
