"""Chat: prompts in a model's own chat template, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.source import ModelSource

REFUSAL_OPENERS = (
    "I cannot", "I can't", "I am unable", "I'm unable", "I am not able", "I'm not able", "I'm sorry", "I am sorry",
    "I apologize", "I will not", "As an AI", "As a language model", "As an assistant", "Sorry", "Unfortunately",
)  # fmt: skip

ANSWER_AT_ONCE = {"enable_thinking": False, "thinking": False}
"""What templates that can open a chain of thought are told: refusal is read at the first token of the answer.
Others do not look at it; one that always opens a thought leaves the refusal metric to the thought's first token."""

PROBE_INSTRUCTIONS = ("Name a colour.", "What is 2 + 2?", "hello", "List: a, b,\nc", "Say «yes»", "(x)")


class Chat:
    """A tokenizer with its chat template, and the tokens that end an answer.

    Parameters
    ----------
    tokenizer, generation_config
        As transformers loads them.
    name
        What messages call the model.
    system
        A system prompt put before every instruction.

    Raises
    ------
    RefusalCmpError
        If there is no chat template or it cannot be rendered, or it has no place for a system prompt that is given.
    """

    def __init__(self, tokenizer: Any, name: str, generation_config: Any, *, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RefusalCmpError(
                f"The tokenizer of {name} has no chat template, so it is not a chat model; give one by "
                "--chat-template FILE, or choose a chat-tuned model."
            )
        self.tokenizer = tokenizer
        self.name = name
        self.system = system
        self._generation_config = generation_config
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._in_parts = self._takes_parts()
        self._check_system()

    @classmethod
    def load(cls, source: ModelSource) -> Chat:
        """What `ChatModel.load` of the same source would say to the model, without loading that."""
        from refusal_cmp.model.loading import load_chat

        tokenizer, generation_config = load_chat(source)
        return cls(tokenizer, source.name, generation_config, system=source.system)

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """The post-instruction tokens as negative indices: (-4, -3, -2, -1).

        They are the tokens that end every rendered prompt, whatever the user's text.
        """
        rendered = self.tokenize(PROBE_INSTRUCTIONS)
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
        stop = self._generation_config.eos_token_id
        stop = stop if isinstance(stop, list) else [stop]
        return frozenset(token for token in [*stop, self.tokenizer.eos_token_id] if token is not None)

    def render(self, instruction: str) -> str:
        """The prompt text: the instruction in the model's own chat template, ready for the answer."""
        return self._render(instruction, self.system, self._in_parts)

    def _render(self, instruction: str, system: str | None, in_parts: bool) -> str:
        said = [("user", instruction)] if system is None else [("system", system), ("user", instruction)]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in said
        ]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **ANSWER_AT_ONCE
        )

    def _takes_parts(self) -> bool:
        """Whether the template wants a message's content as a list of parts: many multimodal ones lose plain text."""
        reason = "the user's text is not in what it renders"
        for in_parts in (False, True):
            try:
                if PROBE_INSTRUCTIONS[0] in self._render(PROBE_INSTRUCTIONS[0], None, in_parts):
                    return in_parts
            except (TemplateError, TypeError) as error:
                reason = str(error)
        raise RefusalCmpError(
            f"The chat template of {self.name} does not work ({reason}); mend it, or give another by "
            "--chat-template FILE."
        )

    def _check_system(self) -> None:
        if self.system is None:
            return
        reason = "it leaves it out"
        try:
            if self.system.strip() in self.render(PROBE_INSTRUCTIONS[0]):
                return
        except (TemplateError, TypeError) as error:
            reason = str(error)
        raise RefusalCmpError(
            f"The chat template of {self.name} takes no system prompt ({reason}); leave out --system, or give "
            "another template by --chat-template FILE."
        )

    def tokenize(self, instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of the rendered prompts; RefusalCmpError for one string, whose letters would be prompts."""
        if isinstance(instructions, str):
            raise RefusalCmpError(f"A list of instructions is expected, not one string: [{instructions[:40]!r}].")
        texts = [self.render(instruction) for instruction in instructions]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def refusal_candidates(self) -> dict[int, str]:
        """First tokens of the usual refusal openers, in the position right after the generation prompt.

        With and without a space before them: a template need not end in the space that the model answers with.
        """
        prompt = self.render(PROBE_INSTRUCTIONS[0])
        start = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        candidates = {}
        for opener in (space + opener for opener in REFUSAL_OPENERS for space in ("", " ")):
            ids = self.tokenizer(prompt + opener, add_special_tokens=False)["input_ids"]
            if ids[: len(start)] == start:
                first = ids[len(start)]
            else:  # the tokenizer joins the prompt's end with the opener, which generation cannot
                first = self.tokenizer(opener, add_special_tokens=False)["input_ids"][0]
            candidates[first] = self.tokenizer.decode([first])
        return candidates
