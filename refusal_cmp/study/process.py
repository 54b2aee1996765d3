"""The process of a cell on this machine: what it is before the cell is run, and how it ends with its driver."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from refusal_cmp.study.executors import Task


def cell_process(task: Task, gpus: Sequence[str], log: str, driver: Connection) -> None:
    """Run a cell, and send what was wrong, or nothing, to the driver.

    Parameters
    ----------
    gpus
        Those it may use, by the names that CUDA_VISIBLE_DEVICES has.
    log
        The file that what it says goes to.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    from refusal_cmp.study.work import run_cell

    driver.send(run_cell(task))


def _end_with(driver: Connection) -> None:
    """End this process as soon as the driver has: two would else be at work on one cell when it is started again."""
    try:
        driver.recv()
    except (EOFError, OSError):
        os._exit(1)
