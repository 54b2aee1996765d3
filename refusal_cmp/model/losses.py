"""Cross-entropy of documents under whatever edits are in force, on the right tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.data import Document
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import PASS_ROWS, RowBudget
from refusal_cmp.progress import Progress, silent


class Loss(NamedTuple):
    """Cross-entropy of one document."""

    total: float
    """Sum over the scored tokens, nats; NaN or infinite if the logits were."""
    n_tokens: int


class Scored(NamedTuple):
    """A document as tokens, of which the last `n` are scored."""

    ids: list[int]
    n: int


def encode(model: ChatModel, document: Document, max_tokens: int | None = None) -> Scored:
    """Token ids, and how many at the end are scored: all that follow the prompt, or the first token.

    Parameters
    ----------
    max_tokens
        Most tokens of the document's text; by default as many as the model's context holds.
    """
    limit = model.context
    text = model.tokenizer(document.text, add_special_tokens=document.instruction is None)["input_ids"][:max_tokens]
    if document.instruction is None:
        ids = text[:limit]
        return Scored(ids, max(len(ids) - 1, 0))
    prompt = model.tokenize([document.instruction])[0]
    whole = [*prompt, *text][:limit]
    return Scored(whole, max(len(whole) - len(prompt), 0))


def losses(
    model: ChatModel, documents: Sequence[Scored], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """Cross-entropy of each document; documents of like length share a forward pass."""
    order = sorted(range(len(documents)), key=lambda index: len(documents[index].ids))
    found: dict[int, Loss] = {}
    with torch.inference_mode(), progress("measuring loss", len(order)) as advance:

        def measure(rows: list[int]) -> None:
            totals = _batch_losses(model, [documents[row] for row in rows])
            found.update((row, Loss(total, documents[row].n)) for row, total in zip(rows, totals, strict=True))
            advance(len(rows))

        RowBudget(model.device, batch_size or PASS_ROWS).each(order, measure)
    return [found[index] for index in range(len(documents))]


def next_token_loss(logits: Float[Tensor, "s vocab"], targets: Int[Tensor, " s"]) -> float:
    """Sum of the targets' cross-entropy under the logits before each, nats; float64, as float32 biases sums."""
    return float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))


def _batch_losses(model: ChatModel, documents: Sequence[Scored]) -> list[float]:
    batch = model.batch([document.ids for document in documents])
    keep = max(document.n for document in documents) + 1
    logits = model.forward(keep, **batch.inputs, use_cache=False).logits
    return [
        next_token_loss(row[keep - 1 - n : keep - 1], ids[len(ids) - n :]) if n else 0.0
        for row, ids, (_, n) in zip(logits, batch.ids, documents, strict=True)
    ]
