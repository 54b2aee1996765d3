"""Cross-entropy of documents on the right tokens only: under whatever edits are in force, or under many plans."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.data import Document
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.batching import PASS_ROWS, RowBudget, slices
from refusal_cmp.model.passes import Passes, Row
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent

DOING = "measuring loss"


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


class Texts:
    """Documents as rows of passes: those that begin alike share a row, and those of like length a pass.

    A document whose logits are more than a pass may take is scored in pieces, each read after all that precedes it.
    For a plan that edits the tokens of prompts or generated ones alone, what is scored counts as generated, and what
    precedes it as the prompt: of an answer, its question; of a plain text, its first token.

    Parameters
    ----------
    some_tokens
        Whether plans edit some tokens alone.
    """

    def __init__(
        self,
        model: ChatModel,
        documents: Sequence[Scored],
        batch_size: int | None = None,
        *,
        some_tokens: bool = False,
    ) -> None:
        most = most_scored(model, RowBudget(model.device, batch_size or PASS_ROWS))
        targets: dict[Row, list[list[int]]] = defaultdict(list)
        self._where: list[tuple[int, Row, int]] = []
        """Of each piece the document, the row, and which of its targets."""
        for index, document in enumerate(documents):
            for piece, scored in _pieces(document, most):
                row = piece if some_tokens else replace(piece, written=0)
                self._where.append((index, row, len(targets[row])))
                targets[row].append(scored)
        self._documents = documents
        self._targets = list(targets.values())
        self._row = {row: index for index, row in enumerate(targets)}
        self._width = max(map(len, self._targets), default=0)
        self._passes = Passes(model, list(targets), batch_size, some_tokens=some_tokens)

    def now(self, progress: Progress = silent) -> list[Loss]:
        """The loss of each document under whatever edits are in force."""
        return self._losses(self._passes.now(self._read, progress, DOING))

    def under(
        self,
        plans: Sequence[Plan],
        *,
        done: MutableMapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> list[list[Loss]]:
        """The loss of each document under each plan; there are no edits but theirs. See `Passes.over`."""
        found = self._passes.over(plans, self._read, done=done, name="loss", progress=progress, doing=DOING)
        return [self._losses(of_plan) for of_plan in found]

    def _read(
        self, model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]
    ) -> Float[Tensor, "n w 2"]:
        """For each row's targets the sum of their losses, and whether each is the likeliest."""
        logits = model.forward_at(batch, at, use_cache=False).logits
        found = torch.full((len(indices), self._width, 2), torch.nan, dtype=torch.float64)
        parts = logits.split([self._passes.rows[index].n for index in indices])
        for of_prompt, index, of_row in zip(found, indices, parts, strict=True):
            for values, targets in zip(of_prompt, self._targets[index], strict=False):  # the rest has none
                wanted = torch.tensor(targets, device=of_row.device)
                values[0] = next_token_loss(of_row, wanted)
                values[1] = float((of_row.argmax(-1) == wanted).all())
        return found

    def _losses(self, found: Float[Tensor, "r w 2"]) -> list[Loss]:
        losses = [Loss(0.0, document.n) for document in self._documents]
        for index, row, which in self._where:
            total, is_greedy = found[self._row[row], which].tolist()
            before = losses[index]
            losses[index] = before._replace(total=before.total + total, is_greedy=before.is_greedy and bool(is_greedy))
        return losses


def losses(
    model: ChatModel, documents: Sequence[Scored], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """Cross-entropy of each document under whatever edits are in force; see `Texts`."""
    return Texts(model, documents, batch_size, some_tokens=model.edits_some_tokens).now(progress)


def most_scored(model: ChatModel, budget: RowBudget) -> int:
    """Tokens of one row whose logits take half of a pass's budget; no end where code makes all of them anyway."""
    one = model.row_bytes(0)
    return max(1, budget.bytes // (2 * one)) if one else sys.maxsize


def next_token_loss(logits: Float[Tensor, "s vocab"], targets: Int[Tensor, " s"]) -> float:
    """Sum of the targets' cross-entropy under the logits before each, nats; float64, as float32 biases sums."""
    parts = zip(slices(logits), targets.split([len(part) for part in slices(logits)]), strict=True)
    return float(sum(torch.nn.functional.cross_entropy(part.double(), of, reduction="sum") for part, of in parts))


def _pieces(document: Scored, most: int) -> Iterator[tuple[Row, list[int]]]:
    """The rows that the scored tokens of a document are foreseen by, and the tokens."""
    ids, n = document
    first = len(ids) - n
    for start in range(first, len(ids), most):
        end = min(start + most, len(ids))
        yield Row(tuple(ids[: end - 1]), end - start, end - 1 - first), ids[start:end]
