"""Cross-entropy of documents under whatever edits are in force, on the right tokens only."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.data import Document
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import PASS_ROWS, RowBudget, slices
from refusal_cmp.progress import Progress, silent


class Loss(NamedTuple):
    """Cross-entropy of one document."""

    total: float
    """Sum over the scored tokens, nats; NaN or infinite if the logits were."""
    n_tokens: int
    is_greedy: bool = True
    """Whether each scored token is the likeliest."""


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


class _Row(NamedTuple):
    """What one row of a pass reads, and how many of its last tokens' logits are wanted."""

    ids: tuple[int, ...]
    n: int


def losses(
    model: ChatModel, documents: Sequence[Scored], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """Cross-entropy of each document; those of like length share a pass, those that differ in their last token a row.

    A document whose logits are more than a pass may take is scored in pieces, each read after all that precedes it.
    """
    budget = RowBudget(model.device, batch_size or PASS_ROWS)
    rows: dict[_Row, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, document in enumerate(documents):
        for row, targets in _pieces(document, most_scored(model, budget)):
            rows[row].append((index, targets))
    found = [Loss(0.0, document.n) for document in documents]
    with torch.inference_mode(), progress("measuring loss", len(rows)) as advance:

        def measure(some: list[_Row]) -> None:
            for row, logits in zip(some, _last_logits(model, some), strict=True):
                for index, targets in rows[row]:
                    found[index] = _added(found[index], logits, targets)
            advance(len(some))

        budget.each(sorted(rows, key=lambda row: (len(row.ids), row.n)), lambda some: _row_bytes(model, some), measure)
    return found


def most_scored(model: ChatModel, budget: RowBudget) -> int:
    """Tokens of one row whose logits take half of a pass's budget; no end where code makes all of them anyway."""
    one = model.row_bytes(0)
    return max(1, budget.bytes // (2 * one)) if one else sys.maxsize


def next_token_loss(logits: Float[Tensor, "s vocab"], targets: Int[Tensor, " s"]) -> float:
    """Sum of the targets' cross-entropy under the logits before each, nats; float64, as float32 biases sums."""
    parts = zip(slices(logits), targets.split([len(part) for part in slices(logits)]), strict=True)
    return float(sum(torch.nn.functional.cross_entropy(part.double(), of, reduction="sum") for part, of in parts))


def _pieces(document: Scored, most: int) -> Iterator[tuple[_Row, list[int]]]:
    """The rows that the scored tokens of a document are foreseen by, and the tokens."""
    ids, n = document
    for start in range(len(ids) - n, len(ids), most):
        end = min(start + most, len(ids))
        yield _Row(tuple(ids[: end - 1]), end - start), ids[start:end]


def _row_bytes(model: ChatModel, rows: Sequence[_Row]) -> int:
    return model.row_bytes(len(rows[-1].ids), logits=max(row.n for row in rows))


def _last_logits(model: ChatModel, rows: Sequence[_Row]) -> Iterator[Float[Tensor, "n vocab"]]:
    """The logits that each row wants, from one pass."""
    batch = model.batch([row.ids for row in rows])
    logits = model.forward(max(row.n for row in rows), **batch.inputs, use_cache=False).logits
    for row, of_row in zip(rows, logits, strict=True):
        yield of_row[len(of_row) - row.n :]


def _added(loss: Loss, logits: Float[Tensor, "n vocab"], targets: Sequence[int]) -> Loss:
    """The loss with that of more tokens."""
    wanted = torch.tensor(targets, device=logits.device)
    is_greedy = bool((logits.argmax(-1) == wanted).all())
    return loss._replace(total=loss.total + next_token_loss(logits, wanted), is_greedy=loss.is_greedy and is_greedy)
