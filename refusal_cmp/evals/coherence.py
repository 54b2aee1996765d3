"""Is an answer language? Its repetition, its emptiness, and how well the unedited model foresees it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from refusal_cmp.data import Document
from refusal_cmp.evals import Answer, Evaluation, Evaluator, Metric, Subject, register_evaluator, share
from refusal_cmp.judges.completion import Judgement
from refusal_cmp.judges.language import Language, learn, read_answers
from refusal_cmp.judges.phrases import Phrases
from refusal_cmp.model.losses import Loss
from refusal_cmp.plan import BASELINE
from refusal_cmp.statistics import Estimate, mean, rate, weighted_mean

EVERYTHING = "all"
"""The dataset name of all test sets together."""
FEWEST_TRIGRAMS = 8
"""Texts with fewer word trigrams are too short to repeat themselves."""


@register_evaluator("coherence")
class Coherence(Evaluator):
    """Repetition of completions, and whether the unedited model reads their answers as language."""

    reads = ("completions", "baseline", "model")
    settings = ("phrases",)

    def __init__(self) -> None:
        self._language: Language | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """The refusal phrases can be read."""
        Phrases.load(options["phrases"])

    def evaluate(self, subject: Subject) -> Evaluation:
        """Metrics of every test set, and for the baseline how the line between language and none was drawn.

        `distinct_trigrams` is the mean share of word trigrams that are distinct (one for very short texts),
        `compression` the mean ratio of a text's zlib size to its size (small: repetitive), `empty` the share without
        text: all of whole completions. `unedited_loss` is the token-weighted cross-entropy of the answers under the
        unedited model, nats a token; `in_language` the share of answers that it reads as language, and
        `effective_compliance` the share that comply and are.
        """
        metrics: list[Metric] = []
        examples = {}
        if self._language is None:
            self._language = _learn(subject)
        for dataset, answers in subject.answers.items():
            judged = [subject.judge(answer) for answer in answers]
            read = read_answers(
                subject.model(), _documents(answers, judged), subject.options["batch_size"], subject.progress
            )
            in_language = [self._language.holds(loss) for loss in read]
            complied = [one.verdict == "complied" for one in judged]
            metrics += [*_form(dataset, answers), _unedited_loss(dataset, read)]
            metrics.append(share(dataset, "in_language", in_language))
            effective = [fluent and answered for fluent, answered in zip(in_language, complied, strict=True)]
            metrics.append(share(dataset, "effective_compliance", effective))
            examples[dataset] = [
                {"instruction": answer.instruction, "in_language": fluent, "unedited_loss": loss.total, "n_tokens": n}
                for answer, fluent, loss, n in zip(
                    answers, in_language, read, [loss.n_tokens for loss in read], strict=True
                )
            ]
        if subject.plan.label == BASELINE:
            metrics += _errors(self._language)
        return Evaluation(metrics, examples)


def distinct_trigrams(words: Sequence[str]) -> float:
    """The share of word trigrams that are distinct; one for texts too short to repeat."""
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if len(trigrams) >= FEWEST_TRIGRAMS else 1.0


def _learn(subject: Subject) -> Language:
    own = [
        document
        for answers in subject.baseline.values()
        for document in _documents(answers, [subject.judge(answer) for answer in answers])
    ]
    return learn(subject.model(), own, subject.options["batch_size"], subject.progress)


def _documents(answers: Sequence[Answer], judged: Sequence[Judgement]) -> list[Document]:
    """What was said, after its prompt: the loop after it is foreseen too well to be read."""
    return [Document(one.answer, answer.instruction) for answer, one in zip(answers, judged, strict=True)]


def _form(dataset: str, answers: Sequence[Answer]) -> list[Metric]:
    texts = [answer.completion for answer in answers]
    trigrams, compression = [distinct_trigrams(text.split()) for text in texts], [_compression(text) for text in texts]
    return [
        Metric(dataset, "distinct_trigrams", mean(trigrams), trigrams),
        Metric(dataset, "compression", mean(compression), compression),
        share(dataset, "empty", [not text.strip() for text in texts]),
    ]


def _compression(text: str) -> float:
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 0.0


def _unedited_loss(dataset: str, read: Sequence[Loss]) -> Metric:
    there = [one for one in read if one.n_tokens]
    estimate = weighted_mean([one.total for one in there], [one.n_tokens for one in there])
    return Metric(dataset, "unedited_loss", estimate)


def _errors(language: Language) -> list[Metric]:
    """The line and how often it errs, of all test sets together."""
    alarms, misses = language.false_alarms, language.misses
    metrics = [Metric(EVERYTHING, "language_threshold", Estimate(language.threshold, math.nan, math.nan, alarms.n))]
    for name, error in (("language_false_alarms", alarms), ("language_misses", misses)):
        if error.n:
            metrics.append(Metric(EVERYTHING, name, rate(error.wrong, error.n)))
    return metrics
