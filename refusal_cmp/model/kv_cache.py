"""Keys and values with room to grow: transformers' own cache copies all of them at every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens that a layer has room for whenever it is copied."""


def with_room(cache: Any, *, whole: bool = False) -> Any:
    """The same cache; its plain layers are replaced, and those that slide, share or recur are left as they are.

    Parameters
    ----------
    whole
        Attention is given the room as well where that is quicker; see `RoomyLayer`.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = RoomyLayer(layer, whole=whole)
    return cache


def is_plain(cache: Any) -> bool:
    """Whether every layer keeps the keys and values of all tokens, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def along(cache: Any, paths: Int[Tensor, "n s"]) -> Any:
    """The same cache, with a row for each prompt instead of rows that several share.

    Parameters
    ----------
    paths
        Where the tokens of each prompt are among all tokens of all rows.
    """
    for layer in cache.layers:
        layer.keys, layer.values = (
            of_all.transpose(1, 2).flatten(0, 1)[paths.to(of_all.device)].transpose(1, 2)
            for of_all in (layer.keys, layer.values)
        )
    return cache


def joined(one: Any, other: Any, size: int) -> Any:
    """The rows of one cache and then those of another, aligned at their last tokens; `other` is used up.

    Parameters
    ----------
    size
        How many of the last tokens are kept: those before them are padding of every row.
    """
    for index, (layer, new) in enumerate(zip(one.layers, other.layers, strict=True)):
        layer.join(new, size)
        other.layers[index] = None
    return one


class RoomyLayer(DynamicLayer):
    """The keys and values of a layer as the filled part of larger tensors, which have room for tokens and for rows.

    Rows that leave make room for those that come, so that few are copied. Where rows have room between them a CPU
    takes twice as long to read them: there attention is given the room as well, which its mask hides.

    Parameters
    ----------
    layer
        Whose keys and values it takes over.
    whole
        The model's masks are as long as its cache says that keys and values are.
    """

    def __init__(self, layer: DynamicLayer, *, whole: bool) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._whole = (layer.keys, layer.values)
        self._gives_whole = whole and layer.keys.device.type == "cpu"

    def update(
        self, key_states: Float[Tensor, "n h s k"], value_states: Float[Tensor, "n h s v"], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens; what attention is to read is returned."""
        rows, filled = len(self.keys), self.get_seq_length()
        size = self._size(key_states.shape[-2])
        if self._whole[0].shape[-2] < size:
            self._whole = (_beside([self.keys], filled, size), _beside([self.values], filled, size))
        needed = filled + key_states.shape[-2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:rows, :, filled:needed] = new
        self._fill(rows, needed)
        return (self._whole[0][:rows], self._whole[1][:rows]) if self._gives_whole else (self.keys, self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys and values `update` will return, and the first of them."""
        return self._size(query_length) if self._gives_whole else self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " m"]) -> None:
        """Keep these rows only; those that stay where they are are not copied."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero()[:, 0]
        for whole in self._whole:
            whole[moved.to(whole.device)] = whole[beam_idx[moved].to(whole.device)]
        self._fill(len(beam_idx), self.get_seq_length())

    def join(self, other: DynamicLayer, size: int) -> None:
        """Take over the rows of another layer as well, aligned at the last of so many tokens."""
        mine, rows = len(self.keys), len(self.keys) + len(other.keys)
        if all(len(whole) >= rows and whole.shape[-2] >= size for whole in self._whole):
            for whole, old, new in zip(self._whole, (self.keys, self.values), (other.keys, other.values), strict=True):
                if size != old.shape[-2]:
                    _write(whole[:mine], old.clone(), size)
                _write(whole[mine:rows], new, size)
        else:
            room = size + ROOM
            self._whole = (
                _beside([self.keys, other.keys], size, room),
                _beside([self.values, other.values], size, room),
            )
        self._fill(rows, size)

    def _size(self, tokens: int) -> int:
        """Of the tensors that have room for so many more tokens."""
        there, needed = self._whole[0].shape[-2], self.get_seq_length() + tokens
        return there if there >= needed else needed + ROOM

    def _fill(self, rows: int, length: int) -> None:
        self.keys, self.values = (whole[:rows, :, :length] for whole in self._whole)


def _beside(parts: Sequence[Float[Tensor, "_ h _ k"]], size: int, room: int) -> Float[Tensor, "n h room k"]:
    """The rows of all parts, aligned at the last of so many tokens, in a tensor with room."""
    some = parts[0]
    whole = some.new_empty((sum(map(len, parts)), some.shape[1], room, some.shape[-1]))
    for rows, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
        _write(rows, part, size)
    return whole


def _write(rows: Float[Tensor, "n h room k"], part: Float[Tensor, "n h t k"], size: int) -> None:
    """Write a part so that it ends with the last of so many tokens; zeros elsewhere, as what is masked is read too."""
    begin = size - min(size, part.shape[-2])
    rows[:, :, :begin] = 0
    rows[:, :, begin:size] = part[:, :, part.shape[-2] - (size - begin) :]
    rows[:, :, size:] = 0
