"""What a model in a folder is: a hash of its files, because its name says nothing of them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.progress import Progress, silent

ENDINGS = (".json", ".jinja", ".safetensors", ".bin", ".model", ".tiktoken", ".py")
"""Of the files that decide what a model computes: weights, configuration, tokenizer, template, code."""
NAMES = ("merges.txt", "vocab.txt")
CHUNK = 2**24
"""Bytes that are read at a time."""
SOON = 64
"""Chunks that are read before anybody asks how long it takes: a gigabyte."""


def fingerprint(folder: Path, progress: Progress = silent) -> str:
    """A hash of the files that a model is loaded from, whatever the folder is called and wherever it lies.

    Every byte is read, about a gigabyte a second and core: a fine-tuned or edited model has files of the same sizes.

    Raises
    ------
    RefusalCmpError
        If a file cannot be read.
    """
    try:
        files = sorted(
            path for path in folder.iterdir() if path.is_file() and (path.suffix in ENDINGS or path.name in NAMES)
        )
        chunks = sum(-(-path.stat().st_size // CHUNK) for path in files)
        shown = chunks if chunks > SOON else 0
        with progress("reading the model's files", shown) as advance, ThreadPoolExecutor() as pool:

            def digest(path: Path) -> str:
                sha = hashlib.sha256()
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        sha.update(chunk)
                        advance(1)
                return f"{path.name} {sha.hexdigest()}\n"

            return hashlib.sha256("".join(pool.map(digest, files)).encode()).hexdigest()[:16]
    except OSError as error:
        raise RefusalCmpError(f"Cannot read the model in {folder}: {error}; give a folder that can be read.") from None
