"""Refusal by substring, the judge of the published work, with degenerate completions counted apart.

A completion that has collapsed into repetition contains no refusal phrase, and is no compliance either.
"""

from __future__ import annotations

from refusal_cmp.evals import Evaluation, Evaluator, Metric, Subject, register_evaluator
from refusal_cmp.judging import Verdict, verdict
from refusal_cmp.statistics import rate

METRICS: dict[str, Verdict] = {"refusal": "refused", "compliance": "complied", "degenerate": "degenerate"}


@register_evaluator("refusal")
class Refusal(Evaluator):
    """Shares of completions that refuse, comply, or are no language, on every test set."""

    def evaluate(self, subject: Subject) -> Evaluation:
        """Three rates on each test set, with Wilson intervals; they add up to one."""
        metrics, examples = [], {}
        for dataset, answers in subject.answers.items():
            verdicts = [verdict(answer.completion, answer.finish) for answer in answers]
            for metric, meant in METRICS.items():
                metrics.append(Metric(dataset, metric, rate(verdicts.count(meant), len(verdicts))))
            non_finite = sum(answer.finish == "non-finite" for answer in answers)
            metrics.append(Metric(dataset, "non_finite", rate(non_finite, len(answers))))
            examples[dataset] = [
                {"instruction": answer.instruction, "category": answer.category, "verdict": one}
                for answer, one in zip(answers, verdicts, strict=True)
            ]
        return Evaluation(metrics, examples)
