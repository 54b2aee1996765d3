"""Attention without copies of keys and values for query heads that share them.

Where several query heads share a key head, transformers repeats keys and values for each before it calls torch,
unless it knows that torch groups heads itself. In a step of generation the copies take more time than the attention.

- On a CPU torch groups heads, with a mask and without, to the same bits.
- A step of generation has one query of each head, so that the heads of a group can stand where other queries of one
  head would: they see the same keys under the same mask. On a GPU, where torch groups heads without a mask alone, they
  do; and on a CPU in float32, where two plain products take half the time of torch's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations import sdpa_attention

_known = sdpa_attention.use_gqa_in_sdpa
_plain = sdpa_attention.sdpa_attention_forward


def group_heads() -> None:
    """Let transformers, in this process, make no copies of keys and values where none are needed."""
    sdpa_attention.use_gqa_in_sdpa = _groups
    AttentionInterface.register("sdpa", _attention)


def _groups(mask: Tensor | None, key: Tensor, value: Tensor) -> bool:
    """Whether torch groups heads itself: on a CPU where keys and values are of one width."""
    return (key.device.type == "cpu" and key.shape[-1] == value.shape[-1]) or _known(mask, key, value)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention by torch; what would copy keys and values in a step of generation goes past it."""
    if _is_step(query, attention_mask, options):
        scale = options.get("scaling")
        if key.device.type == "cpu" and key.dtype == torch.float32:
            return step(query, key, value, attention_mask, scale, _by_products), None
        if key.shape[1] < query.shape[1] and not _groups(attention_mask, key, value):
            return step(query, key, value, attention_mask, scale, _by_torch), None
    return _plain(module, query, key, value, attention_mask, **options)


def _is_step(query: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    """Whether there is one query of each head, and nothing but a mask that is the same for all."""
    others = options.get("dropout") or any(options.get(name) is not None for name in ("position_bias", "cache"))
    return query.shape[2] == 1 and not others and (mask is None or mask.shape[1] == 1)


Mask = Bool[Tensor, "n 1 1 s"] | Float[Tensor, "n 1 1 s"] | None


def step(
    query: Float[Tensor, "n h 1 k"],
    key: Float[Tensor, "n g s k"],
    value: Float[Tensor, "n g s v"],
    mask: Mask,
    scale: float | None,
    attend: Callable[[Tensor, Tensor, Tensor, Mask, float], Float[Tensor, "n g r v"]],
) -> Float[Tensor, "n 1 h v"]:
    """What one query of each head reads, heads that share keys side by side."""
    n, heads, _, width = query.shape
    by_group = query.view(n, key.shape[1], heads // key.shape[1], width)
    read = attend(by_group, key, value, mask, width**-0.5 if scale is None else scale)
    return read.reshape(n, 1, heads, -1)


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float) -> Tensor:
    scores = (query * scale) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ value
