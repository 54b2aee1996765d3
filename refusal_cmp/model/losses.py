"""Cross-entropy of documents under whatever edits are in force, on the right tokens only."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.data import Document
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.batching import PASS_ROWS, RowBudget, slices
from refusal_cmp.model.packing import Pack
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
    written: int = 0
    """How many of its last tokens count as generated, where a plan edits some tokens alone."""


def losses(
    model: ChatModel, documents: Sequence[Scored], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """Cross-entropy of each document; those that begin alike share a row, and those of like length a pass.

    A document whose logits are more than a pass may take is scored in pieces, each read after all that precedes it.
    For a plan that edits the tokens of prompts or generated ones alone, what is scored counts as generated, and what
    precedes it as the prompt: of an answer, its question; of a plain text, its first token.
    """
    budget = RowBudget(model.device, batch_size or PASS_ROWS)
    rows: dict[_Row, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, document in enumerate(documents):
        for row, targets in _pieces(document, most_scored(model, budget)):
            rows[row if model.edits_some_tokens else row._replace(written=0)].append((index, targets))
    found = [Loss(0.0, document.n) for document in documents]
    distinct = list(rows)

    def row_bytes(some: Sequence[Pack]) -> int:
        return model.row_bytes(some[-1].tokens, logits=max(sum(distinct[i].n for i in pack.prompts) for pack in some))

    with torch.inference_mode(), progress("measuring loss", len(rows)) as advance:

        def measure(indices: list[int], batch: Batch) -> None:
            some = [distinct[index] for index in indices]
            wanted = torch.cat([path[len(path) - row.n :] for path, row in zip(batch.paths, some, strict=True)])
            with model.writing(_written(batch, some)) if model.edits_some_tokens else nullcontext():
                logits = model.forward_at(batch, wanted, use_cache=False).logits
            for row, of_row in zip(some, logits.split([row.n for row in some]), strict=True):
                for index, targets in rows[row]:
                    found[index] = _added(found[index], of_row, targets)
            advance(len(some))

        shared = not model.edits_some_tokens  # of what two begin with alike, one may be a prompt and one an answer
        model.over_packs([row.ids for row in distinct], budget, row_bytes, measure, shared=shared)
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
    first = len(ids) - n
    for start in range(first, len(ids), most):
        end = min(start + most, len(ids))
        yield _Row(tuple(ids[: end - 1]), end - start, end - 1 - first), ids[start:end]


def _written(batch: Batch, rows: Sequence[_Row]) -> Bool[Tensor, "n s"]:
    """Which tokens of rows that are padded on the left count as generated."""
    from_the_end = torch.arange(batch.ids.shape[1], 0, -1, device=batch.ids.device)
    return from_the_end <= torch.tensor([[row.written] for row in rows], device=batch.ids.device)


def _added(loss: Loss, logits: Float[Tensor, "n vocab"], targets: Sequence[int]) -> Loss:
    """The loss with that of more tokens."""
    wanted = torch.tensor(targets, device=logits.device)
    is_greedy = bool((logits.argmax(-1) == wanted).all())
    return loss._replace(total=loss.total + next_token_loss(logits, wanted), is_greedy=loss.is_greedy and is_greedy)
