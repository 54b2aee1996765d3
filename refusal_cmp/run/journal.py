"""Work in progress that survives a kill: finished items of an artifact, appended to a file beside it.

A line is a checksum and JSON: the first says what the items are made from, each later one is an index and an item.
A kill, a full disk or a damaged one leave lines that do not hold; the first of these ends what is read, and is cut off
with all that follows before anything is added.
"""

from __future__ import annotations

import hashlib
import json
from collections import UserDict
from collections.abc import Callable, Iterator, MutableMapping
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


class Memo(UserDict[str, Any]):
    """What is known by name, kept in a journal as it comes."""

    def __init__(self, journal: Journal[list[Any]]) -> None:
        super().__init__()
        self._journal = journal
        self.data = dict(journal.values())

    def __setitem__(self, name: str, value: Any) -> None:
        self._journal[len(self._journal)] = [name, value]
        self.data[name] = value


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
