"""The folder of a comparison with several seeds: a run directory for each, and what holds over all of them."""

from __future__ import annotations

from pathlib import Path

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.directory import RunDir, cell_name
from refusal_cmp.run.session import Session, open_run


def claim(run: RunDir, seeds: tuple[int, ...]) -> None:
    """Make a folder that of these seeds' runs.

    Raises
    ------
    RefusalCmpError
        If it is a run itself.
    """
    if run.settings:
        raise RefusalCmpError(
            f"{run.path} is a run with one seed, which several would not fit into; name another folder.", alias="NAME"
        )
    with run.locked():
        run.note(seeds=list(seeds))
        run.save()


def open_seeds(path: Path) -> dict[int, Session]:
    """A session on the run of every seed."""
    return {seed: open_run(path / cell_name(seed)) for seed in RunDir(path).seeds}
