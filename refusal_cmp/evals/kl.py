"""How far a plan moves the next-token distribution on harmless prompts, where nothing should change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.batching import slices
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
            positive=True,
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
        instructions = [answer.instruction for answer in subject.answers[DATASET]]
        if self._baseline is None:
            self._baseline = _last_logits(subject.base(), instructions, subject.batch_size)
        model = subject.model()
        with model.edited(subject.plan):
            values = divergences(model, instructions, self._baseline, subject.batch_size)
        examples = [{"instruction": text, "kl": value} for text, value in zip(instructions, values, strict=True)]
        return Evaluation([Metric(DATASET, "kl", mean(values), values)], {DATASET: examples})

    def close(self) -> None:
        """Forget the baseline's logits."""
        self._baseline = None


def _last_logits(model: ChatModel, instructions: list[str], batch_size: int | None) -> Float[Tensor, "n vocab"]:
    return model.per_prompt(instructions, model.last_logits, batch_size)


def divergences(
    model: ChatModel, instructions: list[str], unedited: Float[Tensor, "n vocab"], batch_size: int | None
) -> list[float]:
    """KL(unedited ‖ the edits in force) of the token after each prompt, nats, from the unedited logits."""
    found = torch.full((len(instructions),), torch.nan, dtype=torch.float64)

    def measure(rows: list[int], batch: Batch) -> None:
        logits = model.last_logits(batch).cpu()
        kl = [
            kl_divergence(before.double().log_softmax(-1), after.double().log_softmax(-1))
            for before, after in zip(slices(unedited[rows]), slices(logits), strict=True)
        ]
        found[rows] = torch.cat(kl).clamp(min=0)  # NaN stays NaN

    model.over_batches(instructions, batch_size, measure)
    return found.tolist()
