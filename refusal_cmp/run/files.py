"""Files of a run: written whole or not at all, and named by the error if they cannot be.

What is there only for a while has names that no user gives, so that what a killed process leaves can be swept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from refusal_cmp.errors import RefusalCmpError

OWN = ".refusal-cmp-"
"""How every name begins that is ours and no artifact."""
TEMPORARY = f"{OWN}tmp-"
UNFINISHED = f"{OWN}part"
"""What the name of a journal adds to that of its artifact."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the block an OSError is a sentence that names what cannot be written."""
    try:
        yield
    except OSError as error:
        raise RefusalCmpError(
            f"Cannot write {path}: {error.strerror}; free space or choose another folder of runs.", runs_dir="PATH"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that takes the path's place once it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
