"""Files that the user names: regular ones, read whole, and told in one sentence where they cannot be.

What is no regular file (a pipe, a device) is not opened, as to read it may never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refusal_cmp.errors import RefusalCmpError

GIB = 2**30


def check_regular(path: Path, what: str, give: str = "an existing file", most: int = GIB) -> None:
    """RefusalCmpError if the path is not that of a regular file of at most so many bytes.

    Parameters
    ----------
    what, give
        What it is and what to give in its place, for the message: `Cannot read the WHAT x.csv: …; give GIVE.`
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: no path can be so called
        raise _unreadable(path, what, give, error) from None
    if stat.S_ISDIR(found.st_mode):
        raise RefusalCmpError(f"Cannot read the {what} {path}: it is a directory; give {give}.")
    if not stat.S_ISREG(found.st_mode):
        raise RefusalCmpError(f"Cannot read the {what} {path}: it is a pipe or a device; give {give}.")
    if found.st_size > most:
        raise RefusalCmpError(
            f"Cannot read the {what} {path}: it has {found.st_size} bytes, and may have {most}; give {give}."
        )


def read_bytes(path: Path, what: str, give: str = "an existing file", most: int = GIB) -> bytes:
    """What is in a file; RefusalCmpError if it cannot be read."""
    check_regular(path, what, give, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, what, give, error) from None


def read_text(path: Path, what: str, give: str = "a text file", most: int = GIB) -> str:
    """The text of a file, without a byte order mark; RefusalCmpError if it cannot be read or is no UTF-8 text."""
    try:
        text = read_bytes(path, what, give, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusalCmpError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise RefusalCmpError(f"Line {line} of {path} holds a NUL character; save it as UTF-8 text.")
    return text


def _unreadable(path: Path, what: str, give: str, error: OSError | ValueError) -> RefusalCmpError:
    reason = getattr(error, "strerror", None) or "no file can be called that"
    return RefusalCmpError(f"Cannot read the {what} {path}: {reason}; give {give}.")
