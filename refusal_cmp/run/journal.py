"""Work in progress that survives a kill: finished items of an artifact, appended to a file beside it.

A line is a checksum and JSON: the first says what the items are made from, each later one is an index and an item.
A kill, a full disk or a damaged one leave lines that do not hold; the first of these ends what is read, and is cut off
with all that follows before anything is added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.files import writing

T = TypeVar("T")


def _as_it_is(value: Any) -> Any:
    return value


class Journal(MutableMapping[int, T], Generic[T]):
    """Finished items by index; the file is read again after a kill.

    Parameters
    ----------
    path
        The file; it comes into being with the first item.
    identity
        What the items are made from. A journal of something else is begun anew.
    encode, decode
        Between an item and a JSON value.

    Raises
    ------
    RefusalCmpError
        If the file cannot be read; when an item is added, if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        encode: Callable[[T], Any] = _as_it_is,
        decode: Callable[[Any], T] = _as_it_is,
    ) -> None:
        self.path = path
        self._head = _line(identity)
        self._encode = encode
        self._decode = decode
        self._items: dict[int, T] = {}
        self._end = 0
        """Bytes of the file that hold; 0 if it is to be begun anew."""
        self._read()

    def __setitem__(self, index: int, item: T) -> None:
        line = _line([index, self._encode(item)])
        with writing(self.path):
            if not self._end:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                line = self._head + line
            with self.path.open("r+b" if self._end else "wb") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
        self._end += len(line)
        self._items[index] = item

    def __getitem__(self, index: int) -> T:
        return self._items[index]

    def __delitem__(self, index: int) -> None:
        raise TypeError("a journal only grows")

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def discard(self) -> None:
        """Delete the file: the artifact is finished."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Take the items of the file, if it is of the same work, up to the first line that does not hold."""
        if not self.path.is_file():
            return
        try:
            head, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        except OSError as error:
            raise RefusalCmpError(f"Cannot read {self.path}: {error.strerror}.") from None
        if head != self._head:
            return
        self._end = len(head)
        for line in lines:
            try:
                index, value = _value_of(line)
                item = self._decode(value)
            except (ValueError, TypeError, LookupError, AttributeError):  # damaged, or of another shape than ours
                return
            if not isinstance(index, int):
                return
            self._items[index] = item
            self._end += len(line)


class Memo(MutableMapping[str, Any]):
    """What is known by name, kept in a journal; what comes in one `update` is there as a whole or not at all."""

    def __init__(self, journal: Journal[dict[str, Any]]) -> None:
        self._journal = journal
        self._known: dict[str, Any] = {}
        for part in journal.values():
            self._known |= part

    def update(self, new: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Note all of these."""
        self._journal[len(self._journal)] = dict(new)
        self._known |= new

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __getitem__(self, name: str) -> Any:
        return self._known[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError("a memo only grows")

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _line(value: Any) -> bytes:
    """A value as a line of ASCII; a lone surrogate in a text survives."""
    text = json.dumps(value).encode()
    return _checksum(text) + b" " + text + b"\n"


def _value_of(line: bytes) -> Any:
    """The value of a line; ValueError if it is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != _checksum(text[:-1]):
        raise ValueError("the line is damaged")
    return json.loads(text)


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()
