"""Attention on a CPU without copies of keys and values for heads that share them.

Where several query heads share a key head, transformers repeats keys and values for each before it calls torch,
unless it knows that torch groups heads itself. On a CPU torch does, with a mask and without, to the same bits: in a
step of generation with three query heads to a key head the copies take more time than the attention.
"""

from __future__ import annotations

from torch import Tensor
from transformers.integrations import sdpa_attention

_known = sdpa_attention.use_gqa_in_sdpa


def group_heads() -> None:
    """Let transformers, in this process, leave the grouping of heads on a CPU to torch."""
    sdpa_attention.use_gqa_in_sdpa = _groups


def _groups(mask: Tensor | None, key: Tensor, value: Tensor) -> bool:
    """Whether torch groups heads itself: on a CPU where keys and values are of one width."""
    return (key.device.type == "cpu" and key.shape[-1] == value.shape[-1]) or _known(mask, key, value)
