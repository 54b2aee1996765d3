"""Cross-entropy and perplexity under a plan: what an edit costs in plain language modelling."""

from __future__ import annotations

import math

from refusal_cmp.data import TEXTS
from refusal_cmp.evals import Evaluation, Evaluator, Metric, Subject, register_evaluator
from refusal_cmp.statistics import Estimate, weighted_mean

TEXT_SETS = ("tiny-answers", "tiny-general")


@register_evaluator("perplexity")
class Perplexity(Evaluator):
    """Token-weighted loss and perplexity on instruction answers and on general text."""

    reads = "model"

    def evaluate(self, subject: Subject) -> Evaluation:
        """`loss` in nats a token, clustered by document, and `perplexity`, its exponential."""
        metrics, examples = [], {}
        for name in TEXT_SETS:
            documents = TEXTS.get(name)()[: subject.options["n_documents"]]
            losses = subject.engine().losses(subject.plan, documents, subject.progress)
            loss = weighted_mean([one.total for one in losses], [one.n_tokens for one in losses])
            perplexity = Estimate(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n)
            metrics += [Metric(name, "loss", loss), Metric(name, "perplexity", perplexity)]
            examples[name] = [{"loss": one.total, "n_tokens": one.n_tokens} for one in losses]
        return Evaluation(metrics, examples)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
