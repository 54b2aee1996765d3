"""Public sets, fetched on first use: files of GitHub repositories, and data sets of the Hugging Face hub.

Everything is looked for first in the folder `$REFUSAL_CMP_DATA`, as `owner/name/path in the repository`: there a
machine without network has its copies, such as clones of the repositories. Files of GitHub are kept there too
(by default in `~/.cache/refusal-cmp`), each beside a note of where it came from and its checksum; data sets of
the hub are kept by the `datasets` library.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refusal_cmp.errors import RefusalCmpError

VARIABLE = "REFUSAL_CMP_DATA"
GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
TIMEOUT = 60
"""Seconds."""


def folder() -> Path:
    """Where copies of public sets are looked for and kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(cache) / "refusal-cmp")


def github_file(repository: str, revision: str, path: str) -> Path:
    """A file of a GitHub repository, downloaded if there is no good copy of it.

    Raises
    ------
    RefusalCmpError
        If it can be neither found, downloaded nor kept.
    """
    url = f"{GITHUB}/{repository}/{revision}/{path}"
    copy = folder() / repository / path
    note = copy.with_name(f"{copy.name}.source.json")
    if copy.is_file() and not _is_stale(copy, note, url):
        return copy
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RefusalCmpError(
            f"Cannot download {url} ({_first_line(error)}); check the connection, or put a copy at {copy}."
        ) from None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _replace(copy, content)
        _replace(note, json.dumps({"url": url, "sha256": hashlib.sha256(content).hexdigest()}, indent=1).encode())
    except OSError as error:
        raise RefusalCmpError(
            f"Cannot keep {copy}: {error.strerror}; free space, or name another folder by ${VARIABLE}."
        ) from None
    return copy


def hub_rows(
    repository: str, split: str, *, name: str | None = None, streaming: bool = False
) -> Iterable[dict[str, Any]]:
    """The rows of a split of a data set of the hub; streamed, they are fetched as they are read.

    Raises
    ------
    RefusalCmpError
        If it is gated, cannot be reached, or has no such split; while rows are read, too.
    """
    from datasets import load_dataset

    copy = folder() / repository
    try:
        rows = load_dataset(str(copy) if copy.is_dir() else repository, name, split=split, streaming=streaming)
        yield from rows
    except Exception as error:  # the library raises what its libraries raise
        raise _hub_error(repository, error) from None


def _hub_error(repository: str, error: Exception) -> RefusalCmpError:
    reason = _first_line(error)
    if "gated" in reason:
        return RefusalCmpError(
            f"The data set {repository} is gated; accept its terms at {HUB}/{repository} and log in with "
            "`hf auth login`."
        )
    return RefusalCmpError(
        f"Cannot load the data set {repository} of the Hugging Face hub ({reason}); check the connection, or put a "
        f"copy at {folder() / repository}."
    )


def _is_stale(copy: Path, note: Path, url: str) -> bool:
    """Whether a copy that we downloaded is of another revision or damaged; one without a note is somebody's own."""
    if not note.is_file():
        return False
    try:
        origin = json.loads(note.read_text(encoding="utf-8"))
        return origin != {"url": url, "sha256": hashlib.sha256(copy.read_bytes()).hexdigest()}
    except (OSError, ValueError):
        return True


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
