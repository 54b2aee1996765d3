"""Runs the cells of a study that are not done, one beside the other, until each has ended.

All that is known of a cell is its receipt, and of the study its file: a driver that was killed has forgotten nothing,
and one that is started when all is done reads the receipts and ends.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.files import OWN, replacing, writing
from refusal_cmp.study.executors import Ended, Executor, Task
from refusal_cmp.study.place import place_of
from refusal_cmp.study.receipts import RECEIPT, Receipt, read_receipt
from refusal_cmp.study.spec import Cell, Study

STUDY = "study.json"
"""The study as its file said it last, for the report."""
MANIFEST = "manifest.json"
EVERY = 0.5
"""Seconds between two looks at the tasks."""


@dataclass
class Progress:
    """How far a study is."""

    study: Study
    home: Path
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Of the cells that have ended, by label."""
    waiting: list[str] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    """When each began, by `time.monotonic`."""
    ended: list[str] = field(default_factory=list)
    """Those that ended since this driver began, in that order."""
    kills: int = 0

    @property
    def done(self) -> list[str]:
        """The labels of the cells that are done."""
        return [label for label, one in self.receipts.items() if one.state == "done"]

    @property
    def failed(self) -> list[Receipt]:
        """The receipts of those that failed."""
        return [one for one in self.receipts.values() if one.state == "failed"]


@contextmanager
def owned(home: Path, study: Study) -> Iterator[None]:
    """Keeps other drivers out of a study's folder, which says what it is the folder of.

    Raises
    ------
    RefusalCmpError
        If the folder is a run's, or another driver is at work there.
    """
    with writing(home):
        if (home / MANIFEST).exists():
            raise RefusalCmpError(f"{home} is a run, and no study's folder; give another name.", name="NAME")
        home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / f"{OWN}lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RefusalCmpError(
            f"Another process is at work on the study {home}; wait for it, or give another name.", name="NAME"
        ) from None
    try:
        content = (json.dumps(study.to_json(), indent=1) + "\n").encode()
        if not (home / STUDY).exists() or (home / STUDY).read_bytes() != content:
            with writing(home / STUDY), replacing(home / STUDY) as file:
                file.write(content)
        yield
    finally:
        lock.release()


def ended_before(study: Study, home: Path, results: str = "") -> dict[str, Receipt]:
    """The receipts of the cells that are done, by label."""
    found = {}
    for cell in study.cells:
        receipt = read_receipt(home / cell.label, standings=False)
        if receipt is not None and receipt.stands(cell, study.until, home / cell.label):
            found[cell.label] = receipt
    if results and len(found) < len(study.cells):
        place = place_of(results, home)
        for cell in study.cells:
            if cell.label not in found:
                place.fetch(cell.label, [RECEIPT, "results.csv"])
                receipt = read_receipt(home / cell.label, standings=False)
                if receipt is not None and receipt.stands(cell, study.until, home / cell.label):
                    found[cell.label] = receipt
    return found


def tasks_of(
    study: Study, home: Path, cells: Sequence[Cell], needs: Callable[[Cell], tuple[int, int]], results: str = ""
) -> list[Task]:
    """A task for each of these cells, so ordered that those which read the same do not begin together."""
    lends = study.lends()
    families: dict[str, list[Task]] = defaultdict(list)
    for cell in cells:
        cpus, gpus = needs(cell)
        families[cell.bases["extract"]].append(
            Task(
                cell.label,
                cell.settings,
                str(home),
                study.stages,
                cell.bases,
                lends[cell.label],
                cpus=cpus,
                gpus=gpus,
                results=results,
            )
        )
    return [task for task in chain.from_iterable(zip_longest(*families.values())) if task is not None]


def run_tasks(
    progress: Progress, tasks: Sequence[Task], executor: Executor, watch: Callable[[Progress], Any], results: str = ""
) -> None:
    """Run the tasks until each has ended; `watch` is called whenever something may have changed."""
    waiting = list(tasks)
    place = place_of(results, progress.home)
    try:
        while waiting or progress.running:
            fits = next((task for task in waiting if executor.takes(task)), None)
            if fits is not None:
                waiting.remove(fits)
                progress.running[fits.label] = time.monotonic()
                executor.submit(fits)
            progress.waiting = [task.label for task in waiting]
            if fits is not None and waiting:
                continue  # another one may fit
            for ended in executor.wait(EVERY):
                _note(progress, ended, place)
            watch(progress)
    finally:
        executor.close()


def _note(progress: Progress, ended: Ended, place: Any) -> None:
    del progress.running[ended.label]
    progress.kills += ended.kills
    path = progress.home / ended.label
    place.fetch(ended.label, [RECEIPT, "results.csv"])
    cell = progress.study.by_label[ended.label]
    receipt = read_receipt(path, standings=False)
    if ended.error or receipt is None or not receipt.stands(cell, progress.study.until, path):
        error = ended.error or f"It left no receipt in {path}, which the machine that ran it should share."
        receipt = Receipt(ended.label, "failed", cell.digest, progress.study.until, {}, error=error)
    progress.receipts[ended.label] = receipt
    progress.ended.append(ended.label)


def stage_of(path: Path) -> str:
    """The stage that a run is in, by its manifest; nothing before the first."""
    try:
        stages = json.loads((path / MANIFEST).read_bytes()).get("stages", {})
    except (OSError, ValueError):
        return ""
    return next((name for name, one in stages.items() if one["state"] == "running"), "")
