"""ChatModel: any Hugging Face causal language model with a chat template, seen as a residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.generation import Completion, greedy
from refusal_cmp.plan import Place, Plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.structure import Block, after, before, find_blocks, installed

EMBEDDED = "tiny-refuser"

REFUSAL_OPENERS = (
    "I cannot", "I can't", "I am unable", "I'm unable", "I am not able", "I'm not able", "I'm sorry", "I am sorry",
    "I apologize", "I will not", "As an AI", "As a language model", "As an assistant", "Sorry", "Unfortunately",
)  # fmt: skip
MIN_REFUSAL_MASS = 0.01
"""Mean probability on harmful prompts from which a candidate counts as a refusal token of this model."""

METRIC_EPSILON = 1e-8

_PROBE_INSTRUCTIONS = ("Name a colour.", "What is 2 + 2?", "hello", "List: a, b,\nc", "Say «yes»", "(x)")


@dataclass(frozen=True)
class Batch:
    """Tokenised prompts, padded on the left."""

    ids: Int[Tensor, "n s"]
    mask: Bool[Tensor, "n s"]

    @property
    def position_ids(self) -> Int[Tensor, "n s"]:
        """Positions counted from each prompt's first token: `forward` does not derive them from the mask."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def repeated(self, times: int) -> Batch:
        """The batch `times` times over, one copy after the other."""
        return Batch(self.ids.repeat(times, 1), self.mask.repeat(times, 1))

    def __len__(self) -> int:
        return len(self.ids)


class ChatModel:
    """A causal language model with its chat template, its blocks and sites, and its refusal tokens.

    Parameters
    ----------
    model, tokenizer
        As transformers loads them. The model is put in evaluation mode.
    name
        What results call it.
    system
        A system prompt put before every instruction, where the template has one.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        *,
        system: str | None = None,
        revision: str | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RefusalCmpError(
                f"The tokenizer of {name} has no chat template, so it is not a chat model; give one by "
                "--chat-template FILE, or choose a chat-tuned model."
            )
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.system = system
        self.revision = revision
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.blocks: tuple[Block, ...] = find_blocks(model)

    @classmethod
    def load(
        cls,
        name: str = EMBEDDED,
        *,
        device: str = "auto",
        dtype: str = "auto",
        chat_template: str | None = None,
        system: str | None = None,
    ) -> ChatModel:
        """Load a Hugging Face id, a local folder, or the embedded `tiny-refuser`.

        Parameters
        ----------
        device
            `cpu`, `cuda`, `cuda:1`, …; `auto` takes the first GPU if there is one.
        dtype
            `float32`, `bfloat16`, `float16`; `auto` is float32 on a CPU and bfloat16 on a GPU.
        chat_template
            A Jinja template that replaces the tokenizer's own.

        Raises
        ------
        RefusalCmpError
            If there is no such model, it is not a causal chat model, or its structure is not understood.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        path = model_path(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise RefusalCmpError(
                f"Cannot load model {name!r} ({reason.rstrip('.')}); give a Hugging Face id that can be reached, a "
                f"local folder, or nothing for the embedded {EMBEDDED}."
            ) from error
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        revision = getattr(model.config, "_commit_hash", None)
        return cls(model, tokenizer, Path(name).name, system=system, revision=revision)

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
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.model.get_input_embeddings().weight.device

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """The post-instruction tokens as negative indices: (-4, -3, -2, -1).

        They are the tokens that end every rendered prompt, whatever the user's text.
        """
        rendered = self.tokenize(_PROBE_INSTRUCTIONS)
        shared = 0
        while shared < min(map(len, rendered)) and len({ids[-1 - shared] for ids in rendered}) == 1:
            shared += 1
        if not shared:
            raise RefusalCmpError(
                f"The chat template of {self.name} puts nothing after the user's text, so there is no "
                "post-instruction token to read; give another by --chat-template FILE."
            )
        return tuple(range(-shared, 0))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        stop = self.model.generation_config.eos_token_id
        stop = stop if isinstance(stop, list) else [stop]
        return frozenset(token for token in [*stop, self.tokenizer.eos_token_id] if token is not None)

    # Prompts

    def render(self, instruction: str) -> str:
        """The prompt text: the instruction in the model's own chat template, ready for the answer."""
        messages = [{"role": "user", "content": instruction}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def tokenize(self, instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of the rendered prompts."""
        texts = [self.render(instruction) for instruction in instructions]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Token sequences as one batch, padded on the left."""
        length = max(map(len, sequences))
        ids = torch.full((len(sequences), length), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(sequences), length), dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            ids[row, length - len(sequence) :] = torch.tensor(sequence)
            mask[row, length - len(sequence) :] = True
        return Batch(ids.to(self.device), mask.to(self.device))

    def batches(self, instructions: Sequence[str], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
        """Batches of rendered prompts of similar length, each with the indices of its prompts."""
        sequences = self.tokenize(instructions)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield chosen, self.batch([sequences[index] for index in chosen])

    # Refusal

    def refusal_candidates(self) -> dict[int, str]:
        """First tokens of the usual refusal openers, in the position right after the generation prompt."""
        prompt = self.render(_PROBE_INSTRUCTIONS[0])
        start = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        candidates = {}
        for opener in REFUSAL_OPENERS:
            ids = self.tokenizer(prompt + opener, add_special_tokens=False)["input_ids"]
            if ids[: len(start)] == start:
                first = ids[len(start)]
            else:  # the tokenizer joins the prompt's end with the opener, which generation cannot
                first = self.tokenizer(opener, add_special_tokens=False)["input_ids"][0]
            candidates[first] = self.tokenizer.decode([first])
        return candidates

    @torch.inference_mode()
    def refusal_tokens(self, harmful: Sequence[str], batch_size: int = 64) -> tuple[int, ...]:
        """The candidates to which the model really gives mass on harmful prompts; all of them if to none."""
        candidates = sorted(self.refusal_candidates())
        mass = torch.zeros(len(candidates), dtype=torch.float64)
        for _, batch in self.batches(harmful, batch_size):
            mass += self.last_logits(batch).double().softmax(-1)[:, candidates].sum(0).cpu()
        kept = [token for token, m in zip(candidates, mass / len(harmful), strict=True) if m >= MIN_REFUSAL_MASS]
        return tuple(kept or candidates)

    # Forward passes

    def last_logits(self, batch: Batch) -> Float[Tensor, "n vocab"]:
        """Logits at the last position of every prompt, float32."""
        out = self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def streams(self, batch: Batch) -> list[Float[Tensor, "n s d"]]:
        """The residual stream on entry to every block."""
        streams: list[Tensor] = []
        handles = [before(block.module, streams.append) for block in self.blocks]
        with torch.inference_mode(), installed(*handles):
            self.last_logits(batch)
        return streams

    @contextmanager
    def resumed(self, layer: int, stream: Float[Tensor, "n s d"]) -> Iterator[None]:
        """Inside the block, forward passes enter at `layer` with this residual stream; earlier blocks are skipped.

        The input ids still have to have the stream's shape (n, s); their content is not used.
        """
        skipped = [block.module for block in self.blocks[:layer]]
        saved = [module.__dict__.get("forward") for module in skipped]
        for block in self.blocks[:layer]:
            block.module.forward = _pass_tuple if block.returns_tuple else _pass_through
        try:
            with installed(before(self.blocks[layer].module, lambda _: stream, prepend=True)):
                yield
        finally:
            for module, forward in zip(skipped, saved, strict=True):
                del module.forward  # uncovers the class's own
                if forward is not None:
                    module.forward = forward

    # Edits

    @contextmanager
    def edited(self, plan: Plan | Mapping[Place, LowRankEdit]) -> Iterator[ChatModel]:
        """Inside the block the model runs under the plan; after it, the model is what it was before."""
        edits = plan.edits if isinstance(plan, Plan) else plan
        with installed(*(self._hook(place, edit) for place, edit in edits.items())):
            yield self

    def _hook(self, place: Place, edit: LowRankEdit) -> Any:
        block = self.blocks[place.layer]
        edit = edit.to(self.device, torch.promote_types(self.model.dtype, torch.float32))
        if place.site == "resid_pre":
            return before(block.module, edit)
        module = block.attn_out if place.site == "attn_out" else block.mlp_out
        if block.scale == 1:
            return after(module, edit)
        return after(module, lambda x: edit(x * block.scale) / block.scale)

    def generate(
        self,
        instructions: Sequence[str],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Greedy completions, in the order of the instructions; see `refusal_cmp.generation`."""
        return greedy(self, instructions, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)


def refusal_metric(
    logits: Float[Tensor, "n vocab"], refusal_tokens: Sequence[int], epsilon: float = METRIC_EPSILON
) -> Float[Tensor, " n"]:
    """Log-odds that the next token is a refusal token: log Σ_R p − log(1 − Σ_R p), float64.

    NaN where the logits are not finite.
    """
    refusing = logits.double().softmax(-1)[:, list(refusal_tokens)].sum(-1)
    return (refusing + epsilon).log() - (1 - refusing + epsilon).log()


def model_path(name: str) -> str:
    """What transformers is asked for: the package's own folder for the embedded model."""
    if name == EMBEDDED:
        return str(files("refusal_cmp") / "assets" / EMBEDDED)
    return name


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _pass_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (hidden_states,)
