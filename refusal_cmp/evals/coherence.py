"""Is a completion language? Its repetition, its emptiness, and how likely the unedited model finds it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from refusal_cmp.data import Document
from refusal_cmp.evals import Evaluation, Evaluator, Metric, Subject, register_evaluator, share
from refusal_cmp.judges.phrases import distinct_trigrams
from refusal_cmp.model.generation import Answer
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.statistics import mean, weighted_mean


@register_evaluator("coherence")
class Coherence(Evaluator):
    """Repetition of completions, and their loss under the unedited model."""

    reads = ("completions", "model")

    def evaluate(self, subject: Subject) -> Evaluation:
        """For every test set: `distinct_trigrams`, `compression`, `empty` and `unedited_loss`.

        `distinct_trigrams` is the mean share of word trigrams that are distinct (one for very short texts),
        `compression` the mean ratio of a text's zlib size to its size (small: repetitive), and `unedited_loss` the
        token-weighted cross-entropy of the completions under the unedited model, nats a token.
        """
        metrics: list[Metric] = []
        for dataset, answers in subject.answers.items():
            texts = [answer.completion for answer in answers]
            for name, values in (
                ("distinct_trigrams", [distinct_trigrams(text.split()) for text in texts]),
                ("compression", [_compression(text) for text in texts]),
            ):
                metrics.append(Metric(dataset, name, mean(values), values))
            empty = [not text.strip() for text in texts]
            metrics.append(share(dataset, "empty", empty))
            metrics.append(_unedited_loss(subject, dataset, answers))
        return Evaluation(metrics)


def _compression(text: str) -> float:
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 0.0


def _unedited_loss(subject: Subject, dataset: str, answers: Sequence[Answer]) -> Metric:
    model = subject.model()
    documents = [encode(model, Document(answer.completion, answer.instruction)) for answer in answers]
    found = losses(model, documents, subject.batch_size, subject.progress)
    there = [one for one in found if one.n_tokens]
    estimate = weighted_mean([one.total for one in there], [one.n_tokens for one in there])
    return Metric(dataset, "unedited_loss", estimate)
