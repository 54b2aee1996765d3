"""Does the projection on the refusal direction track how much the model refuses? On the unedited model.

For each prompt: x · û at the component that selection chose, against the refusal metric at the last position
and against the judged refusal of the completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from refusal_cmp.config import EVERYTHING
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.judges.phrases import Phrases
from refusal_cmp.model import Batch, ChatModel, refusal_metric
from refusal_cmp.model.reading import streams_at
from refusal_cmp.plan import BASELINE
from refusal_cmp.planning import Selected
from refusal_cmp.statistics import Estimate, resampled

Array = np.ndarray


@register_evaluator("magnitude")
class Magnitude(Evaluator):
    """Correlation of the projection on each method's direction with refusal; measured on the baseline alone."""

    reads = ("completions", "model", "subspaces")
    measures = tuple(
        Measure(
            f"magnitude_{name}:*",
            heading,
            f"{what} projection on a method's direction",
            interval="bootstrap",
            shown="never",
            limits=(least, 1.0),
        )
        for name, heading, what, least in (
            ("pearson", "r", "Pearson's r of refusal metric and", -1.0),
            ("spearman", "ρ", "Spearman's ρ of refusal metric and", -1.0),
            ("auroc", "AUROC", "AUROC of telling refused completions by", 0.0),
        )
    )
    order = 8

    def __init__(self, phrases: str | Path = "published") -> None:
        self._phrases = Phrases.load(phrases)

    def evaluate(self, subject: Subject) -> Evaluation:
        """Each method's three measures, on each test set and on all of them together.

        One that is not defined, because nothing varies, is left out.
        """
        if subject.plan.label != BASELINE:
            return Evaluation([])
        selected, metrics, examples = subject.selected(), [], {}
        rows = {dataset: _measure(subject, dataset, selected, self._phrases) for dataset in subject.answers}
        everything = [row for of_set in rows.values() for row in of_set]
        for dataset, of_set in (*rows.items(), (EVERYTHING, everything)):
            for one in selected:
                metrics += _metrics(dataset, one.field.method, of_set)
        for dataset, of_set in rows.items():
            examples[dataset] = of_set
        return Evaluation(metrics, examples)


def _measure(subject: Subject, dataset: str, selected: Sequence[Selected], phrases: Phrases) -> list[dict[str, object]]:
    answers = subject.answers[dataset]
    instructions = [answer.instruction for answer in answers]
    projected, metric = projections(subject.model(), instructions, selected, subject.refusal_tokens, subject.batch_size)
    return [
        {
            "instruction": answer.instruction,
            "projection": {method: float(values[row]) for method, values in projected.items()},
            "refusal_metric": float(metric[row]),
            "refused": subject.judge(answer, phrases).verdict == "refused",
        }
        for row, answer in enumerate(answers)
    ]


def projections(
    model: ChatModel,
    instructions: Sequence[str],
    selected: Sequence[Selected],
    refusal_tokens: Sequence[int],
    batch_size: int | None,
) -> tuple[Mapping[str, Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """x · û of each method at its selected component, and the refusal metric, for every prompt; float64."""
    directions = torch.stack([one.field[one.component].direction for one in selected])
    components = [one.component for one in selected]

    def measure(batch: Batch) -> Float[Tensor, "b m"]:
        streams, logits = streams_at(model, batch, components)
        metric = refusal_metric(logits, refusal_tokens)
        return torch.cat([(streams.cpu() * directions).sum(-1), metric[:, None].cpu()], dim=1)

    *projected, metric = model.per_prompt(instructions, measure, batch_size).unbind(1)
    return {one.field.method: of_method for one, of_method in zip(selected, projected, strict=True)}, metric


def _metrics(dataset: str, method: str, rows: Sequence[Mapping[str, object]]) -> list[Metric]:
    projection = np.array([row["projection"][method] for row in rows])  # type: ignore[index]
    metric = np.array([row["refusal_metric"] for row in rows], dtype=float)
    refused = np.array([row["refused"] for row in rows], dtype=float)
    found: dict[str, Estimate] = {
        "pearson": resampled(_pearson, projection, metric),
        "spearman": resampled(_spearman, projection, metric),
        "auroc": resampled(_auroc, projection, refused),
    }
    return [
        Metric(dataset, f"magnitude_{name}:{method}", estimate)
        for name, estimate in found.items()
        if np.isfinite(estimate.value)
    ]


def _pearson(x: Array, y: Array) -> float:
    return float(pearsonr(x, y).statistic) if np.ptp(x) and np.ptp(y) else np.nan


def _spearman(x: Array, y: Array) -> float:
    return float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else np.nan


def _auroc(x: Array, refused: Array) -> float:
    return float(roc_auc_score(refused, x)) if np.ptp(refused) else np.nan
