"""What comes from outside, on a terminal: shown as it is, but for what would move, hide or turn round what is shown.

Prompts, completions, names of files and what servers say may hold control characters, marks of writing direction and
characters without width. They stand as Python writes them, `\\x1b`, `\\u202e`, and markup is text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

LAYOUT = "\n\t"
"""Kept in what may have several lines."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format, half of a pair, and separators of lines and paragraphs."""
SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Of them, those that are seen."""
JOINERS = "\u200c\u200d"
"""Belong inside an emoji, and between letters of scripts whose letters join."""
JOINED = ("Lo", "Mc", "Mn", "Sk", "Sm", "So")


def visible(text: str, kept: str = "") -> str:
    """A text of anybody's as a terminal may show it; on one line, unless line ends are `kept`."""
    if text.isprintable():
        return text
    return "".join(one if one in kept or _is_seen(text, at) else _escaped(one) for at, one in enumerate(text))


def line(text: str, style: str = "") -> Text:
    """A name, a path or a sentence, for rich."""
    return Text(visible(text), style)


def lines(text: str) -> Text:
    """A text that may have several lines, for rich."""
    return Text(visible(text, LAYOUT))


class Terminal(Console):
    """A console on which strings have no markup and nothing reaches the terminal unseen, whoever prints it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as it is laid out."""
        return super().render_str(visible(text, LAYOUT), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is laid out, checked once more; rich's own control codes are segments of their own."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text, LAYOUT), style, control)


def _is_seen(text: str, at: int) -> bool:
    one, around = text[at], (text[at - 1 : at], text[at + 1 : at + 2])
    if one in JOINERS:
        return all(other and category(other) in JOINED for other in around)
    return category(one) not in UNSEEN or one in SIGNS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
