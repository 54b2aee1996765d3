"""Greedy generation in batches, with prompts of like length together and finished sequences leaving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from refusal_cmp.progress import Progress, silent

if TYPE_CHECKING:
    from refusal_cmp.model import Batch, ChatModel


@dataclass(frozen=True)
class Completion:
    """What the model answered, and why it stopped."""

    text: str
    n_tokens: int
    finish: Literal["stop", "length", "non-finite"]
    """`stop`: a stop token; `length`: the limit; `non-finite`: the logits held a NaN or an infinity."""


def greedy(
    model: ChatModel,
    instructions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = silent,
) -> list[Completion]:
    """Complete each instruction greedily; the results come in the order of the instructions."""
    completions: dict[int, Completion] = {}
    with torch.inference_mode(), progress("generating", len(instructions)) as advance:
        for indices, batch in model.batches(instructions, batch_size):
            completions.update(zip(indices, _complete(model, batch, max_new_tokens), strict=True))
            advance(len(indices))
    return [completions[index] for index in range(len(instructions))]


def _complete(model: ChatModel, batch: Batch, max_new_tokens: int) -> list[Completion]:
    stop = torch.tensor(sorted(model.stop_ids), device=batch.ids.device)
    tokens: list[list[int]] = [[] for _ in range(len(batch))]
    finish: list[Literal["stop", "length", "non-finite"]] = ["length"] * len(batch)
    active = torch.arange(len(batch))  # the rows still in the batch
    ids, mask, positions, cache = batch.ids, batch.mask.long(), batch.position_ids, None
    for _ in range(max_new_tokens):
        out = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, cache = out.logits[:, -1].float(), out.past_key_values
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
            cache.batch_select_indices(kept)
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [Completion(text, len(ids), why) for text, ids, why in zip(texts, tokens, finish, strict=True)]
