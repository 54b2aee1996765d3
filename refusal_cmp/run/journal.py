"""Work in progress that survives a kill: finished items of an artifact, appended to a file beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def _as_it_is(value: Any) -> Any:
    return value


class Journal(MutableMapping[int, T], Generic[T]):
    """Finished items by index, one JSON line each; the file is read again after a kill.

    Parameters
    ----------
    path
        The file; it comes into being with the first item.
    identity
        What the items are made from. A journal of something else is begun anew.
    encode, decode
        Between an item and a JSON value.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        encode: Callable[[T], Any] = _as_it_is,
        decode: Callable[[Any], T] = _as_it_is,
    ) -> None:
        self.path = path
        self._identity = identity
        self._encode = encode
        self._items: dict[int, T] = {index: decode(value) for index, value in self._read()}

    def __setitem__(self, index: int, item: T) -> None:
        if not self._items:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self._identity) + "\n", encoding="utf-8")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, self._encode(item)], ensure_ascii=False) + "\n")
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

    def _read(self) -> list[tuple[int, Any]]:
        """The items of the file, if it is of the same work; a line that a kill cut short ends them."""
        if not self.path.is_file():
            return []
        whole = self.path.read_bytes()
        lines = whole.split(b"\n")[:-1]
        if not lines or lines[0] != json.dumps(self._identity).encode():
            return []
        items = []
        for line in lines[1:]:
            try:
                index, value = json.loads(line)
            except ValueError:
                break
            items.append((index, value))
        if whole[-1:] != b"\n" or len(items) < len(lines) - 1:
            self._rewrite(items)
        return items

    def _rewrite(self, items: list[tuple[int, Any]]) -> None:
        rows = [self._identity, *([index, value] for index, value in items)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.path.write_text(text, encoding="utf-8")
