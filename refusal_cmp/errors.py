"""What the user did or has that we cannot work with, each told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 100
"""More names than this are counted, not listed."""
A_FEW = 20
"""Of more names than this only the one that was probably meant is said, if there is one."""


class RefusalCmpError(Exception):
    """A mistake the user can mend: what, what was expected, what was found, what to do.

    The command line prints it as one sentence and exits with code 2; nothing has been written over.

    Parameters
    ----------
    settings
        Those that mend it, each with the value to give or "": `dtype="bfloat16", device=""`. The message does without
        them, as it is for callers from Python too; the command line adds them as its options.
    """

    def __init__(self, message: str, **settings: str) -> None:
        super().__init__(message)
        self.settings = settings


class NoSubspaceError(Exception):
    """Raised by an extractor where the two classes cannot be told apart; the message is the reason."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RefusalCmpError:
    """An error that lists what there is and, if one is close, the name that was probably meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    if hint and len(names) > A_FEW:
        return RefusalCmpError(f"Unknown {kind} {name!r}. {hint}")
    there = f"known are {', '.join(names)}" if len(names) <= MOST_LISTED else f"there are {len(names)}"
    return RefusalCmpError(f"Unknown {kind} {name!r}; {there}. {hint}".rstrip())


def shortened(text: str) -> str:
    """A text as messages show it."""
    return text if len(text) <= 80 else f"{text[:77]}..."
