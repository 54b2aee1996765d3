"""Cells as processes of this machine: as many at a time as its processors and GPUs allow.

The processes come from one that has imported everything and done nothing (Python's forkserver), so that each starts at
once and none has touched a GPU before it is told which is its own. They end with the driver, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.study.executors import RETRIES, Devices, Ended, Task, killed

PRELOADED = "refusal_cmp.study.work"
"""The module that a cell is run by, with all that it imports."""
TRIES, PAUSE = 50, 0.1
"""To start a process, and seconds between them: the one that it comes from may just have been killed."""
LOGS = "logs"
"""The folder of what cells say, in the study's."""


@dataclass
class _Running:
    task: Task
    process: BaseProcess
    ours: Connection
    """Closes with this process, by which the other one knows."""
    kills: int


class LocalExecutor:
    """Processes of this machine.

    Parameters
    ----------
    cpus, gpus
        What it may hand out; GPUs by the names that CUDA_VISIBLE_DEVICES has.
    most
        Cells at a time, at most.
    """

    def __init__(self, cpus: int, gpus: list[str], retries: int = RETRIES, most: int | None = None) -> None:
        self.devices = Devices(cpus, list(gpus), most)
        self.retries = retries
        self.running: dict[int, _Running] = {}
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a question that leaves GPUs untouched
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED])

    def takes(self, task: Task) -> bool:
        """Whether the machine has what the task needs, free."""
        return self.devices.has(task)

    def submit(self, task: Task) -> None:
        """Start it."""
        self._start(task, self.devices.take(task), 0)

    def _start(self, task: Task, gpus: list[str], kills: int) -> None:
        from refusal_cmp.study.process import cell_process

        log = Path(task.home) / LOGS / f"{task.label}.log"
        for left in reversed(range(TRIES)):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=cell_process, args=(task, gpus, str(log), theirs), daemon=True)
            try:
                process.start()
            except (EOFError, OSError):  # the process that it comes from was killed, and is started anew
                ours.close()
                if not left:
                    raise
                time.sleep(PAUSE)
            else:
                self.running[process.sentinel] = _Running(task, process, ours, kills)
                return
            finally:
                theirs.close()

    def wait(self, seconds: float) -> list[Ended]:
        """The tasks that have ended; killed ones are started anew."""
        if not self.running:
            time.sleep(seconds)
            return []
        ended = []
        for sentinel in wait(list(self.running), timeout=seconds):
            one = self.running.pop(sentinel)  # type: ignore[arg-type]
            one.process.join()
            found = self._outcome(one)
            if found is None:
                self._start(one.task, self.devices.held[one.task.label][1], one.kills + 1)
            else:
                self.devices.give_back(one.task.label)
                ended.append(found)
        return ended

    def _outcome(self, one: _Running) -> Ended | None:
        """How a process ended; None if it is to be started anew."""
        label = one.task.label
        try:
            if one.ours.poll():
                return Ended(label, one.ours.recv(), one.kills)
        except (EOFError, OSError):
            pass
        finally:
            one.ours.close()
        return None if one.kills < self.retries else killed(label, one.kills + 1)

    def close(self) -> None:
        """Kill what is under way: finished work is on disk."""
        for one in self.running.values():
            one.process.kill()
        for one in self.running.values():
            one.process.join()
        self.running.clear()


def gpus_here() -> list[tuple[str, int]]:
    """The GPUs that this process may use, each with its memory in bytes, as nvidia-smi says; none without it."""
    query = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [(index.strip(), int(size) * 2**20) for index, size in (line.split(",") for line in listed.splitlines())]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return found
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if not all(name.isdigit() for name in names):
        raise RefusalCmpError(
            f"CUDA_VISIBLE_DEVICES is {allowed}, and a study hands out GPUs by number; give numbers, or unset it."
        )
    sizes = dict(found)
    return [(name, sizes[name]) for name in names if name in sizes]
