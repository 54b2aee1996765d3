"""How far a plan moves the next-token distribution on harmless prompts, where nothing should change."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.model import ChatModel
from refusal_cmp.selection.scoring import kl_divergence
from refusal_cmp.statistics import mean

DATASET = "harmless"


@register_evaluator("kl")
class KL(Evaluator):
    """Mean KL(baseline ‖ plan) of the first answer token on harmless test prompts, nats."""

    reads = ("completions", "model")
    measures = (
        Measure(
            "kl",
            "KL to the baseline",
            "mean KL(unedited ‖ edited) of the first answer token on harmless test prompts",
            "nats",
            "t",
            better="lower",
            is_distance=True,
        ),
    )
    order = 7

    def __init__(self) -> None:
        self._baseline: Float[Tensor, "n vocab"] | None = None

    def check(self, test_sets: Sequence[str]) -> None:
        """Harmless prompts are among the test sets."""
        if DATASET not in test_sets:
            raise RefusalCmpError(
                "The evaluator kl needs harmless among the test sets; add it, or leave kl out.",
                eval_datasets="",
                evals="",
            )

    def evaluate(self, subject: Subject) -> Evaluation:
        """The mean over prompts with its interval."""
        model = subject.model()
        instructions = [answer.instruction for answer in subject.answers[DATASET]]
        if self._baseline is None:
            self._baseline = last_log_probs(model, instructions, subject.batch_size)
        with model.edited(subject.plan):
            edited = last_log_probs(model, instructions, subject.batch_size)
        values = kl_divergence(self._baseline, edited).clamp(min=0).tolist()  # NaN stays NaN
        examples = [{"instruction": text, "kl": value} for text, value in zip(instructions, values, strict=True)]
        return Evaluation([Metric(DATASET, "kl", mean(values), values)], {DATASET: examples})


def last_log_probs(model: ChatModel, instructions: list[str], batch_size: int | None) -> Float[Tensor, "n vocab"]:
    """Log-probabilities of the token after each prompt, float64, on the CPU."""
    return model.per_prompt(instructions, lambda batch: model.last_logits(batch).double().log_softmax(-1), batch_size)
