"""Who runs the cells of a study: an executor takes tasks, and says how each of them ended.

An executor starts processes, hands out devices and starts what was killed anew, a bounded number of times; what a cell
is and what follows when it ends is the driver's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

RETRIES = 3
"""Times that a cell whose process was killed is started anew."""


@dataclass(frozen=True)
class Task:
    """A cell as it goes to a process, on whatever machine."""

    label: str
    settings: Mapping[str, Any]
    """Flags of its run, without where it runs."""
    home: str
    """The study's folder, as the process sees it."""
    stages: Sequence[str]
    bases: Mapping[str, str]
    """By stage: what its artefacts depend on, beside what their records say."""
    lends: Sequence[str]
    """Stages whose artefacts are put where other cells find them."""
    cpus: int = 1
    gpus: int = 0
    results: str = ""
    """Where its files are kept, if the study's folder is not shared by all machines: an fsspec URL."""


@dataclass(frozen=True)
class Ended:
    """How a task ended."""

    label: str
    error: str = ""
    """What was wrong, in one sentence; empty if the cell is done."""
    kills: int = 0
    """Times that its process was killed, if the executor counts them."""


class Executor(Protocol):
    """Runs tasks."""

    def takes(self, task: Task) -> bool:
        """Whether it can be given the task now."""
        ...

    def submit(self, task: Task) -> None:
        """Start the task, or line it up."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """The tasks that have ended since, after at most so many seconds."""
        ...

    def close(self) -> None:
        """Stop whatever is under way; finished work is kept."""
        ...


def killed(label: str, kills: int) -> Ended:
    """A task whose process was killed more often than it is started anew."""
    times = "once" if kills == 1 else f"{kills} times"
    return Ended(
        label,
        f"Its process was killed {times}, by the system or by somebody (memory?); what it finished is kept, and the "
        "same command goes on there.",
        kills,
    )


@dataclass
class Devices:
    """What a machine has to hand out: processors by number, GPUs one by one."""

    cpus: int
    gpus: list[str]
    most: int | None = None
    """Tasks at a time, at most."""
    held: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def has(self, task: Task) -> bool:
        """Whether there is enough left for the task; what is too large for the machine gets all of it."""
        if not self.held:
            return True
        if self.most is not None and len(self.held) >= self.most:
            return False
        return task.gpus <= len(self.gpus) and task.cpus <= self.cpus

    def take(self, task: Task) -> list[str]:
        """The GPUs that the task gets."""
        gpus, self.gpus = self.gpus[: task.gpus], self.gpus[task.gpus :]
        self.cpus -= task.cpus
        self.held[task.label] = (task.cpus, gpus)
        return gpus

    def give_back(self, label: str) -> None:
        """What a task held is free again."""
        cpus, gpus = self.held.pop(label)
        self.cpus += cpus
        self.gpus += gpus
