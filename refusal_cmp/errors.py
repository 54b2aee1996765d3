"""What the user did or has that we cannot work with, each told in one sentence."""

from __future__ import annotations

import difflib
import re
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


class BusyError(RefusalCmpError):
    """Another process is at work where this one wants to be."""


class NoSubspaceError(Exception):
    """Raised by an extractor where the two classes cannot be told apart; the message is the reason."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RefusalCmpError:
    """An error that lists what there is and, if one is close, the name that was probably meant."""
    names = sorted(known)
    close = meant(name, names)
    hint = f"Did you mean {close!r}?" if close else ""
    if hint and len(names) > A_FEW:
        return RefusalCmpError(f"Unknown {kind} {name!r}. {hint}")
    there = f"known are {', '.join(names)}" if len(names) <= MOST_LISTED else f"there are {len(names)}"
    return RefusalCmpError(f"Unknown {kind} {name!r}; {there}. {hint}".rstrip())


def meant(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant: the closest, or the only one that is shortened to its start or its initials."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1):
        return close[0]
    short = name.casefold()
    long = [one for one in names if len(short) > 1 and short in (one[: len(short)].casefold(), _initials(one))]
    return long[0] if len(long) == 1 else None


def _initials(name: str) -> str:
    """`diff-in-means` → `dim`."""
    return "".join(word[:1] for word in re.split(r"[-_]", name)).casefold()


def shortened(text: str) -> str:
    """A text as messages show it."""
    return text if len(text) <= 80 else f"{text[:77]}..."
