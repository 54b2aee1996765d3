"""What a cell leaves beside its run when it ends: `cell.json`, by which the driver and the report know it.

A manifest is large, as it vouches for every file of a run; a receipt has what a study asks of a cell, and nothing else
is kept about it: whoever starts a study again looks at the receipts, so that a killed driver has forgotten nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from refusal_cmp.run.files import replacing, writing
from refusal_cmp.study.spec import Cell

RECEIPT = "cell.json"
RESULTS = "results.csv"
"""Of a run."""


@dataclass(frozen=True)
class Receipt:
    """How a cell ended."""

    label: str
    state: Literal["done", "failed"]
    config: str
    """The hash of its settings."""
    until: str
    seconds: Mapping[str, float]
    """By stage: of the last time that it was run, to its end."""
    bytes: int = 0
    """Of its files."""
    results: tuple[int, str] = (0, "")
    """Bytes and hash of its results."""
    standings: Sequence[Mapping[str, Any]] = ()
    """Its plans, best first, as the page of its run ranks them."""
    error: str = ""
    """What was wrong, in one sentence."""
    called: Mapping[str, str] = field(default_factory=dict)
    """What plans of calibrated strengths are called over seeds, by the budget that they meet; by their labels."""

    def stands(self, cell: Cell, until: str, path: Path) -> bool:
        """Whether the cell is done: with these settings, this far, and with its results still there."""
        if self.state != "done" or (self.config, self.until) != (cell.digest, until):
            return False
        try:
            return (path / RESULTS).stat().st_size == self.results[0]
        except OSError:
            return False


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write it into the cell's run directory."""
    with writing(path / RECEIPT):
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / RECEIPT) as file:
            file.write((json.dumps(asdict(receipt), indent=1) + "\n").encode())


def read_receipt(path: Path, *, standings: bool = True) -> Receipt | None:
    """That of a cell's run directory; None if it has none that can be read.

    Parameters
    ----------
    standings
        Whether to keep its plans, which are most of it.
    """
    try:
        content = json.loads((path / RECEIPT).read_bytes())
        content |= {} if standings else {"standings": ()}
        return Receipt(**{**content, "results": tuple(content["results"])})
    except (OSError, ValueError, TypeError, LookupError):
        return None
