"""Conversations as prompts: a text that holds the turns, so that stages, files and tables have it as any other prompt.

It is a JSON list of messages as chat templates take them, `[{"role": "user", "content": "…"}, …]`. The user and the
assistant alternate, the user first, with a system prompt of its own before them or not. The last turn is the user's,
and is to be answered; or it is the assistant's, and what it says is how the answer begins (a *prefill*).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from refusal_cmp.errors import RefusalCmpError

LIKE = re.compile(r"""\[\s*\{\s*"(role|from)"\s*:""")
"""How the text of a conversation begins, ours or as a file writes it, and that of no other prompt."""
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""What speakers are called in files, and what chat templates call them."""
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")


class Turn(NamedTuple):
    """What one speaker says."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str


def conversation(messages: Sequence[Mapping[str, Any]], prefill: str = "") -> str:
    """The prompt that a conversation is.

    Parameters
    ----------
    messages
        `{"role": "user", "content": "…"}` and so on; `from` and `value`, `human` and `gpt` are understood too.
    prefill
        How the answer begins.

    Raises
    ------
    RefusalCmpError
        If it is not a conversation whose last turn is the user's.
    """
    turns = [_turn(message) for message in messages]
    if prefill:
        turns.append(Turn("assistant", prefill))
    return written(turns)


def written(turns: Sequence[Turn]) -> str:
    """The text of these turns; RefusalCmpError if they are not those of a conversation."""
    said = list(turns[1:] if turns and turns[0].role == "system" else turns)
    for index, turn in enumerate(said):
        wanted = ("user", "assistant")[index % 2]
        if turn.role != wanted:
            raise RefusalCmpError(
                f"Turn {index + 1} of a conversation is the {turn.role}'s, where it should be the {wanted}'s: turns "
                "alternate, and the first is the user's."
            )
    if not said:
        raise RefusalCmpError("A conversation has no turn of the user's; give one at least.")
    return json.dumps([{"role": turn.role, "content": turn.text} for turn in turns], ensure_ascii=False)


@lru_cache(maxsize=4096)
def turns_of(instruction: str) -> tuple[Turn, ...]:
    """The turns of a prompt: of a conversation all, of any other text the user's one."""
    if not LIKE.match(instruction):
        return (Turn("user", instruction),)
    try:
        return tuple(_turn(message) for message in json.loads(instruction))
    except (ValueError, TypeError, RecursionError, RefusalCmpError):  # a text that begins like one
        return (Turn("user", instruction),)


def in_words(instruction: str) -> str:
    """The prompt as people read it: a conversation as lines that begin with who speaks."""
    turns = turns_of(instruction)
    return turns[0].text if turns[0].text == instruction else "\n".join(f"{turn.role}: {turn.text}" for turn in turns)


def words(instruction: str) -> str:
    """What is said in a prompt, without who says it."""
    return "\n".join(turn.text for turn in turns_of(instruction))


def has_prefill(instruction: str) -> bool:
    """Whether the prompt says how its answer begins."""
    return turns_of(instruction)[-1].role == "assistant"


def _turn(message: Any) -> Turn:
    """A message as a turn; RefusalCmpError, which is no ValueError, for what is none."""
    role, text = (_first(message, keys) for keys in (ROLE_KEYS, TEXT_KEYS))
    if isinstance(text, list):  # parts, as of multimodal templates
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in text]
        text = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if role not in ROLES or not isinstance(text, str):
        raise RefusalCmpError(
            f"A message of a conversation is {str(message)[:80]!r}; it must have a role (system, user or assistant) "
            "and a content that is text."
        )
    return Turn(ROLES[role], text)


def _first(message: Any, keys: Sequence[str]) -> Any:
    """What a message has under the first of these names that it has; None if it has none."""
    return next((message[key] for key in keys if key in message), None) if isinstance(message, Mapping) else None
