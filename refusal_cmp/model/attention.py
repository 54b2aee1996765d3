"""Attention without copies of keys and values for query heads that share them.

Where several query heads share a key head, transformers repeats keys and values for each before it calls torch,
unless it knows that torch groups heads itself. In a step of generation the copies take more time than the attention.

- On a CPU torch groups heads, with a mask and without, to the same bits.
- On a GPU its kernels do so without a mask alone. A step of generation has one query of each head, so that the heads of
  a group can stand where other queries of one head would: they see the same keys under the same mask.
"""

from __future__ import annotations

from typing import Any

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
    is_step = query.shape[2] == 1 and key.shape[1] < query.shape[1] and not options.get("dropout")
    is_plain = options.get("position_bias") is None and options.get("cache") is None
    copies = is_step and is_plain and not _groups(attention_mask, key, value)
    if copies and attention_mask is not None and attention_mask.shape[1] == 1:
        return step(query, key, value, attention_mask, options.get("scaling")), None
    return _plain(module, query, key, value, attention_mask, **options)


def step(
    query: Float[Tensor, "n h 1 k"],
    key: Float[Tensor, "n g s k"],
    value: Float[Tensor, "n g s v"],
    mask: Bool[Tensor, "n 1 1 s"] | Float[Tensor, "n 1 1 s"],
    scale: float | None,
) -> Float[Tensor, "n 1 h v"]:
    """What one query of each head reads, heads that share keys side by side."""
    n, heads, _, width = query.shape
    by_group = query.view(n, key.shape[1], heads // key.shape[1], width)
    read = scaled_dot_product_attention(by_group, key, value, attn_mask=mask, scale=scale)
    return read.reshape(n, 1, heads, -1)
