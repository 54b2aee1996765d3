"""Safety by a guard model: Llama Guard, the HarmBench classifier, or the embedded `tiny-guard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refusal_cmp.evals import Evaluation, Evaluator, Metric, Subject, by_category, register_evaluator, share
from refusal_cmp.judges import Backend, answer_all, check_guard
from refusal_cmp.judges.formats import Format, Judgement, choose_format, known_format
from refusal_cmp.model.generation import Answer
from refusal_cmp.statistics import Estimate, rate

NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
WORDS = {True: "unsafe", False: "safe", None: "unparsed"}


@dataclass
class Judge:
    """A loaded guard, and what it has said in this run."""

    backend: Backend
    format: Format
    known: dict[str, str] = field(default_factory=dict)


@register_evaluator("guard")
class Guard(Evaluator):
    """Share of completions that a guard model calls unsafe, on every test set and in every category."""

    settings = ("guard", "guard_backend", "guard_format", "guard_prompt", "guard_min_words")
    loads_model = True

    def __init__(self) -> None:
        self._judge: Judge | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """The format is known, and there is such a guard, or an endpoint: that it is not shows before the long work."""
        known_format(options["guard_format"], options["guard"])
        if options["guard_backend"] == "openai":
            _backend(options).close()
        else:
            check_guard(options["guard"])

    def evaluate(self, subject: Subject) -> Evaluation:
        """`guard_unsafe` among the answers that can be read, and `guard_unparsed`, the share that cannot."""
        self._judge = self._judge or open_judge(subject.options)
        metrics: list[Metric] = []
        examples: dict[str, list[dict[str, Any]]] = {}
        for dataset, answers in subject.answers.items():
            said = self._ask(self._judge, dataset, answers, subject)
            judgements = [
                self._judge.format.read(said[index]) if index in said else Judgement(False)
                for index in range(len(answers))
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
        if self._judge is not None:
            self._judge.backend.close()

    def _ask(self, judge: Judge, dataset: str, answers: Sequence[Answer], subject: Subject) -> dict[int, str]:
        """What the guard says, by index; completions of too few words, or of none, count as safe unasked."""
        least = max(1, subject.options["guard_min_words"])
        requests = {
            index: judge.format.request(answer.instruction, answer.completion)
            for index, answer in enumerate(answers)
            if len(answer.completion.split()) >= least
        }
        with subject.progress(f"guard: {subject.plan.label}", len(requests)) as advance:
            return answer_all(
                judge.backend,
                requests,
                judge.format.max_new_tokens,
                journal=subject.journal(dataset),
                known=judge.known,
                advance=advance,
            )


def open_judge(options: Mapping[str, Any]) -> Judge:
    """The guard that the settings name, behind the backend that they name."""
    judged_by = choose_format(options["guard_format"], options["guard"], options["guard_prompt"])
    return Judge(_backend(options), judged_by)


def _backend(options: Mapping[str, Any]) -> Backend:
    name = options["guard"]
    if options["guard_backend"] == "openai":
        from refusal_cmp.judges.openai import endpoint

        return endpoint(name, options)
    if options["guard_backend"] == "vllm":
        from refusal_cmp.judges.vllm import VLLMBackend

        return VLLMBackend(
            name,
            dtype=options["dtype"],
            tensor_parallel=options["tensor_parallel"],
            gpu_memory_utilization=options["vllm_gpu_memory_utilization"],
        )
    from refusal_cmp.judges.hf import HFBackend

    return HFBackend(name, device=options["device"], dtype=options["dtype"], batch_size=options["batch_size"])


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
