"""How far a plan moves the next-token distribution on harmless prompts, where nothing should change."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.evals._together import Together
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.batching import slices
from refusal_cmp.model.passes import Passes, Row
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.progress import Progress, silent
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
        self._together: Together[list[float]] = Together()

    def check(self, test_sets: Sequence[str]) -> None:
        """Harmless prompts are among the test sets."""
        if DATASET not in test_sets:
            raise RefusalCmpError(
                "The evaluator kl needs harmless among the test sets; add it, or leave kl out.",
                eval_datasets="",
                evals="",
            )

    def prepare(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:
        """See which plans will be measured in the same passes."""
        self._together.expect([one for one in subjects if one.plan.label != BASELINE], known)

    def evaluate(self, subject: Subject) -> Evaluation:
        """The mean over prompts with its interval."""
        instructions = [answer.instruction for answer in subject.answers[DATASET]]
        if self._baseline is None:
            self._baseline = subject.base().per_prompt(instructions, subject.base().last_logits, subject.batch_size)
        baseline = self._baseline

        def measure(plans: Sequence[Plan], done: MutableMapping[str, Any]) -> list[list[float]]:
            size, progress = subject.batch_size, subject.progress
            return divergences(subject.model(), instructions, baseline, plans, size, done=done, progress=progress)

        if subject.plan.label == BASELINE:
            values = _kl(baseline, baseline).tolist()
        else:
            values = self._together.of(subject.plan, DATASET, measure)
        examples = [{"instruction": text, "kl": value} for text, value in zip(instructions, values, strict=True)]
        return Evaluation([Metric(DATASET, "kl", mean(values), values)], {DATASET: examples})

    def close(self) -> None:
        """Forget the baseline's logits."""
        self._baseline = None
        self._together.forget()


def divergences(
    model: ChatModel,
    instructions: list[str],
    unedited: Float[Tensor, "n vocab"],
    plans: Sequence[Plan],
    batch_size: int | None,
    *,
    done: MutableMapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[list[float]]:
    """KL(unedited ‖ plan) of the token after each prompt for each plan, nats, from the unedited logits.

    All plans have the same system prompt, if any.

    Parameters
    ----------
    done
        What is known of plans; see `Passes.over`.
    """
    with model.asked(plans[0].system):
        rows = [Row(tuple(ids)) for ids in model.tokenize(instructions)]

    def read(model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]) -> Float[Tensor, " n"]:
        return _kl(unedited[indices], model.forward_at(batch, at, use_cache=False).logits.float().cpu())

    passes = Passes(model, rows, batch_size, some_tokens=any(plan.tokens != "all" for plan in plans))
    return passes.over(plans, read, done=done, name="kl", progress=progress, doing="measuring KL").tolist()


def _kl(unedited: Float[Tensor, "n vocab"], edited: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """Of each prompt's logits, float64."""
    kl = [
        kl_divergence(before.double().log_softmax(-1), after.double().log_softmax(-1))
        for before, after in zip(slices(unedited), slices(edited), strict=True)
    ]
    return torch.cat(kl).clamp(min=0)  # NaN stays NaN
