"""Chat: prompts in a model's own chat template, without the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refusal_cmp.config import DATE
from refusal_cmp.data.conversations import in_words, turns_of, words
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.foreign import reason, time_limit
from refusal_cmp.model.source import ModelSource, clock

REFUSAL_OPENERS = (
    "I cannot", "I can't", "I am unable", "I'm unable", "I am not able", "I'm not able", "I'm sorry", "I am sorry",
    "I apologize", "I will not", "As an AI", "As a language model", "As an assistant", "Sorry", "Unfortunately",
)  # fmt: skip

ANSWER_AT_ONCE = {"enable_thinking": False, "thinking": False}
"""What templates that can open a chain of thought are told: refusal is read at the first token of the answer.
Others do not look at it; one that always opens a thought leaves the refusal metric to the thought's first token."""

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
)
"""How templates open and close a thought."""

PROBE_INSTRUCTIONS = ("Name a colour.", "What is 2 + 2?", "hello", "List: a, b,\nc", "Say «yes»", "(x)")
PROBE_ANSWER = "Green, as grass is."

RENDER_SECONDS = 2.0
"""Most time that a template may take for one prompt; real ones take a thousandth of it."""
SHOWN = 40
"""Letters of a prompt that a message begins it with."""


class _NotRenderedError(Exception):
    """A template did not give a text; the message is why."""


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around an answer, so that completions can be read."""

    markers: tuple[str, ...] = ()
    """What stands between turns, where a completion that is not stopped goes on: control tokens and headers."""
    opened: str = ""
    """The tag of a thought that every prompt has opened already, as some templates do: `<think>`; or nothing."""


NO_TURNS = Turns()
"""Of a text whose model is not known."""


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
    date
        The day that the template is told when it asks for today's.

    Raises
    ------
    RefusalCmpError
        If there is no chat template or it cannot be rendered, it has no place for a system prompt that is given, or
        the tokenizer reads its control tokens as text.
    """

    def __init__(
        self, tokenizer: Any, name: str, generation_config: Any, *, system: str | None = None, date: str = DATE
    ) -> None:
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict) and template and "default" not in template:
            raise RefusalCmpError(
                f"The tokenizer of {name} has several chat templates, {', '.join(map(str, template))}, and none is "
                "called default; give the text of one of them.",
                chat_template="FILE",
            )
        if not template:
            raise RefusalCmpError(
                f"The tokenizer of {name} has no chat template, so it is not a chat model; give one, or choose a "
                "chat-tuned model.",
                chat_template="FILE",
            )
        self.tokenizer = tokenizer
        self.name = name
        self.system = system
        self._asked_for = ""
        self.date = date
        self.generation_config = generation_config
        self._in_parts = self._takes_parts()
        self._check_system(system)
        self._check_controls()
        if tokenizer.pad_token_id is None:
            ends = min(self.stop_ids, default=None)
            tokenizer.pad_token = None if ends is None else tokenizer.eos_token or tokenizer.decode([ends])

    @classmethod
    def load(cls, source: ModelSource) -> Chat:
        """What `ChatModel.load` of the same source would say to the model, without loading that."""
        from refusal_cmp.model.loading import load_chat

        tokenizer, generation_config = load_chat(source)
        return cls(tokenizer, source.name, generation_config, system=source.system, date=source.date)

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
                "post-instruction token to read; give another.",
                chat_template="FILE",
            )
        return tuple(range(-shared, 0))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the configuration's, the tokenizer's, and what the template ends answers by.

        Configurations are known to name `<|endoftext|>` where the template, and so the model, writes `<|im_end|>`.
        """
        stop = self.generation_config.eos_token_id
        stop = stop if isinstance(stop, list) else [stop]
        return frozenset(
            token for token in (*stop, self.tokenizer.eos_token_id, self._end_of_answer) if token is not None
        )

    @cached_property
    def turns(self) -> Turns:
        """What the template writes between a question and its answer, and between that and the next question.

        The markers are its control tokens (`<|im_end|>`), and the text that is left where those are not decoded: a line
        `user`, or Llama-3's `assistant` with two line ends.
        """
        question, follow_up = PROBE_INSTRUCTIONS[:2]
        rendered = self._conversation(("user", question), ("assistant", PROBE_ANSWER), ("user", follow_up))
        before, _, rest = rendered.partition(question)[2].partition(PROBE_ANSWER)
        after = rest.partition(follow_up)[0]
        return Turns(tuple(dict.fromkeys([*self._markers(after), *self._markers(before)])), self._opened)

    def _markers(self, between: str) -> list[str]:
        """The control tokens of what stands between turns, and the rest of it if that is more than any word."""
        ids = self.tokenizer(between, add_special_tokens=False)["input_ids"]
        controls = [self.tokenizer.decode([token]).strip() for token in ids if self._is_control(token)]
        header = self.tokenizer.decode([token for token in ids if not self._is_control(token)]).strip(" ")
        return [*controls, header] if any(map(str.isalpha, header)) and not header.isalnum() else controls

    @property
    def _opened(self) -> str:
        tail = self.render(PROBE_INSTRUCTIONS[0]).partition(PROBE_INSTRUCTIONS[0])[2]
        return next((begin for begin, end in THOUGHTS if begin in tail and end not in tail[tail.rfind(begin) :]), "")

    @property
    def _end_of_answer(self) -> int | None:
        """The control token that the template puts right after an answer, if it puts one there."""
        *_, tail = self._conversation(("user", PROBE_INSTRUCTIONS[0]), ("assistant", PROBE_ANSWER)).split(PROBE_ANSWER)
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        first = next((token for token in ids if self.tokenizer.decode([token]).strip()), None)
        return first if first is not None and self._is_control(first) else None

    def _is_control(self, token: int) -> bool:
        """Whether a token is one that text does not hold: special, added, or a tag in one piece; no white space."""
        text = self.tokenizer.decode([token]).strip()
        if not text or token == self.tokenizer.unk_token_id:
            return False
        is_added = token in self.tokenizer.all_special_ids or token in self.tokenizer.added_tokens_decoder
        return is_added or re.fullmatch(r"<.+>|\[.+\]", text) is not None

    def _conversation(self, *said: tuple[str, str]) -> str:
        """A rendered conversation that has been held; nothing where the template cannot render one."""
        try:
            return self._render(said, self._in_parts, ends_open=False)
        except _NotRenderedError:
            return ""

    def render(self, instruction: str) -> str:
        """The prompt text: the instruction in the model's own chat template, ready for the answer.

        A conversation (`refusal_cmp.data.conversations`) is rendered turn by turn.

        Raises
        ------
        RefusalCmpError
            If the template does not render this instruction; its reason is said.
        """
        try:
            return self._prompt(instruction)
        except _NotRenderedError as why:
            raise RefusalCmpError(
                f"The chat template of {self.name} does not render the prompt {beginning(instruction)} ({why}); leave "
                "that out, mend the template, or give another.",
                chat_template="FILE",
            ) from None

    def _prompt(self, instruction: str) -> str:
        """The turns of the prompt in the template; of a conversation that says how its answer begins, with that."""
        said = list(turns_of(instruction))
        own = said.pop(0).text if said[0].role == "system" else self.system
        begun = said.pop().text if said[-1].role == "assistant" else ""
        system = self._asked_for or own
        first = [] if system is None else [("system", system)]
        return self._render([*first, *said], self._in_parts) + begun

    def _render(self, said: Sequence[tuple[str, str]], in_parts: bool, ends_open: bool = True) -> str:
        """What the template makes of a conversation; it is a program, and any of its errors is a reason."""
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in said
        ]
        try:
            with time_limit(RENDER_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=ends_open, **ANSWER_AT_ONCE, **clock(self.date)
                )
            text.encode()  # what is no text, as half a pair of surrogates, tokenizers do not take
        except TimeoutError:
            raise _NotRenderedError(f"it is not done after {RENDER_SECONDS:g} seconds") from None
        except Exception as error:
            raise _NotRenderedError(reason(error)) from None
        return text

    def _takes_parts(self) -> bool:
        """Whether the template wants a message's content as a list of parts: many multimodal ones lose plain text."""
        why = "the user's text is not in what it renders"
        for in_parts in (False, True):
            try:
                if PROBE_INSTRUCTIONS[0] in self._render([("user", PROBE_INSTRUCTIONS[0])], in_parts):
                    return in_parts
            except _NotRenderedError as error:
                why = str(error)
        raise RefusalCmpError(
            f"The chat template of {self.name} does not work ({why}); mend it, or give another.",
            chat_template="FILE",
        )

    def _check_system(self, system: str | None) -> None:
        if not system:
            return
        why = "it leaves it out"
        try:
            if system.strip() in self._prompt(PROBE_INSTRUCTIONS[0]):
                return
        except _NotRenderedError as error:
            why = str(error)
        raise RefusalCmpError(
            f"The chat template of {self.name} takes no system prompt ({why}); leave the prompt out, or give "
            "another template.",
            system="",
            chat_template="FILE",
        )

    def _check_controls(self) -> None:
        """Control tokens of the vocabulary that the template writes are read as what they are.

        Some tokenizers read none in text, as those of mistral-common and of a bare sentencepiece file.
        """
        prompt = self.render(PROBE_INSTRUCTIONS[0])
        split = [
            text
            for text, token in self.tokenizer.get_vocab().items()
            if isinstance(text, str)  # tiktoken's are bytes
            and text in prompt
            and self._is_control(token)
            and token not in self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        if split:
            raise RefusalCmpError(
                f"The tokenizer of {self.name} reads {max(split, key=len)}, which the chat template writes, letter by "
                "letter and not as the control token that it is; choose a copy of the model with a tokenizer.json that "
                "knows its control tokens."
            )

    @contextmanager
    def asked(self, system: str) -> Iterator[None]:
        """Inside the block prompts begin with this system prompt in place of any other; nothing: as ever.

        Raises
        ------
        RefusalCmpError
            If the template takes no system prompt.
        """
        was, self._asked_for = self._asked_for, system or self._asked_for
        try:
            self._check_system(system)
            yield
        finally:
            self._asked_for = was

    def tokenize(self, instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of the rendered prompts; RefusalCmpError for one string, whose letters would be prompts."""
        if isinstance(instructions, str):
            raise RefusalCmpError(f"A list of instructions is expected, not one string: [{beginning(instructions)}].")
        texts = [self.render(instruction) for instruction in instructions]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    @cached_property
    def _turn_tokens(self) -> frozenset[int]:
        """Tokens that only a template should write: the special ones, and those between turns."""
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(token for token, one in added.items() if one.special)}
        between = (token for token in added if self.tokenizer.decode([token]).strip() in self.turns.markers)
        return frozenset(token for token in {*special, *between} if self._is_control(token))

    def controls_in(self, instructions: Sequence[str]) -> dict[str, str]:
        """The instructions that hold control tokens as text, each with its first: `<|im_end|>` ends the user's turn."""
        if not instructions:
            return {}
        read = self.tokenizer([words(one) for one in instructions], add_special_tokens=False)["input_ids"]
        found = {
            instruction: next((token for token in ids if token in self._turn_tokens), None)
            for instruction, ids in zip(instructions, read, strict=True)
        }
        return {text: self.tokenizer.decode([token]).strip() for text, token in found.items() if token is not None}

    @property
    def unread_tags(self) -> list[str]:
        """Control tokens by their look, `<|…|>`, that the template writes and the tokenizer reads letter by letter."""
        written = re.findall(r"<[|｜][^<>\s]+[|｜]>", self.render(PROBE_INSTRUCTIONS[0]))
        return [
            tag for tag in dict.fromkeys(written) if len(self.tokenizer(tag, add_special_tokens=False)["input_ids"]) > 1
        ]

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


def beginning(instruction: str) -> str:
    """The first letters of a prompt, quoted."""
    text = in_words(instruction)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
