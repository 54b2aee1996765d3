"""ChatModel: any Hugging Face causal language model with a chat template, seen as a residual stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refusal_cmp.config import DATE, EMBEDDED
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.batching import PASS_ROWS, STEP_ROWS, Attempt, Batch, Cost, RowBudget, slices
from refusal_cmp.model.blocks import Block, find_blocks, input_device
from refusal_cmp.model.by_row import PlansByRow
from refusal_cmp.model.chat import PROBE_INSTRUCTIONS, Chat, beginning
from refusal_cmp.model.foreign import check_code
from refusal_cmp.model.generation import Completion, greedy
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.model.kv_cache import is_plain, with_room
from refusal_cmp.model.linear import prepacked
from refusal_cmp.model.narrow import narrow_modules, narrowed
from refusal_cmp.model.packing import MOST_TOKENS, Pack, PackedBatch, packs
from refusal_cmp.model.source import ModelSource
from refusal_cmp.plan import Place, Plan, Tokens
from refusal_cmp.progress import Progress, silent

MIN_REFUSAL_MASS = 0.01
"""Mean probability on harmful prompts from which a candidate counts as a refusal token of this model."""

METRIC_EPSILON = 1e-8
SAME = {True: 1e-3, False: 0.05}
"""How far the logits of prompts that share a row may be off, relatively, in float32 and in less."""
ROUNDING = {True: 1e-5, False: 0.05}
"""The same of logits that are computed as before, but for what is left out or masked."""


class ChatModel(Chat):
    """A causal language model with its chat template, its blocks and sites, and its refusal tokens.

    Parameters
    ----------
    model, tokenizer
        As transformers loads them. The model is put in evaluation mode.
    name
        What results call it.
    system, date
        As for `Chat`.

    Raises
    ------
    RefusalCmpError
        If there is no chat template or it cannot be rendered, it has no place for a system prompt that is given,
        or the model's structure is not understood.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        *,
        system: str | None = None,
        date: str = DATE,
        revision: str | None = None,
    ) -> None:
        super().__init__(tokenizer, name, model.generation_config, system=system, date=date)
        self.model: Any = model.eval()
        self.revision = revision
        check_code(model, name)
        self.blocks: tuple[Block, ...] = find_blocks(model)
        self.edits_some_tokens = False
        """Whether a plan is in force that edits the tokens of prompts, or those that are generated, alone."""
        self._told: Bool[Tensor, "n s"] | None = None
        self._written: Bool[Tensor, "n s"] | bool = False
        self.narrow: tuple[nn.Module, ...] = ()
        """What is computed of the last block for those tokens alone whose logits are read."""
        self.narrow = self._narrows()
        self.shares_rows, self.shares_cache = False, False
        self.shares_rows, self.shares_cache = self._sharing()
        self.masks_room = self._masks_room()

    @classmethod
    def load(cls, source: ModelSource | str = EMBEDDED, *, device: str = "auto", **how: Any) -> ChatModel:
        """Load a Hugging Face id, a local folder, a GGUF file, an adapter with its base, or `tiny-refuser`.

        Parameters
        ----------
        source
            The model; a name is short for a `ModelSource` of that name.
        device
            `cpu`, `cuda`, `cuda:1`, …; `auto` takes the first GPU if there is one, and where the weights do not fit
            there, all GPUs and then the CPU (accelerate's `device_map="auto"`).
        how
            The other fields of the `ModelSource` of a name: `dtype`, `quantization`, `revision`, `chat_template`,
            `system`, `trust_remote_code`, `date`.

        Raises
        ------
        RefusalCmpError
            If there is no such model, it is not a causal chat model, or its structure is not understood.
        """
        from refusal_cmp.model.loading import load_pretrained, pinned

        if isinstance(source, str):
            source = ModelSource(source, **how)
        source = pinned(source)
        model, tokenizer = load_pretrained(source, device)
        name, revision = Path(source.name).name, source.revision
        return cls(model, tokenizer, name, system=source.system, date=source.date, revision=revision)

    # What the model is

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    @property
    def context(self) -> int:
        """Most tokens that the model takes; where its positions have no end, as many as its tokenizer says."""
        config = self.model.config.get_text_config()
        named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        return next(filter(None, named), self.tokenizer.model_max_length)

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return input_device(self.model)

    # Prompts

    def tokenize(self, instructions: Sequence[str], max_new_tokens: int = 0) -> list[list[int]]:
        """Token ids of the rendered prompts, each no longer than the context.

        Parameters
        ----------
        max_new_tokens
            Tokens that are to follow. They must fit too where positions end with the context, as learned ones do;
            rotary ones are computed, and an answer may run on beyond those that the model was trained on.
        """
        sequences = super().tokenize(instructions)
        room = self.room(max_new_tokens)
        for instruction, ids in zip(instructions, sequences, strict=True):
            self._check_embedded(instruction, ids)
            if len(ids) + room <= self.context:
                continue
            to_follow, fewer = (f" and {room} are to follow", "let fewer follow, ") if room else ("", "")
            raise RefusalCmpError(
                f"The prompt {beginning(instruction)} has {len(ids)} tokens{to_follow}, and the context of {self.name} "
                f"ends at {self.context}; leave that prompt out, {fewer}or choose a model with a longer context.",
                **({"max_new_tokens": ""} if room else {}),
            )
        return sequences

    def fits(self, instructions: Sequence[str], room: int = 0) -> list[bool]:
        """Whether the context holds each rendered prompt, and so many tokens more."""
        return [len(ids) + room <= self.context for ids in super().tokenize(instructions)]

    def room(self, max_new_tokens: int) -> int:
        """How many of the tokens that are to follow must have a place in the context; see `tokenize`."""
        return 0 if getattr(self.model.config.get_text_config(), "rope_parameters", None) else max_new_tokens

    def _check_embedded(self, instruction: str, ids: Sequence[int]) -> None:
        """RefusalCmpError for a token that was added to the tokenizer, and not to the model."""
        last = max(ids, default=0)
        if last >= self.model.get_input_embeddings().weight.shape[0]:
            raise RefusalCmpError(
                f"The prompt {beginning(instruction)} holds {self.tokenizer.decode([last])}, which {self.name} has no "
                "embedding for; leave it out, or give the tokenizer that the model was trained with."
            )

    def check_prompts(
        self, name: str, instructions: Sequence[str], max_new_tokens: int, say: Callable[[str], None]
    ) -> None:
        """Before any work on a set of prompts: each renders and fits, see `tokenize`; what a reader of it should know.

        Parameters
        ----------
        say
            Told how many prompts hold control tokens, which end the user's turn wherever they stand.
        """
        self.tokenize(instructions, max_new_tokens)
        controls = self.controls_in(instructions)
        if controls:
            prompt, token = next(iter(controls.items()))
            say(
                f"Warning: {len(controls)} of {len(instructions)} prompts of {name} hold control tokens, as {token} in "
                f"{beginning(prompt)}, which the model does not read as text of the user's; leave those prompts out "
                "unless that is meant."
            )

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Token sequences as one batch, padded on the left."""
        length = max(map(len, sequences))
        ids = torch.full((len(sequences), length), self.tokenizer.pad_token_id or 0)  # masked, whatever it is
        mask = torch.zeros((len(sequences), length), dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            ids[row, length - len(sequence) :] = torch.tensor(sequence)
            mask[row, length - len(sequence) :] = True
        return Batch(ids.to(self.device), mask.to(self.device))

    def batches(self, instructions: Sequence[str], batch_size: int | None = None) -> Iterator[tuple[list[int], Batch]]:
        """Batches of rendered prompts, each with the indices of its prompts; those that begin alike share a row."""
        sequences = self.tokenize(instructions)
        rows = RowBudget(self.device, batch_size or PASS_ROWS)
        left = self.in_packs(sequences, rows, self._pack_bytes)
        while left:
            chosen = rows.first(left, self._pack_bytes, Pack.size)
            yield self.packed(sequences, chosen)
            left = left[len(chosen) :]

    def over_batches(
        self,
        instructions: Sequence[str],
        batch_size: int | None,
        work: Callable[[list[int], Batch], None],
        kept: int = 0,
    ) -> None:
        """Do the work on `batches`, of which one is made of fewer prompts whenever memory runs out.

        Parameters
        ----------
        kept
            Bytes that the work keeps of each prompt until a batch is done.
        """

        def row(some: Sequence[Pack]) -> int:
            return self._pack_bytes(some) + kept * max(map(Pack.size, some))

        self.over_packs(self.tokenize(instructions), RowBudget(self.device, batch_size or PASS_ROWS), row, work)

    @prepacked()
    def over_packs(
        self,
        sequences: Sequence[Sequence[int]],
        rows: RowBudget,
        row: Callable[[Sequence[Pack]], int],
        work: Callable[[list[int], Batch], None],
        *,
        shared: bool = True,
    ) -> None:
        """Do the work on as many token sequences at a time as go together; on fewer whenever memory runs out.

        Parameters
        ----------
        row
            Bytes of each row of some packs; no fewer the more there are.
        shared
            Whether sequences that begin alike may share a row.
        """
        indices = list(range(len(sequences)))
        while indices:
            left = [pack.of(indices) for pack in self.in_packs([sequences[i] for i in indices], rows, row, shared)]
            attempt = Attempt()
            while left and not attempt.failed:
                some = rows.first(left, row, Pack.size)
                chosen, batch = self.packed(sequences, some)
                with rows.halving(len(chosen), least=1) as attempt:
                    work(chosen, batch)
                left = left[0 if attempt.failed else len(some) :]
            indices = sorted(index for pack in left for index in pack.prompts)

    def in_packs(
        self,
        sequences: Sequence[Sequence[int]],
        rows: RowBudget,
        row: Callable[[Sequence[Pack]], int],
        shared: bool = True,
        most: int | None = None,
    ) -> list[Pack]:
        """Token sequences in the packs that share a row: one in each where the model can't, or layers read less.

        Parameters
        ----------
        most
            Sequences of a pack; by default as many as the budget has rows.
        """
        can = shared and self.shares_rows and max(map(len, sequences), default=0) <= self._window
        longest = min(MOST_TOKENS, self._window, self.context)  # some layers count a window by places in the row
        most = (rows.limit if most is None else most) if can else 1
        return packs(sequences, self.d_model, most, longest, lambda pack: row([pack]) <= rows.bytes)

    def packed(self, sequences: Sequence[Sequence[int]], some: Sequence[Pack]) -> tuple[list[int], Batch]:
        """The batch of some packs, and which prompts it holds in which order."""
        indices = [index for pack in some for index in pack.prompts]
        if len(indices) == len(some):
            return indices, self.batch([sequences[index] for index in indices])
        rows = [[sequences[index] for index in pack.prompts] for pack in some]
        pad = self.tokenizer.pad_token_id or 0  # not read, whatever it is
        return indices, PackedBatch.of(rows, pad=pad, dtype=self.model.dtype, device=self.device)

    def _pack_bytes(self, some: Sequence[Pack]) -> int:
        """Bytes of each row of some packs, with the logits of each prompt's last token."""
        return self.row_bytes(some[-1].tokens, logits=max(map(Pack.size, some)))

    @cached_property
    def _window(self) -> int:
        """Most tokens that the last one reads all of: layers that slide or go by chunks read fewer of more."""
        config = self.model.config.get_text_config()
        named = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
        return min((size for size in named if isinstance(size, int) and size > 0), default=sys.maxsize)

    def _sharing(self) -> tuple[bool, bool]:
        """Whether prompts in one row give what they give alone, and leave keys and values that can be told apart.

        Not where blocks recur, or positions are read off the mask.
        """
        try:
            sequences = self.tokenize(PROBE_INSTRUCTIONS)
            alone = self.last_logits(self.batch(sequences))
            whole = Pack(tuple(range(len(sequences))), sum(map(len, sequences)))
            _, batch = self.packed(sequences, [whole])
            with torch.inference_mode():
                out = self.forward_at(batch, batch.paths[:, -1], use_cache=True)
            off = float((out.logits.float() - alone).norm() / alone.norm())
            same = off <= SAME[self.model.dtype == torch.float32]
            return same, same and is_plain(out.past_key_values)
        except (
            Exception
        ):  # whatever code raises that knows no such mask; what is wrong with a prompt is said of real ones
            return False, False

    def per_prompt(
        self, instructions: Sequence[str], measure: Callable[[Batch], Float[Tensor, "b ..."]], batch_size: int | None
    ) -> Float[Tensor, "n ..."]:
        """What `measure` gives for each prompt of a batch, in the order of the instructions, on the CPU."""
        found: list[Tensor] = []  # one, as soon as its shape is known

        def read(rows: list[int], batch: Batch) -> None:
            values = measure(batch).cpu()
            if not found:
                found.append(values.new_empty(len(instructions), *values.shape[1:]))
            found[0][rows] = values

        with torch.inference_mode():
            self.over_batches(instructions, batch_size, read)
        return found[0]

    # Refusal

    def refusal_tokens(self, harmful: Sequence[str], batch_size: int | None = None) -> tuple[int, ...]:
        """The candidates to which the model really gives mass on harmful prompts, if to any.

        Where it is to none, `refusal_cmp.judges.first_tokens` asks the model's own refusals.
        """
        candidates = sorted(self.refusal_candidates())

        def shares(batch: Batch) -> Float[Tensor, "b c"]:
            return torch.cat([some.double().softmax(-1)[:, candidates] for some in slices(self.last_logits(batch))])

        mass = self.per_prompt(harmful, shares, batch_size).mean(0)
        return tuple(token for token, m in zip(candidates, mass, strict=True) if m >= MIN_REFUSAL_MASS)

    def refusal_metrics(
        self, instructions: Sequence[str], refusal_tokens: Sequence[int], batch_size: int | None = None
    ) -> Float[Tensor, " n"]:
        """The refusal metric of every prompt, float64; see `refusal_metric`."""
        return self.per_prompt(
            instructions, lambda batch: refusal_metric(self.last_logits(batch), refusal_tokens), batch_size
        )

    # Forward passes

    @cached_property
    def _keeps(self) -> bool:
        return "logits_to_keep" in signature(self.model.forward).parameters

    @cached_property
    def _cost(self) -> Cost:
        return Cost.of(self.model.config, self.model.dtype)

    def row_bytes(self, tokens: int, *, logits: int = 1, cached: int = 0) -> int:
        """What a row of a pass takes; see `Cost.row`. Code that comes with a model may make all logits."""
        return self._cost.row(tokens, logits=logits if self._keeps else tokens, cached=cached)

    def forward(self, keep: int, **inputs: Any) -> Any:
        """The model's output, with the logits of the last `keep` tokens; code that comes with a model may make all."""
        if self._keeps:
            inputs["logits_to_keep"] = keep
        ids = inputs["input_ids"]
        ends = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, -keep:] if ids.shape[1] > keep else ids
        with installed(narrowed(self.blocks[-1].module, self.narrow, ends.flatten(), ids.numel())):
            out = self.model(**inputs)
        out.logits = out.logits[:, -keep:]
        return out

    def forward_at(self, batch: Batch, at: Int[Tensor, " m"], *, use_cache: bool) -> Any:
        """The model's output on a batch, with the logits (m, vocab) of these tokens of `batch.ids.flatten()`."""
        gathered = []

        def gather(x: Tensor) -> Tensor:
            gathered.append(x.shape)
            return x.flatten(0, 1)[at.to(x.device)][None]

        head = self.model.get_output_embeddings()
        some = narrowed(self.blocks[-1].module, self.narrow, at, batch.ids.numel()) if head is not None else ()
        with installed(some), installed([] if head is None else [before(head, gather)]):
            out = self.model(**batch.inputs, use_cache=use_cache)
        out.logits = out.logits[0] if gathered else out.logits.flatten(0, 1)[at.to(out.logits.device)]
        return out

    def _narrows(self) -> tuple[nn.Module, ...]:
        """What of the last block computes a token as it would without the others."""
        for modules in narrow_modules(self.blocks[-1]):
            try:
                batch = self.batch(self.tokenize(PROBE_INSTRUCTIONS))
                whole = self.last_logits(batch)
                self.narrow = modules
                off = float((self.last_logits(batch) - whole).norm() / whole.norm())
            except Exception:  # of the code that comes with a model; what is wrong with a prompt is said of real ones
                continue
            finally:
                self.narrow = ()
            if off <= ROUNDING[self.model.dtype == torch.float32]:
                return modules
        return ()

    def _masks_room(self) -> bool:
        """Whether a step of generation may be given keys and values that are not there yet, where that is quicker."""
        if self.device.type != "cpu" or self.model.dtype != torch.float32 or not self.shares_cache:
            return False
        batch = self.batch(self.tokenize(PROBE_INSTRUCTIONS))
        mask = torch.nn.functional.pad(batch.mask.long(), (0, 1), value=1)
        step = {"input_ids": batch.ids[:, -1:], "attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1}
        found = []
        try:
            with torch.inference_mode():
                for whole in (False, True):
                    read = self.forward(1, **batch.inputs, use_cache=True)
                    cache = with_room(read.past_key_values, whole=whole)
                    found.append(self.forward(1, **step, past_key_values=cache, use_cache=True).logits.float())
        except Exception:  # of the code that comes with a model
            return False
        return float((found[1] - found[0]).norm() / found[0].norm()) <= ROUNDING[True]

    @torch.inference_mode()
    def last_logits(self, batch: Batch) -> Float[Tensor, "n vocab"]:
        """Logits at the last position of every prompt, float32."""
        if isinstance(batch, PackedBatch):
            return self.forward_at(batch, batch.paths[:, -1], use_cache=False).logits.float()
        return self.forward(1, **batch.inputs, use_cache=False).logits[:, -1].float()

    def streams(self, batch: Batch) -> list[Float[Tensor, "n s d"]]:
        """The residual stream on entry to every block."""
        streams: list[Tensor] = []
        handles = (before(block.module, streams.append) for block in self.blocks)
        with torch.inference_mode(), installed(handles):
            self.last_logits(batch)
        return streams

    @contextmanager
    def resumed(self, layer: int, stream: Float[Tensor, "n s d"]) -> Iterator[None]:
        """Inside the block, forward passes enter at `layer` with this residual stream.

        The input ids are those that the stream comes from, if only for their shape: earlier blocks are skipped, or
        run in vain where later ones read more of them than the stream (see `starts_anywhere`).
        """
        with self._entered(layer, stream, skipped=layer if self.starts_anywhere else 0):
            yield

    @cached_property
    def starts_anywhere(self) -> bool:
        """Whether the stream is all that a block reads of earlier ones; Gemma-4's also read keys and values."""
        batch, last = self.batch(self.tokenize(PROBE_INSTRUCTIONS[:1])), self.n_layers - 1
        with torch.inference_mode():
            full, stream = self.last_logits(batch), self.streams(batch)[last]
            try:
                with self._entered(last, stream, skipped=last):
                    resumed = self.last_logits(batch)
            except (KeyError, IndexError, AttributeError, TypeError):  # what it reads is not there
                return False
        return bool((resumed - full).norm() <= 0.01 * full.norm())

    @contextmanager
    def _entered(self, layer: int, stream: Float[Tensor, "n s d"], skipped: int) -> Iterator[None]:
        passed = self.blocks[:skipped]
        saved = [block.module.__dict__.get("forward") for block in passed]  # accelerate sets one
        for block in passed:
            block.module.forward = _pass_tuple if block.returns_tuple else _pass_through
        try:
            with installed([before(self.blocks[layer].module, lambda _: stream, prepend=True)]):
                yield
        finally:
            for block, forward in zip(passed, saved, strict=True):
                del block.module.forward  # uncovers the class's own
                if forward is not None:
                    block.module.forward = forward

    # Edits

    @contextmanager
    def edited(self, plan: Plan | Mapping[Place, LowRankEdit]) -> Iterator[ChatModel]:
        """Inside the block the model runs under the plan; after it, the model is what it was before.

        A plan may edit tokens of the prompt, or generated ones, alone. Generated are those that a pass reads one by
        one after what is cached, and those that `writing` names; all others are the prompt's. A plan that is a system
        prompt holds for what is rendered inside the block.
        """
        plan = plan if isinstance(plan, Plan) else Plan("", plan)
        edits, tokens = plan.edits, plan.tokens
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        placed = {id(edit): self._on_tokens(_on_its_device(edit, dtype), tokens) for edit in edits.values()}  # shared
        was, self.edits_some_tokens = self.edits_some_tokens, self.edits_some_tokens or tokens != "all"
        hooks = (hook for at, edit in edits.items() for hook in self._hooks(at, [edit], placed[id(edit)]))
        try:
            with self.asked(plan.system), installed(self._watch(tokens)), installed(hooks):
                yield self
        finally:
            self.edits_some_tokens = was

    @contextmanager
    def edited_by_row(self, plans: Sequence[Plan]) -> Iterator[PlansByRow]:
        """Inside the block each row of a pass is under the plan that what is given names for it, before the pass."""
        by_row = PlansByRow(plans, torch.promote_types(self.model.dtype, torch.float32))
        places: dict[Place, list[LowRankEdit]] = {}
        for plan in plans:
            for at, edit in plan.edits.items():
                places.setdefault(at, []).append(edit)
        with installed(hook for at, edits in places.items() for hook in self._hooks(at, edits, by_row.at(at))):
            yield by_row

    @contextmanager
    def writing(self, written: Bool[Tensor, "n s"]) -> Iterator[None]:
        """Inside the block passes over a batch of this shape count these tokens as generated, the others as prompts."""
        self._told = written
        try:
            yield
        finally:
            self._told = None

    def _on_tokens(self, edit: Callable[[Tensor], Tensor], tokens: Tokens) -> Callable[[Tensor], Tensor]:
        """The edit, on some of the tokens of a pass alone."""
        if tokens == "all":
            return edit

        def apply(x: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
            written = self._written
            if isinstance(written, bool):
                return edit(x) if written == (tokens == "generated") else x
            there = written if tokens == "generated" else ~written
            return torch.where(there.to(x.device).reshape(*x.shape[:-1], 1), edit(x), x)

        return apply

    def _watch(self, tokens: Tokens) -> Iterator[Any]:
        """The hook that tells edits of some tokens which those are."""
        if tokens != "all":
            yield self.model.register_forward_pre_hook(self._note_written, with_kwargs=True)

    def _note_written(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a pass: which of its tokens are generated."""
        if self._told is not None:
            self._written = self._told
        else:
            ids = args[0] if args else kwargs["input_ids"]
            self._written = kwargs.get("past_key_values") is not None and ids.shape[-1] == 1

    def _hooks(self, place: Place, edits: Sequence[LowRankEdit], placed: Callable[[Tensor], Tensor]) -> Iterator[Any]:
        """One hook for each module that writes at the place.

        Where several add up to what is written, each is edited by itself: the edited terms of a linear edit add up
        to the edited sum. Ours are all linear at these sites, unless they keep norms.
        """
        block = self.blocks[place.layer]
        if place.site == "resid_pre":
            yield before(block.module, placed)
            return
        writers = block.writers(place.site)
        if len(writers) > 1 and not all(edit.affine and edit.b is None for edit in edits):
            raise RefusalCmpError(
                f"Several modules of layer {place.layer} of {self.name} write {place.site} ({', '.join(block.names)}), "
                "where only a linear edit can act; edit resid_pre instead."
            )
        for module in writers:
            if block.scale == 1:
                yield after(module, placed)
            else:
                yield after(module, lambda x: placed(x * block.scale) / block.scale)

    def generate(
        self,
        instructions: Sequence[str],
        *,
        max_new_tokens: int = 64,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Greedy completions, in the order of the instructions; see `refusal_cmp.model.generation`."""
        rows = RowBudget(self.device, batch_size, STEP_ROWS)
        return greedy(self, instructions, max_new_tokens=max_new_tokens, rows=rows, progress=progress)


def refusal_metric(
    logits: Float[Tensor, "n vocab"], refusal_tokens: Sequence[int], epsilon: float = METRIC_EPSILON
) -> Float[Tensor, " n"]:
    """Log-odds that the next token is a refusal token: log Σ_R p − log(1 − Σ_R p), float64.

    NaN where the logits are not finite.
    """
    tokens = list(refusal_tokens)
    refusing = torch.cat([some.double().softmax(-1)[:, tokens].sum(-1) for some in slices(logits)])
    return (refusing + epsilon).log() - (1 - refusing + epsilon).log()


def _on_its_device(edit: LowRankEdit, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The edit, moved to the device of what it is applied to: the blocks of a big model are on several."""
    moved: dict[torch.device, LowRankEdit] = {}

    def apply(x: Tensor) -> Tensor:
        if x.device not in moved:
            moved[x.device] = edit.to(x.device, dtype)
        return moved[x.device](x)

    return apply


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _pass_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (hidden_states,)
