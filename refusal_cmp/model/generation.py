"""Greedy generation in batches, with prompts of like length together and finished sequences leaving."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from refusal_cmp.model.batching import Batch, RowBudget
from refusal_cmp.model.kv_cache import with_room
from refusal_cmp.progress import Progress, silent


class Generates(Protocol):
    """What generation needs of a `ChatModel`."""

    tokenizer: Any

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""

    def tokenize(self, instructions: Sequence[str], max_new_tokens: int = 0) -> list[list[int]]:
        """Token ids of the rendered prompts, which leave room for new ones."""

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Token sequences as one batch, padded on the left."""

    def row_bytes(self, tokens: int, *, cached: int) -> int:
        """What a prompt of so many tokens takes in a pass, with the keys and values of so many."""

    def forward(self, keep: int, **inputs: Any) -> Any:
        """The model's output, with the logits of the last `keep` tokens."""


@dataclass(frozen=True)
class Completion:
    """What the model answered, and why it stopped."""

    text: str
    n_tokens: int
    finish: Literal["stop", "length", "non-finite"]
    """`stop`: a stop token; `length`: the limit; `non-finite`: the logits held a NaN or an infinity."""


def greedy(
    model: Generates,
    instructions: Sequence[str],
    *,
    max_new_tokens: int,
    rows: RowBudget,
    progress: Progress = silent,
    done: MutableMapping[int, Completion] | None = None,
) -> list[Completion]:
    """Complete each instruction greedily; the results come in the order of the instructions.

    Parameters
    ----------
    rows
        How many prompts go together; halved for good when memory runs out.
    done
        Completions by index that there are already; batches of which all are there are skipped, and those of
        each finished batch are added.
    """
    completions: MutableMapping[int, Completion] = {} if done is None else done
    sequences = model.tokenize(instructions, max_new_tokens)
    left = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))

    def row(indices: Sequence[int]) -> int:
        longest = len(sequences[indices[-1]])
        return model.row_bytes(longest, cached=longest + max_new_tokens)

    with torch.inference_mode(), progress("generating", len(instructions)) as advance:
        while left:
            indices = rows.first(left, row)
            if any(index not in completions for index in indices):
                with rows.halving(len(indices), least=1) as attempt:
                    made = _complete(model, model.batch([sequences[index] for index in indices]), max_new_tokens)
                if attempt.failed:
                    continue
                completions.update(zip(indices, made, strict=True))
            left = left[len(indices) :]
            advance(len(indices))
    return [completions[index] for index in range(len(instructions))]


def _complete(model: Generates, batch: Batch, max_new_tokens: int) -> list[Completion]:
    stop = torch.tensor(sorted(model.stop_ids), dtype=torch.long, device=batch.ids.device)
    tokens: list[list[int]] = [[] for _ in range(len(batch))]
    finish: list[Literal["stop", "length", "non-finite"]] = ["length"] * len(batch)
    active = torch.arange(len(batch))  # the rows still in the batch
    ids, mask, positions, cache = batch.ids, batch.mask.long(), batch.position_ids, None
    for _ in range(max_new_tokens):
        out = model.forward(
            1, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = out.logits[:, -1].float()
        cache = with_room(out.past_key_values) if cache is None else out.past_key_values
        chosen = logits.argmax(-1)
        broken = ~logits.isfinite().all(-1)
        done = torch.isin(chosen, stop) | broken
        for row, token, ended, bad in zip(
            active.tolist(), chosen.tolist(), done.tolist(), broken.tolist(), strict=True
        ):
            if ended:
                finish[row] = "non-finite" if bad else "stop"
            else:
                tokens[row].append(token)
        if done.all():
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        ids = chosen[:, None]
        if done.any():
            kept = (~done).nonzero()[:, 0]
            ids, mask, positions, active = ids[kept], mask[kept], positions[kept], active[kept.cpu()]
            cache.reorder_cache(kept)  # unlike batch_select_indices, every kind of layer has it, on any device
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [Completion(text, len(ids), why) for text, ids, why in zip(texts, tokens, finish, strict=True)]


@dataclass(frozen=True)
class Answer:
    """A line of a completions file: a prompt of a test set and what the model said under the plan."""

    instruction: str
    category: str
    completion: str
    n_tokens: int
    finish: str
