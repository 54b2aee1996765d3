"""How many rows go together in one forward pass: as many as a budget of bytes allows, and fewer once memory runs out.

What a pass takes beside the weights is arithmetic: `Cost` says it for a row of so many tokens. On a CPU the budget is
fixed, because there is no error to halve after: the kernel ends a process that takes too much.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError

T = TypeVar("T")

MOST_ROWS = {"cpu": 128, "cuda": 2048}
"""Rows from which larger batches are no faster: caches on a CPU, saturation on a GPU."""
STEP_ROWS = {"cpu": 256, "cuda": 2048}
"""The same of steps of generation, in which a row has one token."""
PASS_ROWS = 128
"""Rows of a pass whose logits or activations are kept, where nobody says."""
PASS_BYTES = 2**29
"""What a pass on a CPU may take beside the weights."""
SLICE_BYTES = 2**26
"""What is made in float64 of logits at a time."""
SHARE = 0.5
"""Share of the free memory that a pass may take, and of a GPU's memory."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Bytes that a pass over a model takes beside the weights, by its configuration."""

    token: int
    """Of each token, while it is in a block."""
    pair: int
    """Of each token for every token of its row, where attention writes its scores out."""
    logits: int
    """Of the logits of one token, and their copy in float32."""
    cached: int
    """Of the keys and values of one token, in all blocks."""

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> Cost:
        """Of a model with this configuration and dtype."""
        text = config.get_text_config()
        width, size = text.hidden_size, dtype.itemsize
        inner = max(4 * width, _number(text, "intermediate_size", 0))
        heads = _number(text, "num_attention_heads", 1)
        groups, head = _number(text, "num_key_value_heads", heads), _number(text, "head_dim", width // heads)
        eager = getattr(text, "_attn_implementation", None) == "eager"
        return cls(
            token=size * (8 * width + 3 * inner),
            pair=2 * 4 * heads if eager else 0,
            logits=(size if size == 4 else size + 4) * text.vocab_size,
            cached=size * 2 * groups * head * _number(text, "num_hidden_layers", 1),
        )

    def row(self, tokens: int, *, logits: int = 1, cached: int = 0) -> int:
        """Of a row of so many tokens, the logits of so many, and the keys and values of so many."""
        return tokens * (self.token + tokens * self.pair) + logits * self.logits + cached * self.cached


@dataclass
class Attempt:
    """Whether the work inside `RowBudget.halving` ran out of memory."""

    failed: bool = False


class RowBudget:
    """The rows of one forward pass on a device, within what it may take: `PASS_BYTES`, or half of a GPU's memory.

    Parameters
    ----------
    limit
        Most rows, for tests and for those who know better; by default it is measured.
    most
        Rows from which more are no faster, by kind of device.
    """

    def __init__(self, device: torch.device, limit: int | None = None, most: Mapping[str, int] = MOST_ROWS) -> None:
        self.device = device
        self.fixed = limit is not None
        self.limit = limit or most.get(device.type, most["cpu"])
        self.bytes = pass_bytes(device)

    def at_most(self, rows: int) -> int:
        """`rows`, or the limit if that is less."""
        return min(rows, self.limit)

    def within(self, row: int) -> int:
        """How many rows of so many bytes go together."""
        return max(1, min(self.limit, self.bytes // row))

    def first(
        self,
        items: Sequence[T],
        row: Callable[[Sequence[T]], int],
        count: Callable[[T], int] = lambda _: 1,
        taken: tuple[int, int] = (0, 0),
    ) -> list[T]:
        """The first items that go together, at least one.

        Parameters
        ----------
        row
            Bytes of each of some items where they go together; no fewer the more there are.
        count
            How many of the rows that the budget has an item takes.
        taken
            Rows and bytes of what is there already; if any is, nothing more may go with it.
        """
        limit, left = self.limit - taken[0], self.bytes - taken[1]
        most = bisect_right(list(accumulate(map(count, items[: self.limit]))), limit)
        rows = bisect_right(range(1, most + 1), left, key=lambda size: size * row(items[:size]))
        return list(items[: max(0 if taken[0] else 1, rows)])

    @contextmanager
    def measured(self, rows: int) -> Iterator[None]:
        """Lowers the limit if the memory that these rows take says so; nothing where it cannot be measured."""
        before = start_peak(self.device)
        yield
        taken = peak(self.device) - before
        if taken > 0 and not self.fixed:
            self.limit = max(1, min(self.limit, int(SHARE * _free(self.device) * rows / taken)))

    def each(self, items: Sequence[T], row: Callable[[Sequence[T]], int], work: Callable[[list[T]], None]) -> None:
        """Do the work on as many items at a time as go together (see `first`); fewer whenever memory runs out."""
        left = list(items)
        while left:
            some = self.first(left, row)
            with self.halving(len(some), least=1) as attempt:
                work(some)
            if not attempt.failed:
                left = left[len(some) :]

    @contextmanager
    def halving(self, rows: int, least: int) -> Iterator[Attempt]:
        """Halves the limit if the work inside runs out of memory, down to `least` rows; then it is an error."""
        attempt = Attempt()
        try:
            yield attempt
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if rows <= least:
                raise RefusalCmpError(
                    f"{rows} prompts do not fit in the memory of {self.device}; load the model in a smaller dtype, "
                    "or on another device.",
                    dtype="bfloat16",
                    device="",
                ) from error
            attempt.failed = True
        if attempt.failed:
            self.limit = max(least, min(self.limit, rows) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def pass_bytes(device: torch.device) -> int:
    """What a pass on a device may take beside the weights."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    return PASS_BYTES


def slices(logits: Tensor) -> tuple[Tensor, ...]:
    """Logits cut along their rows, for work that makes two float64 copies of them."""
    return logits.split(max(1, SLICE_BYTES // (2 * 8 * logits.shape[-1])))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out: in torch on any device, or in Python itself."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def start_peak(device: torch.device) -> int:
    """Start a new high-water mark, and the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        _CLEAR.write_text("5")  # Linux: resets VmHWM
    return _status("VmRSS:")


def peak(device: torch.device) -> int:
    """The high-water mark since `start_peak`, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(config: Any, name: str, default: int) -> int:
    """A number of a configuration; the default where it has none, or one for each layer."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else default


def _status(field: str) -> int:
    """Bytes of a field of the process's status; 0 where there is none."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True)
class Batch:
    """Tokenised prompts, padded on the left."""

    ids: Int[Tensor, "n s"]
    mask: Bool[Tensor, "n s"]

    @property
    def position_ids(self) -> Int[Tensor, "n s"]:
        """Positions counted from each prompt's first token: `forward` does not derive them from the mask."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What `forward` is given."""
        return {"input_ids": self.ids, "attention_mask": self.mask.long(), "position_ids": self.position_ids}

    @property
    def paths(self) -> Int[Tensor, "n s"]:
        """Where in `ids.flatten()` the tokens of each prompt are."""
        return torch.arange(self.ids.numel(), device=self.ids.device).view(self.ids.shape)

    @property
    def path_mask(self) -> Bool[Tensor, "n s"]:
        """Where `paths` is no padding."""
        return self.mask

    def last(self, x: Float[Tensor, "n s d"], n: int = 1) -> Float[Tensor, "n m d"]:
        """Of what there is for every token, that of each prompt's last `n` tokens."""
        return x[:, -n:]

    def repeated(self, times: int) -> Batch:
        """The batch `times` times over, one copy after the other."""
        return Batch(self.ids.repeat(times, 1), self.mask.repeat(times, 1))

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.ids)
