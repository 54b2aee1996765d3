"""`refusal-cmp study`: run what is not done of a study, say what there would be to do, or report what its cells say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.study.driver import STUDY, Progress, ended_before, owned, run_tasks, tasks_of
from refusal_cmp.study.estimate import at_a_time, estimate
from refusal_cmp.study.executors import RETRIES, Executor
from refusal_cmp.study.receipts import Receipt, read_receipt
from refusal_cmp.study.show import print_failures, print_plan, watching
from refusal_cmp.study.sizes import resources
from refusal_cmp.study.spec import Cell, Study, read_study
from refusal_cmp.terminal import line

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class How:
    """How a study is run."""

    executor: str = "local"
    ray_address: str = "auto"
    workers: int | None = None
    """Most cells at a time on this machine."""
    retries: int = RETRIES
    results: str = ""
    """An fsspec URL that keeps the files of cells, for machines that share no folder."""

    def check(self) -> None:
        """RefusalCmpError for an executor that there is not."""
        if self.executor not in EXECUTORS:
            raise RefusalCmpError(f"--executor is {' or '.join(EXECUTORS)}, and not {self.executor!r}.")


def open_study(target: Path, name: str | None, runs_dir: Path) -> tuple[Study, Path]:
    """The study of a file, or of the folder that it was run in, and that folder."""
    if target.is_dir():
        try:
            return Study.from_json(json.loads((target / STUDY).read_bytes())), target
        except (OSError, ValueError, LookupError, TypeError):
            raise RefusalCmpError(
                f"{target} is no study's folder: it has no {STUDY} that can be read; name one, or the study's file."
            ) from None
    study = read_study(target, name)
    return study, runs_dir / study.name


def run_study(study: Study, home: Path, how: How, console: Console, say: Callable[[str], None]) -> list[Receipt]:
    """Run the cells that are not done; the receipts of those that failed."""
    with owned(home, study):
        done = ended_before(study, home, how.results)
        left = [cell for cell in study.cells if cell.label not in done]
        progress = Progress(study, home, dict(done))
        if left:
            say(f"{home}: {len(done)} of {len(study.cells)} cells done, {len(left)} to do.")
            machine = _Machine.here(how)
            tasks = tasks_of(study, home, left, machine.needs(study), how.results)
            with watching(console) as watch:
                run_tasks(progress, tasks, machine.executor(), watch, how.results)
        if progress.done:
            from refusal_cmp.study.report import write_report

            page = write_report(study, home)
            say(f"The page: {page}" if left else f"All {len(done)} cells are done. The page: {page}")
    if progress.failed:
        print_failures(console, progress.failed)
        say(f"{len(progress.failed)} of {len(study.cells)} cells failed; the same command tries them again.")
    return progress.failed


def plan_study(study: Study, home: Path, how: How, console: Console) -> None:
    """Say what `run_study` would do, and what it would take."""
    done = ended_before(study, home)
    failed = {
        cell.label: receipt.error
        for cell in study.cells
        if cell.label not in done
        and (receipt := read_receipt(home / cell.label, standings=False))
        and receipt.state == "failed"
    }
    machine = _Machine.here(how)
    left = [cell for cell in study.cells if cell.label not in done]
    tasks = tasks_of(study, home, left, machine.needs(study), how.results)
    beside = at_a_time(tasks, machine.cpus, len(machine.gpus))
    beside = beside if how.workers is None else min(beside, how.workers)
    found = estimate(study, done, [task.label for task in tasks], beside)
    print_plan(console, study, tasks, done, failed, found, beside)
    if how.executor == "ray":
        console.print(line("Ray runs as many at a time as its cluster has room for."), highlight=False)


def report_study(study: Study, home: Path, say: Callable[[str], None]) -> None:
    """Write what the cells say that are done."""
    from refusal_cmp.study.report import write_report

    page = write_report(study, home)
    say(f"The page: {page}")


@dataclass(frozen=True)
class _Machine:
    """This one, and who runs cells on it or elsewhere."""

    how: How
    cpus: int
    gpus: list[str]
    gpu_bytes: int | None

    @classmethod
    def here(cls, how: How) -> _Machine:
        from refusal_cmp.study.local import gpus_here

        how.check()
        found = gpus_here()
        smallest = min((size for _, size in found), default=None)
        return cls(how, len(os.sched_getaffinity(0)), [name for name, _ in found], smallest)

    def needs(self, study: Study) -> Callable[[Cell], tuple[int, int]]:
        """Processors and GPUs of a cell; of a Ray cluster the GPUs are taken to be as large as those here, or 80 GB."""
        gpu_bytes = self.gpu_bytes
        if gpu_bytes is None and self.how.executor == "ray":
            gpu_bytes = self._of_cluster()
        return lambda cell: resources(cell, study.resources, self.cpus, gpu_bytes)

    def _of_cluster(self) -> int | None:
        from refusal_cmp.study.on_ray import has_gpus

        return 80 * 2**30 if has_gpus(self.how.ray_address) else None

    def executor(self) -> Executor:
        """The one that was asked for."""
        if self.how.executor == "ray":
            from refusal_cmp.study.on_ray import RayExecutor

            return RayExecutor(self.how.ray_address, self.how.retries)
        from refusal_cmp.study.local import LocalExecutor

        return LocalExecutor(self.cpus, self.gpus, self.how.retries, self.how.workers)
