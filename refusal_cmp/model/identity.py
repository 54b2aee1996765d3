"""What a model is that lies in files: a hash of them, because their names say nothing."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.files import ModelFiles, commit
from refusal_cmp.progress import Progress, silent

ENDINGS = (".json", ".jinja", ".safetensors", ".bin", ".model", ".tiktoken", ".py")
"""Of the files that decide what a model computes: weights, configuration, tokenizer, template, code."""
NAMES = ("merges.txt", "vocab.txt")
CHUNK = 2**24
"""Bytes that are read at a time."""
SOON = 64
"""Chunks that are read before anybody asks how long it takes: a gigabyte."""


def content(files: ModelFiles, progress: Progress = silent) -> str | None:
    """A hash of what a model is loaded from; of an adapter, also its base. None for a whole model on the hub.

    What is on the hub goes by its commit.
    """
    base = files.gguf or files.base
    of_base = fingerprint(Path(base), progress) if Path(base).exists() else None
    if files.adapter is None:
        return of_base
    parts = [
        fingerprint(Path(files.adapter), progress)
        if Path(files.adapter).exists()
        else f"{files.adapter}@{commit(files.adapter, files.adapter_revision)}",
        of_base or f"{base}@{commit(base, files.revision)}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def fingerprint(path: Path, progress: Progress = silent) -> str:
    """A hash of the files that a model is loaded from, whatever the folder or file is called and wherever it lies.

    Every byte is read, about a gigabyte a second and core: a fine-tuned or edited model has files of the same sizes.

    Raises
    ------
    RefusalCmpError
        If a file cannot be read.
    """
    try:
        files = sorted(one for one in path.iterdir() if _matters(one)) if path.is_dir() else [path]
        chunks = sum(-(-one.stat().st_size // CHUNK) for one in files)
        shown = chunks if chunks > SOON else 0
        with progress("reading the model's files", shown) as advance, ThreadPoolExecutor() as pool:

            def digest(one: Path) -> str:
                sha = hashlib.sha256()
                with one.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        sha.update(chunk)
                        advance(1)
                return f"{one.name if one != path else ''} {sha.hexdigest()}\n"

            return hashlib.sha256("".join(pool.map(digest, files)).encode()).hexdigest()[:16]
    except OSError as error:
        raise RefusalCmpError(f"Cannot read the model in {path}: {error}; give one that can be read.") from None


def _matters(path: Path) -> bool:
    return path.is_file() and (path.suffix in ENDINGS or path.name in NAMES)
