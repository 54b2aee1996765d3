"""Cross-entropy and perplexity under a plan: what an edit costs in plain language modelling.

On text sets by name, and `on-distribution`: the model's own unedited completions of harmless prompts. Every
plan sees the same tokens: documents in their order, plain ones cut at `document_tokens`, until `loss_tokens` are
scored or `loss_texts` are read. Questions before answers begin with the system prompt of a plan that is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from itertools import islice
from typing import Any

from refusal_cmp.data import TEXTS, Document, stamped
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator, share
from refusal_cmp.evals._together import Together
from refusal_cmp.model import ChatModel
from refusal_cmp.model.losses import Loss, Scored, Texts, encode
from refusal_cmp.plan import Plan
from refusal_cmp.statistics import Estimate, weighted_mean

ON_DISTRIBUTION = "on-distribution"


@register_evaluator("perplexity")
class Perplexity(Evaluator):
    """Token-weighted loss and perplexity on general text, instruction answers, and the model's own completions."""

    reads = ("model", "baseline")
    measures = (
        Measure(
            "loss",
            "Loss",
            "cross-entropy over the tokens of a text set",
            "nats a token",
            "clustered",
            better="lower",
            positive=True,
        ),
        Measure(
            "perplexity",
            "Perplexity",
            "exp(loss)",
            interval="the loss's, through exp",
            better="lower",
            same_as="loss",
            positive=True,
        ),
        Measure.share(
            "too_long",
            "Too long",
            "texts that are left out, as their prompts are longer than the context",
            shown="if any",
        ),
    )
    order = 6

    def __init__(
        self, texts: tuple[str, ...], loss_tokens: int | None, loss_texts: int | None, document_tokens: int
    ) -> None:
        self.texts, self.document_tokens = texts, document_tokens
        self.loss_tokens, self.loss_texts = loss_tokens, loss_texts
        self._tokens: dict[tuple[str, str], list[Scored]] = {}
        self._too_long: dict[tuple[str, str], Metric] = {}
        self._together: Together[list[Loss]] = Together()

    def check(self, test_sets: Sequence[str]) -> None:
        """The text sets are known, and what they are read from is there."""
        for name in self.texts:
            if name != ON_DISTRIBUTION:
                TEXTS.get(name)
                stamped(name)
            elif "harmless" not in test_sets:
                raise RefusalCmpError(
                    "The text set on-distribution is the unedited model's completions of harmless prompts, and those "
                    "are not among the test sets; add harmless, or choose other texts.",
                    eval_datasets="",
                    texts="",
                )

    def prepare(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:
        """See which plans will be measured in the same passes."""
        self._together.expect(subjects, known)

    def evaluate(self, subject: Subject) -> Evaluation:
        """`loss` in nats a token, clustered by document, and `perplexity`, its exponential."""
        metrics, examples = [], {}
        for name in self.texts:
            key = name, subject.plan.system
            found = self._losses(subject, key)
            totals, weights = [one.total for one in found], [float(one.n_tokens) for one in found]
            loss = weighted_mean(totals, weights)
            means = [total / weight for total, weight in zip(totals, weights, strict=True)]
            perplexity = Estimate(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n)
            metrics += [Metric(name, "loss", loss, means, weights), Metric(name, "perplexity", perplexity)]
            metrics += [self._too_long[key]] if key in self._too_long else []
            examples[name] = [{"loss": one.total, "n_tokens": one.n_tokens} for one in found]
        return Evaluation(metrics, examples)

    def close(self) -> None:
        """Forget what was measured."""
        self._together.forget()

    def _losses(self, subject: Subject, key: tuple[str, str]) -> list[Loss]:
        model = subject.model()
        if key not in self._tokens:
            with model.asked(subject.plan.system):
                self._tokens[key] = self._budgeted(model, key, _documents(subject, key[0]), subject.say)

        def measure(plans: Sequence[Plan], done: MutableMapping[str, Any]) -> list[list[Loss]]:
            some_tokens = subject.plan.tokens != "all"
            texts = Texts(model, self._tokens[key], subject.batch_size, some_tokens=some_tokens)
            return texts.under(plans, done=done, progress=subject.progress)

        return self._together.of(subject.plan, key, measure)

    def _budgeted(
        self, model: ChatModel, key: tuple[str, str], documents: Iterable[Document], say: Callable[[str], None]
    ) -> list[Scored]:
        """The first documents' tokens, cut so that no more than the budget is scored.

        Empty ones are left out, and, which is said, those whose prompt alone is longer than the context.
        """
        name, _ = key
        left, chosen, fits = self.loss_tokens or math.inf, [], []
        for document in islice(documents, self.loss_texts):
            fits.append(document.instruction is None or model.fits([document.instruction])[0])
            if not fits[-1]:
                continue
            scored = encode(model, document, self.document_tokens if document.instruction is None else None)
            if scored.n > left:
                scored = Scored(scored.ids[: len(scored.ids) - scored.n + int(left)], int(left))
            if scored.n > 0:
                chosen.append(scored)
                left -= scored.n
            if left == 0:
                break
        if not all(fits):
            self._too_long[key] = share(name, "too_long", [not fit for fit in fits])
            say(
                f"{name}: {fits.count(False)} of {len(fits)} texts are left out: their prompts are longer than the "
                f"context of {model.context} tokens of {model.name}."
            )
        if len(chosen) < 2:
            raise RefusalCmpError(
                f"The text set {name!r} has fewer than two texts to measure the loss on; choose another."
            )
        return chosen


def _documents(subject: Subject, name: str) -> Iterable[Document]:
    if name != ON_DISTRIBUTION:
        return TEXTS.get(name)()
    return [Document(answer.completion, answer.instruction) for answer in subject.baseline["harmless"]]


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
