"""How long work reports progress, without knowing of any terminal.

A `Progress` opens a task of so many steps and gives the function that advances it:

    with progress("generating", len(prompts)) as advance:
        ...
        advance(1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """The progress of library use: none is shown."""
    yield lambda steps: None
