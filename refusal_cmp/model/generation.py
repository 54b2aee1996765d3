"""Greedy generation in a batch that stays full: prompts enter as answers end, each under the plan of its job.

Prompts of a job that begin alike share rows while they are read; their keys and values then join those of the rows
that are written on, aligned at their last tokens. What goes together follows from the jobs and the budget alone, so
that work that is done again is done in the same batches, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_cmp.model.batching import Batch, RowBudget
from refusal_cmp.model.by_row import PlansByRow
from refusal_cmp.model.kv_cache import along, joined, with_room
from refusal_cmp.model.linear import prepacked
from refusal_cmp.model.packing import Pack, PackedBatch
from refusal_cmp.plan import Plan, baseline
from refusal_cmp.progress import Progress, silent

ROUND = 4
"""Batches that a round of work fills: it is what a kill, or a lack of memory, costs at most."""
LEAVE = 16
"""Rows that have ended leave once they are one in so many: others take their place, and are copied."""
REFILL = 4
"""Prompts enter once a batch has room for one in so many of its rows."""


class Generates(Protocol):
    """What generation needs of a `ChatModel`."""

    tokenizer: Any

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""

    def tokenize(self, instructions: Sequence[str], max_new_tokens: int = 0) -> list[list[int]]:
        """Token ids of the rendered prompts, which leave room for new ones."""

    def asked(self, system: str) -> AbstractContextManager[None]:
        """Inside the block prompts begin with this system prompt, if it is one."""

    @property
    def shares_cache(self) -> bool:
        """Whether prompts that share a row leave keys and values that can be told apart."""

    @property
    def masks_room(self) -> bool:
        """Whether attention may be given keys and values that are not there yet."""

    def in_packs(
        self,
        sequences: Sequence[Sequence[int]],
        rows: RowBudget,
        row: Callable[[Sequence[Pack]], int],
        shared: bool,
        most: int,
    ) -> list[Pack]:
        """Token sequences in the packs that share a row, of no more than so many."""

    def packed(self, sequences: Sequence[Sequence[int]], some: Sequence[Pack]) -> tuple[list[int], Batch]:
        """The batch of some packs, and which sequences it holds in which order."""

    def edited(self, plan: Plan) -> AbstractContextManager[Any]:
        """Inside the block all rows are under the plan."""

    def edited_by_row(self, plans: Sequence[Plan]) -> AbstractContextManager[PlansByRow]:
        """Inside the block each row is under a plan of its own."""

    def row_bytes(self, tokens: int, *, logits: int, cached: int) -> int:
        """What a row of so many tokens takes in a pass, with the logits, and the keys and values, of so many."""

    def forward(self, keep: int, **inputs: Any) -> Any:
        """The model's output, with the logits of the last `keep` tokens."""

    def forward_at(self, batch: Batch, at: Int[Tensor, " m"], *, use_cache: bool) -> Any:
        """The model's output on a batch, with the logits of some of its tokens."""


@dataclass(frozen=True)
class Completion:
    """What the model answered, and why it stopped."""

    text: str
    n_tokens: int
    finish: Literal["stop", "length", "non-finite"]
    """`stop`: a stop token; `length`: the limit; `non-finite`: the logits held a NaN or an infinity."""


@dataclass(frozen=True, eq=False)
class Job:
    """Prompts to be completed under a plan."""

    plan: Plan
    """It edits beside whatever edits are in force."""
    instructions: Sequence[str]
    done: MutableMapping[int, Completion]
    """Completions by the index of their instruction: those that there are already, and each new one as it is made."""

    @property
    def is_done(self) -> bool:
        """Whether no completion is missing."""
        return len(self.done) == len(self.instructions)


def greedy(
    model: Generates,
    instructions: Sequence[str],
    *,
    max_new_tokens: int,
    rows: RowBudget,
    progress: Progress = silent,
    done: MutableMapping[int, Completion] | None = None,
) -> list[Completion]:
    """Complete each instruction greedily under the edits in force; the results come in the order of the instructions.

    Parameters
    ----------
    rows, done
        As for `complete` and `Job`.
    """
    job = Job(baseline(), instructions, {} if done is None else done)
    complete(model, [job], max_new_tokens=max_new_tokens, rows=rows, progress=progress)
    return [job.done[index] for index in range(len(instructions))]


def complete(
    model: Generates,
    jobs: Sequence[Job],
    *,
    max_new_tokens: int,
    rows: RowBudget,
    progress: Progress = silent,
    finished: Callable[[Job], None] = lambda _: None,
) -> None:
    """Complete the prompts of all jobs greedily, rows of several plans together.

    A round of which any completion is missing is made again as a whole: the composition of batches decides the last
    bits of the logits, and it is that of the jobs as they are given, whatever of them is done.

    Parameters
    ----------
    rows
        How many rows go together; halved for good when memory runs out.
    finished
        Told of each job once none of its completions is missing.
    """
    wanted = sum(len(job.instructions) for job in jobs)
    with torch.inference_mode(), prepacked(), progress("generating", wanted) as advance:
        notes = _Notes(jobs, advance, finished)
        left = _prompts(model, jobs, max_new_tokens)
        while left:
            some = _round(model, left, max_new_tokens, rows)
            if all(notes.has(prompt) for prompt in some.prompts):
                left = left[len(some.prompts) :]
                continue
            with rows.halving(min(len(some.prompts), some.rows), least=1) as attempt:
                _work_off(model, jobs, some, rows, notes)
            if not attempt.failed:
                left = left[len(some.prompts) :]


class _Prompt(NamedTuple):
    """A prompt of a job, and how long it is beside others: those of one class share a batch."""

    job: int
    at: int
    ids: Sequence[int]
    length_class: int


@dataclass(frozen=True)
class _Round:
    """Work that is done, or done again, as a whole."""

    prompts: Sequence[_Prompt]
    max_new_tokens: int
    rows: int
    """Of a batch, as memory allows."""

    @property
    def tokens(self) -> int:
        """Of the longest row at its end."""
        return max(len(prompt.ids) for prompt in self.prompts) + self.max_new_tokens


class _Entry(NamedTuple):
    """Prompts of a job that are read in one row."""

    prompts: tuple[_Prompt, ...]
    tokens: int

    def size(self) -> int:
        """How many prompts it has."""
        return len(self.prompts)


@dataclass
class _Row:
    """An answer in the making, or one that has ended and whose row is still read along."""

    prompt: _Prompt
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class _Notes:
    """What is made: a job is given its completions of a round once all of them are there."""

    jobs: Sequence[Job]
    advance: Callable[[int], None]
    finished: Callable[[Job], None]
    made: dict[int, dict[int, Completion]] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for job in self.jobs:
            self.advance(len(job.done))
            if job.is_done:
                self.finished(job)

    def has(self, prompt: _Prompt) -> bool:
        """Whether the job has its completion."""
        return prompt.at in self.jobs[prompt.job].done

    def begin(self, prompts: Sequence[_Prompt]) -> None:
        """A round of these prompts."""
        self.made = {prompt.job: {} for prompt in prompts}
        self.wanted = {number: sum(prompt.job == number for prompt in prompts) for number in self.made}

    def add(self, prompt: _Prompt, completion: Completion) -> None:
        """One more is made, or made again."""
        job, made = self.jobs[prompt.job], self.made[prompt.job]
        made[prompt.at] = completion
        if len(made) < self.wanted[prompt.job]:
            return
        new = [index for index in sorted(made) if index not in job.done]
        for index in new:
            job.done[index] = made[index]
        self.advance(len(new))
        if new and job.is_done:
            self.finished(job)


def _prompts(model: Generates, jobs: Sequence[Job], max_new_tokens: int) -> list[_Prompt]:
    """The prompts of all jobs, in their order: first those that, with their answers, are less than twice the shortest.

    Then those of less than four times, and so on, since a row is padded to the length of those beside it.
    """
    read: dict[tuple[str, tuple[str, ...]], list[list[int]]] = {}
    for job in jobs:
        asked = job.plan.system, tuple(job.instructions)
        if asked not in read:  # plans have the same prompts
            with model.asked(job.plan.system):
                read[asked] = model.tokenize(job.instructions, max_new_tokens)
    least = min((len(ids) for sequences in read.values() for ids in sequences), default=0) + max_new_tokens
    found = [
        _Prompt(number, index, ids, ((len(ids) + max_new_tokens) // max(1, least)).bit_length())
        for number, job in enumerate(jobs)
        for index, ids in enumerate(read[job.plan.system, tuple(job.instructions)])
    ]
    return sorted(found, key=lambda prompt: (prompt.length_class, prompt.job, len(prompt.ids), prompt.at))


def _round(model: Generates, prompts: Sequence[_Prompt], max_new_tokens: int, rows: RowBudget) -> _Round:
    """The first prompts that make a round: of one class of lengths, which is divided into equal rounds."""
    alike = next([*some] for _, some in groupby(prompts, key=lambda prompt: prompt.length_class))
    longest = max(len(prompt.ids) for prompt in alike)
    together = rows.within(model.row_bytes(1, logits=1, cached=longest + max_new_tokens))
    most = together * (ROUND if model.shares_cache else 1)
    rounds = -(-len(alike) // most)
    return _Round(alike[: -(-len(alike) // rounds)], max_new_tokens, together)


def _entries(model: Generates, some: _Round, rows: RowBudget, row: Callable[[Sequence[Any]], int]) -> list[_Entry]:
    """The prompts of a round in the rows that they are read in, job by job, the shortest rows of a job first."""
    most = some.rows if len(some.prompts) <= some.rows else max(1, some.rows // REFILL)
    found = []
    known: dict[tuple[tuple[int, ...], ...], list[Pack]] = {}
    for _, of_job in groupby(some.prompts, key=lambda prompt: prompt.job):
        prompts = list(of_job)
        sequences = tuple(tuple(prompt.ids) for prompt in prompts)
        if sequences not in known:  # plans have the same prompts
            known[sequences] = model.in_packs(sequences, rows, row, model.shares_cache, most)
        found += [_Entry(tuple(prompts[at] for at in pack.prompts), pack.tokens) for pack in known[sequences]]
    return found


def _work_off(model: Generates, jobs: Sequence[Job], some: _Round, rows: RowBudget, notes: _Notes) -> None:
    """Complete the prompts of a round."""

    def row(entries: Sequence[Any]) -> int:
        most = max(entry.size() for entry in entries)
        return model.row_bytes(max(entry.tokens for entry in entries), logits=most, cached=most * some.tokens)

    waiting = _entries(model, some, rows, row)
    with _under(model, jobs, some) as told:
        running = _Running(model, some.max_new_tokens, notes, told)
        held, edits = model.row_bytes(1, logits=1, cached=some.tokens), _edit_bytes(jobs, some)
        notes.begin(some.prompts)
        while waiting or running.now.rows:
            n = running.now.live
            if waiting and (not n or (model.shares_cache and some.rows - n >= max(1, some.rows // REFILL))):
                entering = rows.first(waiting, row, _Entry.size, taken=(n, n * held + edits))
                waiting = waiting[len(entering) :]
                if entering:
                    running.enter(entering)
                    continue
            running.step()


def _edit_bytes(jobs: Sequence[Job], some: _Round) -> int:
    """What the edits of a round's plans take in float32, by themselves and side by side; places share edits."""
    numbers = {prompt.job for prompt in some.prompts}
    edits = {id(edit): edit for number in numbers for edit in jobs[number].plan.edits.values()}
    return 2 * 4 * sum(term.numel() for edit in edits.values() for term in edit.tensors().values())


_Told = Callable[[Sequence[_Prompt], bool], None]
"""Told before a pass which prompts its rows are of, and whether it is generated tokens that they hold."""


@contextmanager
def _under(model: Generates, jobs: Sequence[Job], some: _Round) -> Iterator[_Told]:
    """Inside the block the rows of a round are under the plans of their jobs."""
    plans: list[Plan] = []
    at: dict[int, int] = {}
    for number in dict.fromkeys(prompt.job for prompt in some.prompts):
        plan = jobs[number].plan
        known = [index for index, other in enumerate(plans) if other is plan]
        at[number] = known[0] if known else len(plans)
        plans += [] if known else [plan]
    if len(plans) == 1:
        with model.edited(plans[0]):
            yield lambda *_: None
    else:
        with model.edited_by_row(plans) as by_row:
            yield lambda prompts, generated: by_row.now([at[one.job] for one in prompts], generated=generated)


@dataclass
class _Rows:
    """The rows of a batch that answers are written in."""

    rows: list[_Row]
    ids: Int[Tensor, "n 1"]
    """The token of each that is to be read."""
    mask: Int[Tensor, "n s"]
    """Of what is read: 0 where it is padding."""
    cache: Any

    @property
    def live(self) -> int:
        """How many have not ended."""
        return sum(not row.ended for row in self.rows)

    def leave(self, least: int = 1) -> bool:
        """Drop those that have ended, if they are so many or all there are; whether any was dropped."""
        live = [at for at, row in enumerate(self.rows) if not row.ended]
        if len(live) == len(self.rows) or (live and len(self.rows) - len(live) < least):
            return False
        last = reversed(live)  # few rows change their place: they are copied
        kept = [next(last) if row.ended else at for at, row in enumerate(self.rows[: len(live)])]
        which = torch.tensor(kept, dtype=torch.long)
        on = which.to(self.ids.device)
        self.rows, self.ids, self.mask = [self.rows[at] for at in kept], self.ids[on], self.mask[on]
        if kept:
            self.cache.reorder_cache(which)  # unlike batch_select_indices, every kind of layer has it, on any device
        else:
            self.cache = None
        return True

    def join(self, other: _Rows) -> _Rows:
        """These rows and then the others, which are used up."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        size = int(max(self.mask.sum(-1).max(), other.mask.sum(-1).max()))
        return _Rows(
            self.rows + other.rows,
            torch.cat([self.ids, other.ids]),
            torch.cat([_last(self.mask, size), _last(other.mask, size)]),
            joined(self.cache, other.cache, size),
        )


class _Running:
    """A batch in which answers are written."""

    def __init__(self, model: Generates, max_new_tokens: int, notes: _Notes, told: _Told) -> None:
        self.model, self.max_new_tokens, self.notes, self.told = model, max_new_tokens, notes, told
        self.stop: Int[Tensor, " k"] = torch.tensor(sorted(model.stop_ids), dtype=torch.long)
        none = torch.empty(0, 0, dtype=torch.long)
        self.now = _Rows([], none, none, None)

    def enter(self, entries: Sequence[_Entry]) -> None:
        """Read prompts, and write on them beside those that are there."""
        prompts = [prompt for entry in entries for prompt in entry.prompts]
        ends = [0]
        for entry in entries:
            ends.append(ends[-1] + entry.size())
        packs = [
            Pack(tuple(range(begin, end)), entry.tokens)
            for begin, end, entry in zip(ends, ends[1:], entries, strict=False)
        ]
        _, batch = self.model.packed([prompt.ids for prompt in prompts], packs)
        self.told([entry.prompts[0] for entry in entries], False)
        logits, cache = _read(self.model, batch)
        rows = [_Row(prompt) for prompt in prompts]
        new = _Rows(rows, self._written(rows, logits), batch.path_mask.long(), cache)
        for some in (self.now, new):
            some.leave()
        self._now(self.now.join(new))

    def step(self) -> None:
        """One more token of every row; those that end leave when there are enough of them."""
        now = self.now
        now.mask = torch.cat([now.mask, now.mask.new_ones(len(now.mask), 1)], dim=-1)
        out = self.model.forward(
            1,
            input_ids=now.ids,
            attention_mask=now.mask,
            position_ids=now.mask.sum(-1, keepdim=True) - 1,
            past_key_values=now.cache,
            use_cache=True,
        )
        now.cache = out.past_key_values
        now.ids = self._written(now.rows, out.logits[:, -1].float())
        if now.leave(len(now.rows) // LEAVE):
            self._now(now)

    def _now(self, rows: _Rows) -> None:
        self.now = rows
        if rows.rows:
            self.told([row.prompt for row in rows.rows], True)

    def _written(self, rows: Sequence[_Row], logits: Float[Tensor, "n vocab"]) -> Int[Tensor, "n 1"]:
        """The next token of each row; those that end with it are noted."""
        chosen = logits.argmax(-1)
        self.stop = self.stop.to(chosen.device)
        stops = torch.isin(chosen, self.stop)
        broken = _broken(logits)
        for row, (token, stop, bad) in zip(rows, torch.stack([chosen, stops, broken]).T.tolist(), strict=True):
            if row.ended:
                continue
            if not (stop or bad):
                row.tokens.append(token)
            if stop or bad or len(row.tokens) >= self.max_new_tokens:
                row.ended = True
                self._note(row, "non-finite" if bad else "stop" if stop else "length")
        return chosen[:, None]

    def _note(self, row: _Row, finish: Literal["stop", "length", "non-finite"]) -> None:
        text = self.model.tokenizer.decode(row.tokens, skip_special_tokens=True)
        self.notes.add(row.prompt, Completion(text, len(row.tokens), finish))


def _broken(logits: Float[Tensor, "n vocab"]) -> Bool[Tensor, " n"]:
    """Which rows hold a NaN or an infinity: so does their sum, which is quick; one that overflows is looked at."""
    broken = ~logits.sum(-1).isfinite()
    return ~logits.isfinite().all(-1) if bool(broken.any()) else broken


def _last(mask: Int[Tensor, "n s"], size: int) -> Int[Tensor, "n t"]:
    """Of the last so many tokens; where there are fewer, padding before them."""
    return torch.nn.functional.pad(mask[:, -size:], (max(0, size - mask.shape[1]), 0))


def _read(model: Generates, batch: Batch) -> tuple[Float[Tensor, "n vocab"], Any]:
    """The logits that follow the prompts, float32, and their keys and values, a row for each prompt."""
    if isinstance(batch, PackedBatch):
        out = model.forward_at(batch, batch.paths[:, -1], use_cache=True)
        return out.logits.float(), with_room(along(out.past_key_values, batch.paths), whole=model.masks_room)
    out = model.forward(1, **batch.inputs, use_cache=True)
    return out.logits[:, -1].float(), with_room(out.past_key_values, whole=model.masks_room)


@dataclass(frozen=True)
class Answer:
    """A line of a completions file: a prompt of a test set and what the model said under the plan."""

    instruction: str
    category: str
    completion: str
    n_tokens: int
    finish: str


def completion_of(answer: Answer) -> Completion:
    """The completion that a line of a file holds."""
    return Completion(answer.completion, answer.n_tokens, cast(Any, answer.finish))
