"""Keys and values with room to grow: transformers' own cache copies all of them at every token."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens that a layer has room for whenever it is copied."""


def with_room(cache: Any) -> Any:
    """The same cache; its plain layers are replaced, and those that slide, share or recur are left as they are."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = RoomyLayer(layer)
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
        roomy = layer if isinstance(layer, RoomyLayer) else RoomyLayer(layer)
        roomy.join(new, size)
        one.layers[index], other.layers[index] = roomy, None
    return one


class RoomyLayer(DynamicLayer):
    """The keys and values of a layer as the filled part of larger tensors.

    Parameters
    ----------
    layer
        Whose keys and values it takes over.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._whole = (layer.keys, layer.values)

    def update(
        self, key_states: Float[Tensor, "n h s k"], value_states: Float[Tensor, "n h s v"], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens; all of them are returned."""
        filled = self.get_seq_length()
        needed = filled + key_states.shape[-2]
        if self._whole[0].shape[-2] < needed:
            self._whole = (_moved(self.keys, needed + ROOM), _moved(self.values, needed + ROOM))
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., filled:needed, :] = new
        self._fill(needed)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Int[Tensor, " m"]) -> None:
        """Keep these rows only."""
        filled = self.get_seq_length()
        keys, values = (whole.index_select(0, beam_idx.to(whole.device)) for whole in self._whole)
        self._whole = (keys, values)
        self._fill(filled)

    def join(self, other: DynamicLayer, size: int) -> None:
        """Take over the rows of another layer as well, of all the last tokens; what a row has not is zero."""
        self._whole = (_side_by_side(self.keys, other.keys, size), _side_by_side(self.values, other.values, size))
        self._fill(size)

    def _fill(self, length: int) -> None:
        self.keys, self.values = (whole[..., :length, :] for whole in self._whole)


def _side_by_side(
    one: Float[Tensor, "n h t k"], other: Float[Tensor, "m h u k"], size: int
) -> Float[Tensor, "n_and_m h s k"]:
    """The rows of both, aligned at the last of so many tokens, and with room; what is masked has to be a number."""
    whole = one.new_zeros((len(one) + len(other), one.shape[1], size + ROOM, one.shape[-1]))
    for rows, part in ((slice(len(one)), one), (slice(len(one), None), other)):
        there = min(size, part.shape[-2])
        whole[rows, :, size - there : size] = part[..., part.shape[-2] - there :, :]
    return whole


def _moved(filled: Tensor, room: int) -> Tensor:
    """A copy at the beginning of a tensor with room for so many tokens."""
    whole = filled.new_empty((*filled.shape[:-2], room, filled.shape[-1]))
    whole[..., : filled.shape[-2], :] = filled
    return whole
