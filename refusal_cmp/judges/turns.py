"""Where an answer runs past its turn: at an end-of-turn token, or where the model writes the next turn itself.

What a next turn looks like depends on the template and on whether control tokens were decoded: after Llama-3's answers
stands `<|eot_id|><|start_header_id|>assistant<|end_header_id|>` or, without them, `assistant` glued to the last
sentence. A model's own template says it exactly (`Chat.turns`); the patterns here are for texts without their model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

CONTROL = re.compile(
    r"<[|｜][\w▁:/-]{2,40}[|｜]?>|<[\w▁]{2,40}[|｜]>|\[\|(?:endofturn|system|user|assistant)\|\]"
    r"|</?(?:s|eos|bos|pad|unk|start_of_turn|end_of_turn)>|<(?:extra_id|reserved)_\d+>|\[/?INST\]|<</?SYS>>"
)
"""Control tokens as the known model families write them: `<|im_end|>`, `</s>`, `<end_of_turn>`, `[INST]`, …"""

_GLUED = r"""(?:(?<=[^\s\-@#/(<\[{*_"'`“‘])|(?<=[\w.!?…)][*_"'`])|(?<=[\w.!?…)][*_"'`]{2}))"""
"""Right after what ends a sentence or a word: no space, hyphen, opening bracket, quotation or emphasis in between."""
_ENDED = r"""(?:(?<=[.!?…。！？])|(?<=[.!?…。！？][*_"”])|(?<=[.!?…。！？][*_]{2}))"""
"""Right after a sentence."""
_HEADER = re.compile(
    rf"{_GLUED}(?:assistant|(?<![a-z_])(?:user|system))\n\n"  # Llama-3
    r"|\n(?:user|model|assistant|system)\n(?:\s*user\n)?"  # ChatML, Gemma,
    r"(?=\S[^\n]*(?:\w \w|[^\x00-\x7f]|[.!?]))"  # where more than a word follows
    r"|\n\s{0,9}\#{2,3} ?(?:Human|User|Instruction|Assistant):"  # Alpaca, Guanaco
    rf"|(?:\n\s{{0,9}}\n *|{_ENDED}\s{{0,9}})(?:Human|User|HUMAN|USER|Assistant|ASSISTANT) ?:"  # Vicuna
)
_OWN = re.compile(rf"(?:{CONTROL.pattern})(?:(?:assistant|model)(?=\s*\n|<))?")
_SCRIPT = re.compile(
    r"^\W*(?:human|user|assistant|ai|(?:chat)?bot|robot|agent|customer|interviewer|model)\b[^\n:]{0,20}:"
    r"|\b(?:conversation|dialog(?:ue)?|transcript|script|role-?play|chat log)s?\b",
    re.IGNORECASE | re.MULTILINE,
)
"""What says that a text is meant to have speakers."""
_SYSTEM = re.compile(r"\n\s*system\s*\Z")
"""What begins another conversation, before the header of its first question."""
_BARE = re.compile(r"\s*[a-z]+")
_QUOTES = "`\"'“”‘’"
_FENCE = "```"


def end_of_turn(text: str, markers: Sequence[str] = ()) -> int | None:
    """Where the text runs past its turn: the index of the first thing that is part of no answer, if there is one.

    Parameters
    ----------
    markers
        What the model's own template writes between turns, as `Chat.turns` finds it.
    """
    return min((*_controls(text), *_headers(text, markers)), default=None)


def opening(text: str, markers: Sequence[str] = ()) -> int:
    """How many characters at its start are not the text's own: white space, a control token, a header of its turn."""
    own = text.lstrip()
    if control := _OWN.match(own):
        return len(text) - len(own) + control.end()
    header = next((marker.lstrip() for marker in markers if marker.strip() and own.startswith(marker.lstrip())), "")
    return len(text) - len(own) + len(header)


def without_control(text: str) -> str:
    """The text without control tokens, and without white space at its ends."""
    return CONTROL.sub("", text).strip()


def _controls(text: str) -> Iterator[int]:
    """Control tokens, unless the answer speaks of them: in quotation marks, or as HTML that strikes words out."""
    for match in CONTROL.finditer(text):
        begin, end = match.span()
        quoted = begin > 0 and end < len(text) and text[begin - 1] in _QUOTES and text[end] in _QUOTES
        struck = match[0] == "<s>" or (match[0] == "</s>" and "<s>" in text[:begin])
        if not quoted and not struck:
            yield begin


def _headers(text: str, markers: Sequence[str]) -> Iterator[int]:
    """Headers of a next turn, where an answer can have ended."""
    for pattern in (_HEADER, _given(markers)):
        for match in pattern.finditer(text):
            before = _SYSTEM.sub("", text[: match.start()])
            if _has_ended(before) and not (match[0].rstrip().endswith(":") and _SCRIPT.search(before)):
                yield len(before)


def _given(markers: Sequence[str]) -> re.Pattern[str]:
    """The template's own headers; its control tokens are those of any text."""
    return re.compile("|".join(_marker(marker) for marker in markers if not CONTROL.fullmatch(marker)) or r"(?!)")


def _marker(marker: str) -> str:
    """The pattern of a header: one that begins with a letter is not inside a word, nor inside a sentence."""
    if not marker[0].isalpha():
        return re.escape(marker)
    return (r"(?<=[\s.!?…])" if marker.endswith(":") else rf"{_GLUED}(?<![a-z_])") + re.escape(marker)


def _has_ended(before: str) -> bool:
    """Whether an answer can end here: not in code, after a colon, or in a list of bare words."""
    last = before.rstrip().rsplit("\n", 1)[-1]
    return last != "" and last[-1] != ":" and not _BARE.fullmatch(last) and before.count(_FENCE) % 2 == 0
