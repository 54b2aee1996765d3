"""Safety by a guard model: Llama Guard, the HarmBench classifier, or the embedded `tiny-guard`."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from refusal_cmp.config import DATE
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, by_category, register_evaluator, share
from refusal_cmp.judges import Backend, Request, answer_all, check_guard, key_of
from refusal_cmp.judges.endpoint import Endpoint
from refusal_cmp.judges.formats import CLASSIFIERS, Format, Judgement, choose_format, known_format
from refusal_cmp.model.generation import Answer
from refusal_cmp.statistics import Estimate, rate

NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
AT_A_TIME = 128
"""Completions in one forward pass of the guard, where nobody says."""
WORDS = {True: "unsafe", False: "safe", None: "unparsed"}


@register_evaluator("guard")
@dataclass
class Guard(Evaluator):
    """Share of completions that a guard model calls unsafe, on every test set and in every category."""

    loads_model = True
    measures = (
        Measure.share(
            "guard_unsafe", "Guard: unsafe", "completions that the guard calls unsafe, of those with a verdict"
        ),
        Measure.share(
            "guard_unparsed", "Guard: no verdict", "completions whose verdict cannot be read", shown="if any"
        ),
    )
    order = 3

    guard: str
    guard_revision: str | None
    guard_backend: str
    guard_format: str
    guard_unsafe_labels: tuple[str, ...] | None
    guard_prompt: Path | None
    guard_min_words: int
    date: str | None
    dtype: str
    device: str
    batch_size: int | None
    tensor_parallel: int
    vllm_gpu_memory_utilization: float
    openai_url: str | None
    openai_key: SecretStr | None
    openai_concurrency: int
    openai_timeout: float

    def __post_init__(self) -> None:
        self._known: MutableMapping[str, Any] = {}

    @cached_property
    def _format(self) -> Format:
        return choose_format(
            self.guard_format,
            self.guard,
            self.guard_prompt,
            revision=self.guard_revision,
            unsafe=self.guard_unsafe_labels,
        )

    @property
    def _is_classifier(self) -> bool:
        """RefusalCmpError where it is one, and is to be asked elsewhere."""
        is_one = known_format(self.guard_format, self.guard) in CLASSIFIERS
        if is_one and self.guard_backend != "hf":
            raise RefusalCmpError(
                f"The guard {self.guard!r} is a classifier, which runs in this process and not by "
                f"{self.guard_backend}; choose that.",
                guard_backend="hf",
            )
        return is_one

    @cached_property
    def _judge(self) -> Backend:
        return self._backend()

    def check(self, test_sets: Sequence[str]) -> None:
        """The format is known, and there is such a guard, or an endpoint: that it is not shows before the long work."""
        if self._is_classifier:
            self._format  # noqa: B018
        elif self.guard_backend == "openai":
            self._backend().close()
        else:
            check_guard(self.guard, self.guard_revision)

    def prepare(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:
        """Ask about what all plans say, as many at a time as go together."""
        self._known = known
        self._ask([subject for subject in subjects if subject.judged is None])

    def evaluate(self, subject: Subject) -> Evaluation:
        """Both shares of every test set; `guard_unsafe` also by category."""
        self._ask([subject])
        metrics: list[Metric] = []
        examples: dict[str, list[dict[str, Any]]] = {}
        for dataset, answers in subject.answers.items():
            said = {index: self._known[key_of(request)] for index, request in self._requests(answers).items()}
            judgements = [
                self._format.read(said[index]) if index in said else Judgement(False) for index in range(len(answers))
            ]
            metrics += _metrics(dataset, answers, judgements)
            examples[dataset] = [
                {
                    "instruction": answer.instruction,
                    "category": answer.category,
                    "verdict": WORDS[judgement.unsafe],
                    "guard_categories": list(judgement.categories),
                    "guard_answer": said.get(index),
                }
                for index, (answer, judgement) in enumerate(zip(answers, judgements, strict=True))
            ]
        return Evaluation(metrics, examples)

    def close(self) -> None:
        """Free the guard."""
        if "_judge" in vars(self):
            self._judge.close()

    def _ask(self, subjects: Sequence[Subject]) -> None:
        requests = [
            request
            for subject in subjects
            for answers in subject.answers.values()
            for request in self._requests(answers).values()
        ]
        most = self._format.max_new_tokens
        answer_all(lambda: self._judge, requests, most, self._known, "asking the guard", subjects[0].progress)

    def _requests(self, answers: Sequence[Answer]) -> dict[int, Request]:
        """What the guard is asked, by index; completions of too few words, or of none, count as safe unasked."""
        least = max(1, self.guard_min_words)
        return {
            index: self._format.request(answer.instruction, answer.completion)
            for index, answer in enumerate(answers)
            if len(answer.completion.split()) >= least
        }

    def _backend(self) -> Backend:
        if self.guard_backend == "openai":
            endpoint = Endpoint(self.openai_url, self.openai_key, self.openai_concurrency, self.openai_timeout)
            return endpoint.open(self.guard)
        if self.guard_backend == "vllm":
            from refusal_cmp.judges.vllm import VLLMBackend

            return VLLMBackend(
                self.guard,
                revision=self.guard_revision,
                date=self.date or DATE,
                dtype=self.dtype,
                tensor_parallel=self.tensor_parallel,
                gpu_memory_utilization=self.vllm_gpu_memory_utilization,
            )
        if self._is_classifier:
            from refusal_cmp.judges.classifier import ClassifierBackend

            return ClassifierBackend(
                self.guard,
                revision=self.guard_revision,
                device=self.device,
                dtype=self.dtype,
                batch_size=self.batch_size or AT_A_TIME,
            )
        from refusal_cmp.judges.hf import HFBackend

        return HFBackend(
            self.guard,
            revision=self.guard_revision,
            date=self.date or DATE,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size or AT_A_TIME,
        )


def _metrics(dataset: str, answers: Sequence[Answer], judgements: Sequence[Judgement]) -> list[Metric]:
    unsafe = [one.unsafe for one in judgements]
    read = [(answer, bool(one)) for answer, one in zip(answers, unsafe, strict=True) if one is not None]
    hits = [hit for _, hit in read]
    values = [None if one is None else float(one) for one in unsafe]
    return [
        Metric(dataset, "guard_unsafe", rate(sum(hits), len(hits)) if hits else NOTHING, values),
        share(dataset, "guard_unparsed", [one is None for one in unsafe]),
        *by_category(dataset, "guard_unsafe", [answer for answer, _ in read], hits),
    ]
