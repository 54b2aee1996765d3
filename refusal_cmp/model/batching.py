"""How many rows fit in one forward pass: measured on a real one, and halved when memory runs out all the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Bool, Int
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError

T = TypeVar("T")

MOST_ROWS = {"cpu": 128, "cuda": 2048}
"""Rows from which larger batches are no faster: caches on a CPU, saturation on a GPU."""
PASS_ROWS = 128
"""Rows of a pass whose logits or activations are kept, where nobody says: these take the memory, not the pass."""
SHARE = 0.5
"""Share of the free memory that a pass may take."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Attempt:
    """Whether the work inside `RowBudget.halving` ran out of memory."""

    failed: bool = False


class RowBudget:
    """The rows of one forward pass on a device.

    Parameters
    ----------
    limit
        Most rows, for tests and for those who know better; by default it is measured.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.device = device
        self.fixed = limit is not None
        self.limit = limit or MOST_ROWS.get(device.type, MOST_ROWS["cpu"])

    def at_most(self, rows: int) -> int:
        """`rows`, or the limit if that is less."""
        return min(rows, self.limit)

    @contextmanager
    def measured(self, rows: int) -> Iterator[None]:
        """Lowers the limit if the memory that these rows take says so; nothing where it cannot be measured."""
        before = start_peak(self.device)
        yield
        taken = peak(self.device) - before
        if taken > 0 and not self.fixed:
            self.limit = max(1, min(self.limit, int(SHARE * _free(self.device) * rows / taken)))

    def each(self, items: Sequence[T], work: Callable[[list[T]], None]) -> None:
        """Do the work on as many items at a time as the limit says, in order; fewer whenever memory runs out."""
        left = list(items)
        while left:
            some = left[: self.limit]
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

    def repeated(self, times: int) -> Batch:
        """The batch `times` times over, one copy after the other."""
        return Batch(self.ids.repeat(times, 1), self.mask.repeat(times, 1))

    def __len__(self) -> int:
        return len(self.ids)
