"""Many plans on the same sequences in few passes: each pass holds several plans, a group of rows for each.

A pass begins on entry to the first block that one of its plans edits, from the unedited stream, which is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.batching import PASS_ROWS, RowBudget
from refusal_cmp.model.packing import Pack
from refusal_cmp.model.reading import stream_at
from refusal_cmp.plan import Plan, Tokens
from refusal_cmp.selection.scoring import edited_pass

TOGETHER = 8
"""Plans of a pass, at most: work in progress is kept after each."""


@dataclass(frozen=True)
class Row:
    """A sequence of tokens, of which the last `n` are read: what follows each of them, or the stream there."""

    ids: tuple[int, ...]
    n: int = 1

    @property
    def written(self) -> int:
        """How many of its last tokens are an answer's, where a plan edits some tokens alone: all read but the first,
        which is the prompt's last."""
        return self.n - 1


@dataclass
class Part:
    """A batch of rows, by their indices, with the unedited streams that passes have begun from, by block."""

    indices: list[int]
    batch: Batch
    streams: dict[int, Float[Tensor, "r t d"]] = field(default_factory=dict)


Read = Callable[[ChatModel, Batch, Int[Tensor, " m"], list[int]], Float[Tensor, " n"]]
"""Given the model, a batch, which of its tokens are read, and the index of the row of each prompt of the batch: a value
for each prompt."""


class Passes:
    """Rows in batches, and what is read of them under plans.

    Parameters
    ----------
    some_tokens
        Whether plans will edit some tokens alone: rows that begin alike then share nothing, as what is a prompt in one
        may be an answer in another.
    """

    def __init__(
        self, model: ChatModel, rows: Sequence[Row], batch_size: int | None = None, *, some_tokens: bool = False
    ) -> None:
        self.model, self.rows = model, rows
        self.budget = RowBudget(model.device, batch_size or PASS_ROWS)
        self.parts: list[Part] = []

        def row_bytes(some: Sequence[Pack]) -> int:
            logits = max(sum(rows[index].n for index in pack.prompts) for pack in some)
            return model.row_bytes(some[-1].tokens, logits=logits)

        def keep(indices: list[int], batch: Batch) -> None:
            self.parts.append(Part(indices, batch))

        model.over_packs([row.ids for row in rows], self.budget, row_bytes, keep, shared=not some_tokens)

    def unedited(self, read: Callable[[ChatModel, Batch, Int[Tensor, " m"], list[int]], None]) -> None:
        """Read all rows of the model as it is, a batch at a time."""
        for part in self.parts:
            with torch.inference_mode():
                read(self.model, part.batch, self._wanted(part.batch, part.indices), part.indices)

    def groups(self, plans: Sequence[Plan]) -> list[list[int]]:
        """Which plans go through passes together, by their indices: those that begin at one block."""
        found: dict[tuple[int, Tokens], list[int]] = defaultdict(list)
        for index, plan in enumerate(plans):
            found[_start(plan), plan.tokens].append(index)
        return [some[first : first + TOGETHER] for some in found.values() for first in range(0, len(some), TOGETHER)]

    def measure(self, plans: Sequence[Plan], read: Read) -> Float[Tensor, "p n"]:
        """What is read of every row under each plan of one group."""
        start, tokens = _start(plans[0]), plans[0].tokens
        found = torch.full((len(plans), len(self.rows)), torch.nan, dtype=torch.float64)
        for part in self.parts:
            stream, done = self._stream(part, start), 0
            row = self._row_bytes(part)
            while done < len(plans):
                size = max(1, self.budget.within(row) // len(part.batch.ids))
                chunk = plans[done : done + size]

                def values(model: ChatModel, batch: Batch, indices: list[int] = part.indices) -> Float[Tensor, " gn"]:
                    every = indices * (len(batch) // len(indices))
                    with self._writing(batch, every, tokens):
                        return read(model, batch, self._wanted(batch, every), every)

                n = len(chunk) * len(part.batch.ids)
                with self.budget.halving(n, least=len(part.batch.ids)) as attempt:
                    edits = [plan.edits for plan in chunk]
                    some = edited_pass(self.model, start, edits, part.batch, stream, values, tokens)
                if attempt.failed:
                    continue
                found[done : done + len(chunk), part.indices] = some.double().cpu()
                done += len(chunk)
        return found

    def _stream(self, part: Part, start: int) -> Float[Tensor, "r t d"]:
        if start not in part.streams:
            part.streams[start] = stream_at(self.model, part.batch, start)
        return part.streams[start]

    def _row_bytes(self, part: Part) -> int:
        """What a row of a part takes in a pass, with the logits of what is read."""
        rows, tokens = part.batch.ids.shape
        read = sum(self.rows[index].n for index in part.indices)
        return self.model.row_bytes(tokens, logits=-(-read // rows))

    def _wanted(self, batch: Batch, indices: Sequence[int]) -> Int[Tensor, " m"]:
        """Where in `batch.ids.flatten()` the tokens are that are read, prompt after prompt."""
        paths = zip(batch.paths, indices, strict=True)
        return torch.cat([path[len(path) - self.rows[index].n :] for path, index in paths])

    def _writing(self, batch: Batch, indices: Sequence[int], tokens: Tokens):  # type: ignore[no-untyped-def]
        """Which tokens count as generated, for plans that edit some alone."""
        if tokens == "all":
            return nullcontext()
        from_the_end = torch.arange(batch.ids.shape[1], 0, -1, device=batch.ids.device)
        written: Bool[Tensor, "n s"] = from_the_end <= torch.tensor(
            [[self.rows[index].written] for index in indices], device=batch.ids.device
        )
        return self.model.writing(written)


def _start(plan: Plan) -> int:
    """The first block that a plan changes."""
    return min((place.layer for place in plan.edits), default=0)
