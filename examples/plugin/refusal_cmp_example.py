"""A plugin of refusal-cmp: one extractor and one evaluator, each a class with a decorator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from refusal_cmp.activations import Labelled
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.methods import Extractor, register_extractor
from refusal_cmp.statistics import mean
from refusal_cmp.subspace import VANISHING, Subspace


@register_extractor("pca-of-differences")
@dataclass(frozen=True)
class PCAOfDifferences(Extractor):
    """The first principal components of paired differences (Zou et al. 2023b).

    D (n, d): the i-th harmful activation − the i-th harmless one. The right singular vectors of D are the principal
    components of the differences in both orders, D and −D, whose mean is zero (representation engineering,
    arXiv:2310.01405, section 3.1).
    """

    k: int = 1
    """Components to keep: `pca-of-differences[k=2]`."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        """Orthonormal rows, each turned to the harmful side; evidence is the dev accuracy of each one's midpoint."""
        harmful, harmless = train.x[train.y], train.x[~train.y]
        n = min(len(harmful), len(harmless))
        _, sizes, rows = torch.linalg.svd(harmful[:n] - harmless[:n], full_matrices=False)
        basis = rows[sizes > VANISHING * train.scale * n**0.5][: self.k]
        if not len(basis):
            raise NoSubspaceError("the differences vanish")
        upper, lower = basis @ harmful.mean(0), basis @ harmless.mean(0)
        sign = torch.where(upper < lower, -1.0, 1.0).to(basis)
        basis, midpoint = sign[:, None] * basis, sign * (upper + lower) / 2
        accuracy = ((dev.x @ basis.mT > midpoint) == dev.y[:, None]).double().mean(0)
        return Subspace(basis, basis[0], float((upper - lower)[0].abs()), accuracy)


@register_evaluator("first-token-entropy")
class FirstTokenEntropy(Evaluator):
    """How undecided the model is about its answer's first token, under the plan."""

    reads = ("completions", "model")
    measures = (
        Measure(
            "first_token_entropy", "Entropy of the first token", "mean of −Σ p log p over its prompts", "nats", "t"
        ),
    )

    def evaluate(self, subject: Subject) -> Evaluation:
        """The entropy on every test set."""
        model, metrics = subject.model(), []
        with model.edited(subject.plan), torch.inference_mode():
            for dataset, answers in subject.answers.items():
                entropy = torch.empty(len(answers), dtype=torch.float64)
                instructions = [answer.instruction for answer in answers]
                for rows, batch in model.batches(instructions, subject.batch_size or 32):
                    entropy[rows] = torch.special.entr(model.last_logits(batch).double().softmax(-1)).sum(-1).cpu()
                values = entropy.tolist()
                metrics.append(Metric(dataset, "first_token_entropy", mean(values), values))
        return Evaluation(metrics)
