"""The transformers engine: our hooks around the model in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.data import Document
from refusal_cmp.engines import Engine, Loss
from refusal_cmp.generation import Completion
from refusal_cmp.model import ChatModel
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent


class HFEngine(Engine):
    """Runs a `ChatModel` under plans.

    Parameters
    ----------
    batch_size
        Prompts or documents in one forward pass.
    """

    def __init__(self, model: ChatModel, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size

    def generate(
        self, plan: Plan, instructions: Sequence[str], max_new_tokens: int, progress: Progress = silent
    ) -> list[Completion]:
        """Greedy completions under the plan, in the order of the instructions."""
        with self.model.edited(plan):
            return self.model.generate(
                instructions, max_new_tokens=max_new_tokens, batch_size=self.batch_size, progress=progress
            )

    def losses(self, plan: Plan, documents: Sequence[Document], progress: Progress = silent) -> list[Loss]:
        """Cross-entropy of each document's text under the plan; an instruction before it is not scored."""
        encoded = [self._encode(document) for document in documents]
        order = sorted(range(len(documents)), key=lambda index: len(encoded[index][0]))
        losses: dict[int, Loss] = {}
        with (
            self.model.edited(plan),
            torch.inference_mode(),
            progress("measuring loss", len(order)) as advance,
        ):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                totals = self._batch_losses([encoded[row][0] for row in rows], [encoded[row][1] for row in rows])
                losses.update((row, Loss(total, encoded[row][1])) for row, total in zip(rows, totals, strict=True))
                advance(len(rows))
        return [losses[index] for index in range(len(documents))]

    def _encode(self, document: Document) -> tuple[list[int], int]:
        """Token ids, and how many at the end are scored: all that follow the prompt, or the first token."""
        model, tokenizer = self.model, self.model.tokenizer
        limit = model.model.config.get_text_config().max_position_embeddings
        if document.instruction is None:
            ids = tokenizer(document.text)["input_ids"][:limit]
            return ids, len(ids) - 1
        prompt = model.tokenize([document.instruction])[0]
        whole = [*prompt, *tokenizer(document.text, add_special_tokens=False)["input_ids"]][:limit]
        return whole, len(whole) - len(prompt)

    def _batch_losses(self, sequences: list[list[int]], scored: list[int]) -> list[float]:
        batch = self.model.batch(sequences)
        keep = max(scored) + 1
        logits = self.model.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        return [
            next_token_loss(row[keep - 1 - n : keep - 1], ids[len(ids) - n :]) if n else 0.0
            for row, ids, n in zip(logits, batch.ids, scored, strict=True)
        ]


def next_token_loss(logits: Float[Tensor, "s vocab"], targets: Int[Tensor, " s"]) -> float:
    """Sum of the targets' cross-entropy under the logits before each, nats; float64, as float32 biases sums."""
    return float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
