"""Many plans on the same sequences in few passes: each pass holds several plans, a group of rows for each.

A pass begins on entry to the first block that one of its plans edits, from the unedited stream there. Plans that begin
at one block go together, in the order of their blocks, so that the stream is made once for each block, read on from
where it was needed last: all of them together cost one unedited pass. A plan that edits nothing is read on from the
last block. Where a block reads more of earlier ones than the stream (see `ChatModel.starts_anywhere`), every pass is a
whole one.

What is read of a plan is what a pass of its own gives, to rounding: which plans are read with it decides the last bits.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.edit import LowRankEdit, stack
from refusal_cmp.model.batching import PASS_ROWS, Attempt, Batch, RowBudget
from refusal_cmp.model.chat_model import ChatModel
from refusal_cmp.model.packing import Pack
from refusal_cmp.model.reading import stream_at
from refusal_cmp.plan import Place, Plan, Tokens
from refusal_cmp.progress import Progress, silent

TOGETHER = 8
"""Plans of a pass, at most: work in progress is kept after each."""
MOST_TOKENS = {"cpu": 1024}
"""Tokens of a pass of several plans, where more are no faster: caches on a CPU."""
STREAMS = 0.25
"""Of what a pass may take, the share that the unedited streams may that passes begin from."""

Edits = Mapping[Place, LowRankEdit]


@dataclass(frozen=True)
class Row:
    """A sequence of tokens, of which the last `n` are read: what follows each of them, or the stream there."""

    ids: tuple[int, ...]
    n: int = 1
    written: int = 0
    """How many of its last tokens count as generated, where a plan edits some tokens alone."""


@dataclass
class Part:
    """A batch of rows, by their indices."""

    indices: list[int]
    batch: Batch


Read = Callable[[ChatModel, Batch, Int[Tensor, " m"], list[int]], Float[Tensor, "n ..."]]
"""Given the model, a batch, which of its tokens are read, and the index of the row of each prompt of the batch: values
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
        self.model, self.rows, self.some_tokens = model, rows, some_tokens
        self.budget = RowBudget(model.device, batch_size or PASS_ROWS)
        self._streams: dict[tuple[int, int], Float[Tensor, "r t d"]] = {}
        """By the first row of a part and the block."""

    @cached_property
    def parts(self) -> list[Part]:
        """All rows in batches, which are kept: for rows that are read many times."""
        found: list[Part] = []
        self._over(lambda indices, batch: found.append(Part(indices, batch)))
        return found

    def unedited(self, read: Callable[[ChatModel, Batch, Int[Tensor, " m"], list[int]], None]) -> None:
        """Read all rows of the model as it is, a batch at a time."""
        for part in self.parts:
            with torch.inference_mode():
                read(self.model, part.batch, self._wanted(part.batch, part.indices), part.indices)

    def now(self, read: Read, progress: Progress = silent, doing: str = "reading") -> Float[Tensor, "n ..."]:
        """What is read of every row under whatever edits are in force, in whole passes; float64 on the CPU."""
        found: list[Tensor] = []  # one, as soon as its shape is known
        with torch.inference_mode(), progress(doing, len(self.rows)) as advance:

            def work(indices: list[int], batch: Batch) -> None:
                with self._writing(batch, indices) if self.some_tokens else nullcontext():
                    values = read(self.model, batch, self._wanted(batch, indices), indices).double().cpu()
                _put(found, (len(self.rows),), (indices,), values)
                advance(len(indices))

            self._over(work)
        return found[0] if found else torch.empty(0, dtype=torch.float64)

    def groups(self, plans: Sequence[Plan]) -> list[list[int]]:
        """Which plans go through passes together, by their indices: those that begin at one block, the first first."""
        found: dict[tuple[int, Tokens], list[int]] = defaultdict(list)
        for index, plan in enumerate(plans):
            found[self._start(plan), plan.tokens].append(index)
        some = [found[key] for key in sorted(found)]
        return [of_key[first : first + TOGETHER] for of_key in some for first in range(0, len(of_key), TOGETHER)]

    def measure(self, plans: Sequence[Plan], read: Read) -> Float[Tensor, "p n"]:
        """What is read of every row under each plan of one group; float64 on the CPU."""
        found = torch.full((len(plans), len(self.rows)), torch.nan, dtype=torch.float64)
        for part in self.parts:
            rows = len(part.batch.ids)
            with self.budget.halving(rows, least=rows):
                found[:, part.indices] = self._under(part, plans, read)
        return found

    def over(
        self,
        plans: Sequence[Plan],
        read: Read,
        *,
        done: MutableMapping[str, Any] | None = None,
        name: str = "",
        progress: Progress = silent,
        doing: str = "reading",
    ) -> Float[Tensor, "p n ..."]:
        """What is read of every row under each of any plans, a part of the rows at a time; float64 on the CPU.

        Parameters
        ----------
        done
            What is known of a plan and a part; what is read is added, a group of plans at a time. A group of which any
            is missing is read as a whole: its composition decides the last bits.
        name
            Of what is read, in `done`.
        """
        known: MutableMapping[str, Any] = {} if done is None else done
        groups, found = self.groups(plans), list[Tensor]()
        with progress(doing, len(plans) * len(self.rows)) as advance:

            def work(indices: list[int], batch: Batch) -> None:
                part = Part(indices, batch)
                rows = self._digest(indices)
                self._streams.clear()
                for which in groups:
                    some = [plans[index] for index in which]
                    names = [f"{name} {rows} {plan.digest}" for plan in some]
                    if any(one not in known for one in names):
                        read_now = self._under(part, some, read).tolist()
                        for one, values in zip(names, read_now, strict=True):
                            known[one] = values
                    values = torch.tensor([known[one] for one in names], dtype=torch.float64)
                    at = torch.tensor(which)[:, None], torch.tensor(indices)
                    _put(found, (len(plans), len(self.rows)), at, values)
                    advance(len(which) * len(indices))

            self._over(work)
            self._streams.clear()
        return found[0] if found else torch.empty(len(plans), 0, dtype=torch.float64)

    def _over(self, work: Callable[[list[int], Batch], None]) -> None:
        def row_bytes(some: Sequence[Pack]) -> int:
            logits = max(sum(self.rows[index].n for index in pack.prompts) for pack in some)
            return self.model.row_bytes(some[-1].tokens, logits=logits)

        ids = [row.ids for row in self.rows]
        self.model.over_packs(ids, self.budget, row_bytes, work, shared=not self.some_tokens)

    def _under(self, part: Part, plans: Sequence[Plan], read: Read) -> Float[Tensor, "p m ..."]:
        """What is read of a part under each plan of one group, of as many at a time as go together.

        Where memory does not suffice for one of them, that is left to the caller.
        """
        start, tokens = self._start(plans[0]), plans[0].tokens
        stream, row, rows = self._stream(part, start), self._row_bytes(part), len(part.batch.ids)
        most = MOST_TOKENS.get(self.model.device.type, sys.maxsize) // part.batch.ids.numel()
        found: list[Tensor] = []
        done = 0
        while done < len(plans):
            chunk = plans[done : done + max(1, min(most, self.budget.within(row) // rows))]

            def values(model: ChatModel, batch: Batch) -> Float[Tensor, "gn ..."]:
                every = part.indices * (len(batch) // len(part.indices))
                with nullcontext() if tokens == "all" else self._writing(batch, every):
                    return read(model, batch, self._wanted(batch, every), every)

            alone = len(chunk) == 1
            with nullcontext(Attempt()) if alone else self.budget.halving(len(chunk) * rows, least=rows) as attempt:
                edits = [plan.edits for plan in chunk]
                some = edited_pass(self.model, start, edits, part.batch, stream, values, tokens)
            if not attempt.failed:
                found.append(some.double().cpu())
                done += len(chunk)
        return torch.cat(found)

    def _start(self, plan: Plan) -> int:
        """The first block that a plan changes; the last of a plan that changes none."""
        if not self.model.starts_anywhere:
            return 0
        return min((place.layer for place in plan.edits), default=self.model.n_layers - 1)

    def _stream(self, part: Part, start: int) -> Float[Tensor, "r t d"]:
        """The unedited stream of a part on entry to a block, read on from the last that is known before it."""
        first = part.indices[0]
        if (first, start) in self._streams:
            return self._streams[first, start]
        own = {block: stream for (of, block), stream in self._streams.items() if of == first}
        before = max((block for block in own if block < start), default=None)
        with nullcontext() if before is None else self.model.resumed(before, own[before]):
            stream = stream_at(self.model, part.batch, start)
        if stream.nbytes > self._room():
            for block in own:
                del self._streams[first, block]
        if stream.nbytes <= self._room():
            self._streams[first, start] = stream
        return stream

    def _room(self) -> int:
        """Bytes of streams that may still be kept."""
        return int(STREAMS * self.budget.bytes) - sum(stream.nbytes for stream in self._streams.values())

    def _row_bytes(self, part: Part) -> int:
        """What a row of a part takes in a pass, with the logits of what is read."""
        rows, tokens = part.batch.ids.shape
        read = sum(self.rows[index].n for index in part.indices)
        return self.model.row_bytes(tokens, logits=-(-read // rows))

    def _wanted(self, batch: Batch, indices: Sequence[int]) -> Int[Tensor, " m"]:
        """Where in `batch.ids.flatten()` the tokens are that are read, prompt after prompt."""
        paths = zip(batch.paths, indices, strict=True)
        return torch.cat([path[len(path) - self.rows[index].n :] for path, index in paths])

    def _writing(self, batch: Batch, indices: Sequence[int]) -> AbstractContextManager[None]:
        """Which tokens count as generated, for plans that edit some alone: rows are padded on the left."""
        from_the_end = torch.arange(batch.ids.shape[1], 0, -1, device=batch.ids.device)
        written: Bool[Tensor, "n s"] = from_the_end <= torch.tensor(
            [[self.rows[index].written] for index in indices], device=batch.ids.device
        )
        return self.model.writing(written)

    def _digest(self, indices: Sequence[int]) -> str:
        """Of some rows."""
        return hashlib.sha256(repr([self.rows[index] for index in indices]).encode()).hexdigest()[:32]


def _last_logits(model: ChatModel, batch: Batch) -> Float[Tensor, "n vocab"]:
    return model.last_logits(batch)


def edited_pass(
    model: ChatModel,
    start: int,
    edits: Sequence[Edits],
    batch: Batch,
    stream: Float[Tensor, "r t d"],
    read: Callable[[ChatModel, Batch], Float[Tensor, "gn ..."]] = _last_logits,
    tokens: Tokens = "all",
) -> Float[Tensor, "g n ..."]:
    """What is read of the batch under each of g sets of edits, in one pass from block `start` on."""
    shared: dict[tuple[int, ...], LowRankEdit] = {}
    stacked = {}
    for place in {place for one in edits for place in one}:
        here = [one.get(place) for one in edits]
        key = tuple(map(id, here))  # places with the same edits share one stack
        if key not in shared:
            shared[key] = stack(here)
        stacked[place] = shared[key]
    with (
        torch.inference_mode(),
        model.resumed(start, stream.repeat(len(edits), 1, 1)),
        model.edited(Plan("", stacked, tokens=tokens)),
    ):
        found = read(model, batch.repeated(len(edits)))
    return found.view(len(edits), len(batch), *found.shape[1:])


def _put(found: list[Tensor], shape: tuple[int, ...], at: Any, values: Tensor) -> None:
    """Put values where they belong in what is found, of a shape that the first of them completes."""
    if not found:
        found.append(values.new_full((*shape, *values.shape[len(shape) :]), torch.nan))
    found[0][at] = values
