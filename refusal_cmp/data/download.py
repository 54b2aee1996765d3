"""Public sets, fetched on first use: files of GitHub repositories, and data sets of the Hugging Face hub.

Both are pinned to a commit, so that everybody reads the same bytes. Everything is looked for first in the folder
`$REFUSAL_CMP_DATA`, as `owner/name/path in the repository`: there a machine without network has its copies, such as
clones of the repositories. Files of GitHub are kept there too (by default in `~/.cache/refusal-cmp`), each beside a
note of where it came from and its checksum; data sets of the hub are kept by the `datasets` library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refusal_cmp.config.network import asked_by, is_offline, lifted_by
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import HubAwayError, Repo, commit_of, explained

VARIABLE, CACHE_VARIABLE = "REFUSAL_CMP_DATA", "XDG_CACHE_HOME"
GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
TIMEOUT = 60
"""Seconds without an answer, or between two parts of one."""
RETRIES = 2


def folder() -> Path:
    """Where copies of public sets are looked for and kept."""
    return Path(os.environ.get(VARIABLE) or cache())


def cache() -> Path:
    """Where models are kept; whoever names a folder of public sets may not be able to write there."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "refusal-cmp"


@dataclass(frozen=True)
class Repository:
    """A GitHub repository at a commit."""

    name: str
    """`owner/name`."""
    commit: str
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by path, where it is known. That of another file is what it was when it was first downloaded."""

    def file(self, path: str) -> Path:
        """A file of the repository, downloaded if there is no good copy of it; one without a note is somebody's own.

        Raises
        ------
        RefusalCmpError
            If it can be neither found, downloaded nor kept, or is not what it was.
        """
        copy = folder() / self.name / path
        note = copy.with_name(f"{copy.name}.source.json")
        url = f"{GITHUB}/{self.name}/{self.commit}/{path}"
        origin = _origin(note)
        known = self.checksums.get(path) or (origin.get("sha256") if origin.get("url") == url else None)
        if not (copy.is_file() and (not note.is_file() or _sha256(copy) == known)):
            self._download(path, known, copy, note)
        return copy

    def _download(self, path: str, known: str | None, copy: Path, note: Path) -> None:
        """Fetch a file beside its place, and put it there with its note once it is whole and the right one."""
        import pooch
        from requests import RequestException

        pooch.get_logger().setLevel("WARNING")
        base = f"{GITHUB}/{self.name}/{self.commit}/"
        if is_offline():
            raise RefusalCmpError(
                f"There is no {copy}, and nothing is downloaded, as {asked_by()} asks; put a copy of "
                f"{base}{path} there, or choose a set that comes with us.",
                **lifted_by(),
            )
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".download-") as staging:
                fetcher = pooch.create(staging, base, registry={path: known}, retry_if_failed=RETRIES)
                fetched = Path(fetcher.fetch(path, downloader=pooch.HTTPDownloader(timeout=TIMEOUT)))
                note.write_text(json.dumps({"url": base + path, "sha256": _sha256(fetched)}, indent=1))
                os.replace(fetched, copy)
        except RequestException as error:
            raise RefusalCmpError(
                f"Cannot download {base}{path} ({_reason(error)}); check the connection, or put a copy at {copy}."
            ) from None
        except ValueError:  # pooch: another checksum
            raise RefusalCmpError(
                f"What is at {base}{path} is not the file that it was, of SHA-256 {known}; find out what changed, or "
                f"put a copy that you trust at {copy}."
            ) from None
        except OSError as error:
            raise RefusalCmpError(
                f"Cannot keep {copy}: {error.strerror}; free space, or name another folder by ${VARIABLE}."
            ) from None


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub at a commit."""

    name: str
    """`owner/name`."""
    commit: str

    def rows(self, split: str, *, subset: str | None = None, streaming: bool = False) -> Iterable[dict[str, Any]]:
        """The rows of a split; streamed, they are fetched as they are read.

        Raises
        ------
        RefusalCmpError
            If it is gated, cannot be reached, or has no such split; while rows are read, too.
        """
        from datasets import load_dataset

        copy = folder() / self.name
        where = {"path": str(copy)} if copy.is_dir() else {"path": self.name, "revision": self.commit}
        away = None
        try:
            if not copy.is_dir():
                commit_of(self._repo)
        except HubAwayError as error:  # the library may have it in a cache of its own
            away = error
        try:
            rows = load_dataset(**where, name=subset, split=split, streaming=streaming)
            if away is not None:
                self._check_commit(rows)
            yield from rows
        except Exception as error:  # the library raises what its libraries raise
            raise self._explained(error, away) from None

    def _check_commit(self, rows: Any) -> None:
        """ValueError for another commit: without a hub the library takes what it has read last."""
        folders = [Path(file["filename"]).parent.name for file in getattr(rows, "cache_files", [])]
        if not {self.commit}.issuperset(folders):
            raise ValueError("another commit is in the cache")

    @property
    def _repo(self) -> Repo:
        instead = f"put a copy at {folder() / self.name}"
        return Repo(self.name, self.commit, f"the data set {self.name}", instead, "dataset")

    def _explained(self, error: Exception, away: HubAwayError | None) -> RefusalCmpError:
        said = explained(error, self._repo)
        reason = _first_line(error)
        if "gated" in reason:
            return RefusalCmpError(
                f"The data set {self.name} is gated; accept its terms at {HUB}/{self.name} and log in with "
                "`hf auth login`."
            )
        return (
            said
            or away
            or RefusalCmpError(
                f"Cannot load the data set {self.name} of the Hugging Face hub ({reason}); check the connection, or "
                f"{self._repo.instead}."
            )
        )


def _origin(note: Path) -> dict[str, Any]:
    """What a note says; nothing if there is none, or it is damaged."""
    try:
        origin = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _reason(error: BaseException) -> str:
    """What a request failed of, without the pool of connections that it was made in."""
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return re.sub(r"^\w+\(.*?\): ", "", _first_line(inner))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
