"""Greedy generation in batches, with prompts of like length together and finished sequences leaving."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.model.batching import Batch, RowBudget
from refusal_cmp.model.kv_cache import along, with_room
from refusal_cmp.model.packing import Pack, PackedBatch
from refusal_cmp.progress import Progress, silent


class Generates(Protocol):
    """What generation needs of a `ChatModel`."""

    tokenizer: Any

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""

    def tokenize(self, instructions: Sequence[str], max_new_tokens: int = 0) -> list[list[int]]:
        """Token ids of the rendered prompts, which leave room for new ones."""

    @property
    def shares_cache(self) -> bool:
        """Whether prompts that share a row leave keys and values that can be told apart."""

    def over_packs(
        self,
        sequences: Sequence[Sequence[int]],
        rows: RowBudget,
        row: Callable[[Sequence[Pack]], int],
        work: Callable[[list[int], Batch], None],
        *,
        shared: bool,
    ) -> None:
        """Do the work on as many token sequences at a time as go together."""

    def row_bytes(self, tokens: int, *, logits: int, cached: int) -> int:
        """What a row of so many tokens takes in a pass, with the logits, and the keys and values, of so many."""

    def forward(self, keep: int, **inputs: Any) -> Any:
        """The model's output, with the logits of the last `keep` tokens."""

    def forward_at(self, batch: Batch, at: Int[Tensor, " m"], *, use_cache: bool) -> Any:
        """The model's output on a batch, with the logits of some of its tokens."""


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

    def row(some: Sequence[Pack]) -> int:
        longest = max(len(sequences[index]) for pack in some for index in pack.prompts)
        most = max(map(Pack.size, some))
        return model.row_bytes(some[-1].tokens, logits=most, cached=most * (longest + max_new_tokens))

    with torch.inference_mode(), progress("generating", len(instructions)) as advance:

        def complete(indices: list[int], batch: Batch) -> None:
            if any(index not in completions for index in indices):
                completions.update(zip(indices, _complete(model, batch, max_new_tokens), strict=True))
            advance(len(indices))

        model.over_packs(sequences, rows, row, complete, shared=model.shares_cache)
    return [completions[index] for index in range(len(instructions))]


def _complete(model: Generates, batch: Batch, max_new_tokens: int) -> list[Completion]:
    stop = torch.tensor(sorted(model.stop_ids), dtype=torch.long, device=batch.ids.device)
    tokens: list[list[int]] = [[] for _ in range(len(batch))]
    finish: list[Literal["stop", "length", "non-finite"]] = ["length"] * len(batch)
    active = torch.arange(len(batch))  # the rows still in the batch
    mask = batch.path_mask.long()
    positions = mask.sum(-1, keepdim=True) - 1
    logits, cache = _read(model, batch)
    for n_new in range(1, max_new_tokens + 1):
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
        if done.all() or n_new == max_new_tokens:
            break
        ids, positions = chosen[:, None], positions + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        if done.any():
            kept = (~done).nonzero()[:, 0]
            ids, mask, positions, active = ids[kept], mask[kept], positions[kept], active[kept.cpu()]
            cache.reorder_cache(kept)  # unlike batch_select_indices, every kind of layer has it, on any device
        out = model.forward(
            1, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits, cache = out.logits[:, -1].float(), out.past_key_values
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [Completion(text, len(ids), why) for text, ids, why in zip(texts, tokens, finish, strict=True)]


def _read(model: Generates, batch: Batch) -> tuple[Float[Tensor, "n vocab"], Any]:
    """The logits that follow the prompts, float32, and their keys and values, a row for each prompt."""
    if isinstance(batch, PackedBatch):
        out = model.forward_at(batch, batch.paths[:, -1], use_cache=True)
        return out.logits.float(), with_room(along(out.past_key_values, batch.paths))
    out = model.forward(1, **batch.inputs, use_cache=True)
    return out.logits[:, -1].float(), with_room(out.past_key_values)


@dataclass(frozen=True)
class Answer:
    """A line of a completions file: a prompt of a test set and what the model said under the plan."""

    instruction: str
    category: str
    completion: str
    n_tokens: int
    finish: str
