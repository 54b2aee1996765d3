"""One cell, in a process of its own on whatever machine: its run, what it shares with others, and its receipt."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits

from refusal_cmp.config import RunConfig, load_config
from refusal_cmp.config.network import go_offline
from refusal_cmp.errors import BusyError, RefusalCmpError
from refusal_cmp.report.answer import Standing, answers_already, standings
from refusal_cmp.report.data import RunData, read_run
from refusal_cmp.report.seeds_at_equal_damage import by_budget
from refusal_cmp.run.contents import RESULTS
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import PACKAGES, Session
from refusal_cmp.run.shared import Shared
from refusal_cmp.stages import run_stages
from refusal_cmp.statistics import fewest
from refusal_cmp.study.executors import Task
from refusal_cmp.study.place import Place, place_of
from refusal_cmp.study.receipts import RECEIPT, Receipt, write_receipt

SHARED = "shared"
"""The folder, in the study's, of what cells have in common."""
READING = ("extract", "select")
"""Stages that cells of the same things wait for each other in, so that the model reads nothing twice."""
PATIENCE = 60
"""Seconds that a process which is being killed may take to leave a run directory."""


def run_cell(task: Task) -> str:
    """Run a cell as far as it is not done, and leave a receipt; what was wrong, in one sentence, or nothing.

    Threads are as many as the task has processors: with others, sums are rounded otherwise.
    """
    torch.set_num_threads(task.cpus)
    with threadpool_limits(task.cpus):
        path, config = Path(task.home) / task.label, None
        try:
            config = load_config(None, {**task.settings, "runs_dir": task.home, "alias": task.label})
            place = place_of(task.results, task.home)
            place.fetch(task.label)
            receipt = _receipt(task, config, _worked(task, config, path, place))
        except RefusalCmpError as error:
            print(f"Error: {error}", flush=True)
            receipt = _failed(task, config, str(error))
        except Exception as error:  # a fault of ours, or of a plugin: the other cells go on
            traceback.print_exc()
            receipt = _failed(task, config, f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))
        write_receipt(path, receipt)
        if receipt.state == "done" or (path / "manifest.json").exists():
            place_of(task.results, task.home).keep(task.label, [RECEIPT])
        return receipt.error


def _worked(task: Task, config: RunConfig, path: Path, place: Place) -> Session:
    """The session of a run whose stages are all done."""
    if config.offline:
        go_offline()
    say = partial(print, flush=True)
    deadline = time.monotonic() + PATIENCE
    while True:
        session = Session(config, RunDir(path), say=say)
        shared = Shared(Path(task.home) / SHARED, task.bases, task.lends)
        session.run.shared = shared
        try:
            run_stages(session, task.stages, partial(_stage, shared=shared, place=place, task=task))
            break
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    place.keep(task.label)
    session.release()
    return session


@contextmanager
def _stage(session: Session, stage: str, *, shared: Shared, place: Place, task: Task) -> Iterator[None]:
    """The context of a stage: nobody else makes the same meanwhile, and what it made is kept."""
    if not shared.context:
        shared.context = _context(session)
    print(f"{stage} of {task.label}", flush=True)
    base = task.bases.get(stage)
    if stage in READING and base is not None:
        shared.path.mkdir(parents=True, exist_ok=True)
        with FileLock(shared.path / f"{base}.lock"):
            yield
    else:
        yield
    session.run.save()
    place.keep(task.label)


def _context(session: Session) -> list[Any]:
    """What no record of an artefact says, as it is the same throughout a run."""
    from importlib.metadata import version

    device = session.config.device
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device.split(":")[0]
    source = session.source
    commit = None if Path(source.path).exists() else source.revision
    return [session.run.manifest.get("weights"), commit, kind, [version(name) for name in PACKAGES]]


def _receipt(task: Task, config: RunConfig, session: Session) -> Receipt:
    path, run = session.run.path, session.run
    data = read_run(session)
    return Receipt(
        label=task.label,
        state="done",
        config=config.digest,
        until=task.stages[-1],
        seconds={name: one["seconds"] for name, one in run.manifest["stages"].items()},
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        results=((path / RESULTS).stat().st_size, run.digest(RESULTS)),
        standings=[_standing(data, one) for one in standings(data)],
        called=by_budget(data),
    )


def _standing(data: RunData, one: Standing) -> dict[str, Any]:
    plan = next(plan for plan in data.plans if plan.label == one.plan)
    return {
        "plan": by_budget(data).get(one.plan, one.plan),
        "method": one.method,
        "intervention": plan.intervention,
        "suppresses": one.suppresses and not answers_already(data),
        "broken": one.is_broken,
        "answered": one.answered.value,
        "few": one.answered.n < fewest(one.among),
        "cost": one.cost,
    }


def _failed(task: Task, config: RunConfig | None, error: str) -> Receipt:
    digest = "" if config is None else config.digest
    return Receipt(task.label, "failed", digest, task.stages[-1], {}, error=error)
