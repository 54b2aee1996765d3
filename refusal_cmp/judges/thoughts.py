"""What a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from refusal_cmp.judges.turns import opening
from refusal_cmp.model.chat import THOUGHTS

_THOUGHTS = [
    *(re.compile(rf"{re.escape(begin)}(.*?)({re.escape(end)}|\Z)", re.DOTALL) for begin, end in THOUGHTS),
    # the channels of harmony, whole and without their control tokens: analysisThe user asks…assistantfinalI can…
    re.compile(
        r"(?:<\|start\|>)?(?:assistant)?<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>(.*?)"
        r"(<\|end\|>|<\|call\|>|(?=<\|start\|>)|(?=<\|channel\|>)|\Z)",
        re.DOTALL,
    ),
    re.compile(r"(?:analysis|commentary)(?=[A-Z\"'(*])(.*?)(assistant(?=analysis|commentary|final)|\Z)", re.DOTALL),
    # the template opened it
    re.compile(rf"(.*?\n)\s*({'|'.join(re.escape(end) for _, end in THOUGHTS)})", re.DOTALL),
]
_FINAL = re.compile(r"(?:<\|start\|>)?(?:assistant)?<\|channel\|>final[^<]*<\|message\|>|(?:assistant)?final(?=[A-Z])")


class Spoken(NamedTuple):
    """A completion in its two parts."""

    thought: str | None
    """None if there is none, or an empty one."""
    said: str
    """What follows the thought, without control tokens before it; nothing where the thought does not end."""


def split_thought(text: str, markers: Sequence[str] = ()) -> Spoken:
    """What was thought and what was said; see `refusal_cmp.judges.turns.end_of_turn` for the markers."""
    thoughts, before = [], ""
    while text != before:
        before = text
        text = text.lstrip()
        if thought := next((match for one in _THOUGHTS if (match := one.match(text))), None):
            thoughts.append(thought[1].strip())
            text = text[thought.end() :]
        elif final := _FINAL.match(text):
            text = text[final.end() :]
        else:
            text = text[opening(text, markers) :]
    return Spoken("\n".join(filter(None, thoughts)) or None, text)
