"""Where a text starts to go in circles.

Read without white space and case, let c_j be 1 where the `COPY` characters that end at j have been there before, and 0
where something new is said. Where a loop sets in, c changes from mostly 0 to nearly always 1, and it stays there to the
end of the text. The change is found as the suffix that has the largest sum of c_j − `SHARE` (the cumulative sum test of
Page 1954, Biometrika 41:100), and it is a loop if the suffix is long and goes over the same ground more than once more.

Lists, tables and refrains repeat themselves too, but say something new in between: one new word is `COPY` new places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

COPY = 20
"""Characters in a row that are no chance repetition: four words, about."""
SHARE = 0.9
"""A loop says nothing new at more than this share of its places: its passes may differ in a word now and then."""
LEAST = 40
"""Shortest repetition, in characters, that is a loop: laughter is shorter."""
MORE = 2
"""How many times more it goes over the same ground, at least; a last refrain is said once more."""
NEW = -1
"""Where nothing like it has been before."""
LONGEST_RULE = 100
"""A line of one mark up to this long is typography: rules, dotted leaders, blanks to fill in."""

_RULE = re.compile(r"([\W_])\1{3,}")
_STOP = re.compile(r"""[.!?…。！？](?![.!?…。！？])["'”’」)\]*_]*""")


class Loop(NamedTuple):
    """The loop that a text ends in, by indices into the text."""

    begins: int
    """Where the first pass begins."""
    repeats: int
    """Where the second pass begins: from here on nothing is new."""


def find_loop(text: str) -> Loop | None:
    """The loop that the text ends in, if there is one."""
    places = _places(text)
    letters = "".join(text[place].lower()[0] for place in places)
    sources = _sources(letters)
    start = _onset(sources)
    if start is None:
        return None
    end = start + COPY - 1
    period = start - sources[start]
    while end >= period and letters[end] == letters[end - period]:
        end -= 1
    repeats = end + 1
    ground = len({letters[at : at + COPY] for at in range(start, len(sources)) if sources[at] != NEW})
    if len(letters) - repeats < max(LEAST, MORE * ground, MORE * period):
        return None
    return Loop(places[repeats - period], _after_stop(text, places[repeats]))


def _places(text: str) -> list[int]:
    """Indices of the characters that are looked at: no white space, and three marks of a rule."""
    rules = [match.span() for match in _RULE.finditer(text) if match.end() - match.start() <= LONGEST_RULE]
    passed = {place for begin, end in rules for place in range(begin + 3, end)}
    return [place for place, char in enumerate(text) if not char.isspace() and place not in passed]


def _after_stop(text: str, place: int) -> int:
    """The place, or the one behind the full stop that stands there: it belongs to what is said before."""
    stop = _STOP.match(text, place)
    return stop.end() if stop else place


def _sources(letters: str) -> list[int]:
    """For each window of `COPY` characters, by where it begins, where the last earlier one like it does, or `NEW`."""
    last: dict[str, int] = {}
    sources = []
    for begin in range(len(letters) - COPY + 1):
        window = letters[begin : begin + COPY]
        sources.append(last.get(window, NEW))
        last[window] = begin
    return sources


def _onset(sources: Sequence[int]) -> int | None:
    """The window from which on the sum of c_j − `SHARE` to the end is largest, if any sum is positive."""
    best, total, onset = 0.0, 0.0, None
    for begin in reversed(range(len(sources))):
        total += (sources[begin] != NEW) - SHARE
        if total > best:
            best, onset = total, begin
    return onset
