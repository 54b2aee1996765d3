"""A study on a terminal: its cells while they run, before they do, and those that failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from refusal_cmp.study.driver import Progress, stage_of
from refusal_cmp.study.estimate import Estimate, estimate
from refusal_cmp.study.executors import Task
from refusal_cmp.study.receipts import Receipt
from refusal_cmp.study.spec import Study
from refusal_cmp.terminal import line

EVERY = 60.0
"""Seconds between two lines, where there is no terminal."""
MOST = 20
"""Cells that a table shows."""
LISTED = 200
"""Cells that a dry run lists one by one."""
UNITS = ((2**40, "TB"), (2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Progress], None]]:
    """What shows how far a study is: a live table in a terminal, otherwise a line for each cell and each minute."""
    if not console.is_terminal:
        yield _Log(console)
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield lambda progress: live.update(_table(progress))


class _Log:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.told = 0
        self.last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        for label in progress.ended[self.told :]:
            receipt = progress.receipts[label]
            self._print(f"{label}: {'done' if receipt.state == 'done' else f'failed: {receipt.error}'}")
        self.told = len(progress.ended)
        if time.monotonic() - self.last >= EVERY:
            self._print(counts(progress))

    def _print(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.print(line(text), highlight=False, soft_wrap=True)


def counts(progress: Progress) -> str:
    """How far it is, in a line."""
    total, done = len(progress.study.cells), len(progress.done)
    left = [*progress.waiting, *progress.running]
    found = estimate(progress.study, progress.receipts, left, max(1, len(progress.running)))
    parts = [f"{done} of {total} cells done", f"{len(progress.running)} under way"]
    if progress.failed:
        parts.append(f"{len(progress.failed)} failed")
    if progress.kills:
        parts.append(f"{progress.kills} killed and started anew")
    if left and found.seconds is not None:
        parts.append(f"about {duration(found.seconds)} left, by {found.measured} finished")
    return "; ".join(parts)


def _table(progress: Progress) -> RenderableType:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("cell", "stage", "for"):
        table.add_column(heading, overflow="fold")
    for label, began in list(progress.running.items())[:MOST]:
        stage = stage_of(progress.home / label) or "starting"
        table.add_row(line(label), stage, duration(time.monotonic() - began))
    if len(progress.running) > MOST:
        table.add_row(f"and {len(progress.running) - MOST} more", "", "")
    failed = [line(f"failed: {one.label}: {one.error}", "red") for one in progress.failed[-3:]]
    return Group(table, *failed, line(counts(progress)))


def print_failures(console: Console, failed: Sequence[Receipt]) -> None:
    """The cells that failed, each with its sentence."""
    table = Table(title="failed", box=None, title_justify="left", title_style="bold red", padding=(0, 2, 0, 0))
    table.add_column("cell", overflow="fold")
    table.add_column("why", overflow="fold")
    for one in failed:
        table.add_row(line(one.label), line(one.error))
    console.print(table)


def print_plan(
    console: Console,
    study: Study,
    tasks: Sequence[Task],
    done: Mapping[str, Receipt],
    failed: Mapping[str, str],
    found: Estimate,
    at_a_time: float,
) -> None:
    """What a study would do: its cells, what is done of them, and what is left in time and disk."""
    left = {task.label: task for task in tasks}
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("cell", "state", "processors", "GPUs"):
        table.add_column(heading, overflow="fold")
    for cell in study.cells[:LISTED]:
        task = left.get(cell.label)
        state = "done" if task is None else "failed before" if cell.label in failed else "to do"
        table.add_row(line(cell.label), state, *(("", "") if task is None else (str(task.cpus), str(task.gpus))))
    console.print(table)
    if len(study.cells) > LISTED:
        console.print(f"… and {len(study.cells) - LISTED} more", style="dim", highlight=False)
    console.print(line(f"{len(study.cells)} cells: {len(done)} done, {len(tasks)} to do."), highlight=False)
    shared = Counter(cell.bases["extract"] for cell in study.cells)
    console.print(
        line(f"Subspaces are found {len(shared)} times, and shared by the cells that have them in common."),
        highlight=False,
    )
    used = sum(one.bytes for one in done.values())
    console.print(line(f"Disk: {size(used)} used{_left(found)}."), highlight=False)
    console.print(line(_time(found, len(tasks), at_a_time)), highlight=False)


def _left(found: Estimate) -> str:
    return "" if found.bytes is None else f", about {size(found.bytes)} more; less where cells share files"


def _time(found: Estimate, left: int, at_a_time: float) -> str:
    if not left:
        return "Time: nothing is left to do."
    if found.seconds is None:
        return "Time: unknown, as no cell is finished to go by."
    cells = "1 finished cell" if found.measured == 1 else f"{found.measured} finished cells"
    others = (
        f"; {found.guessed} cells to do are of models with none, and taken to be like those" if found.guessed else ""
    )
    return f"Time: about {duration(found.seconds)} with {at_a_time:g} at a time, estimated from {cells}{others}."


def size(n: float) -> str:
    """Bytes as people read them."""
    for unit, name in UNITS:
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
