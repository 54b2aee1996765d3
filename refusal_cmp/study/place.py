"""Where the files of cells are kept: the study's folder, or an fsspec URL that machines without a common one share.

A URL holds what the folder would: each file of a run under its name, the manifest after all that it vouches for, and
the receipt last. A cell that goes on, on another machine, begins by fetching what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refusal_cmp.errors import RefusalCmpError

MANIFEST = "manifest.json"


class Place(Protocol):
    """Keeps the files of cells."""

    def fetch(self, label: str, names: Sequence[str] | None = None) -> None:
        """Bring a cell's files into the study's folder: these, or all that its manifest vouches for."""
        ...

    def keep(self, label: str, names: Sequence[str] | None = None) -> None:
        """Put them there: these, or all that have changed."""
        ...


class Folder:
    """The study's folder, which every machine sees: there is nothing to do."""

    def fetch(self, label: str, names: Sequence[str] | None = None) -> None:
        """Nothing."""

    def keep(self, label: str, names: Sequence[str] | None = None) -> None:
        """Nothing."""


@dataclass
class Url:
    """An fsspec URL, as in `s3://bucket/study`."""

    url: str
    home: Path

    def __post_init__(self) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise RefusalCmpError(
                f"Results cannot be kept at {self.url}: {str(error).rstrip('.')}; give a URL that fsspec knows, and "
                "install what it needs."
            ) from None

    def fetch(self, label: str, names: Sequence[str] | None = None) -> None:
        """Bring a cell's files into the study's folder: these, or all that its manifest vouches for."""
        if names is None:
            vouched = self._vouched(label)
            here = self._digests((self.home / label / MANIFEST).read_bytes()) if self._is_here(label) else {}
            names = [name for name, digest in vouched.items() if here.get(name) != digest]
            names = [*names, MANIFEST] if vouched else []
        for name in names:
            local = self.home / label / name
            local.parent.mkdir(parents=True, exist_ok=True)
            try:
                content = self._files.cat_file(f"{self._root}/{label}/{name}")
            except FileNotFoundError:
                continue
            temporary = local.with_name(f".refusal-cmp-tmp-{local.name}")
            temporary.write_bytes(content)
            temporary.replace(local)

    def keep(self, label: str, names: Sequence[str] | None = None) -> None:
        """Put them there: these, or all that have changed, the manifest last."""
        if names is None:
            there = self._vouched(label)
            here = self._digests((self.home / label / MANIFEST).read_bytes())
            names = [*(name for name, digest in here.items() if there.get(name) != digest), MANIFEST]
        for name in names:
            local = self.home / label / name
            if local.is_file():
                target = f"{self._root}/{label}/{name}"
                self._files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                self._files.pipe_file(target, local.read_bytes())

    def _is_here(self, label: str) -> bool:
        return (self.home / label / MANIFEST).is_file()

    def _vouched(self, label: str) -> dict[str, str]:
        """The digest of every file of a cell that is kept."""
        try:
            return self._digests(self._files.cat_file(f"{self._root}/{label}/{MANIFEST}"))
        except FileNotFoundError:
            return {}

    @staticmethod
    def _digests(manifest: bytes) -> dict[str, Any]:
        return json.loads(manifest).get("files", {})


def place_of(url: str, home: str | Path) -> Place:
    """The place at a URL; the study's folder where none is given."""
    return Url(url, Path(home)) if url else Folder()
