"""Cells as tasks of a Ray cluster: Ray places them, starts them anew where a node or a process is lost, keeps logs.

Nothing of that is done here. A task asks for its processors and GPUs, `max_retries` is what Ray means by it, and the
files of cells go through a folder that all nodes share, or a URL.
"""

from __future__ import annotations

import time
from typing import Any

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.study.executors import RETRIES, Ended, Task, killed


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise RefusalCmpError(
            "Ray is not installed; type `pip install 'refusal-cmp[ray]'`, or run cells as processes of this machine.",
            executor="local",
        ) from None
    return ray


def joined(address: str) -> Any:
    """Ray, with this process a driver of the cluster at the address.

    Raises
    ------
    RefusalCmpError
        If Ray is not installed, or no cluster is there.
    """
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise RefusalCmpError(
                f"No Ray cluster answers at {address} ({why}); start one by `ray start`, or name another.",
                ray_address="ADDRESS",
            ) from None
    return ray


def has_gpus(address: str) -> bool:
    """Whether a node of the cluster has a GPU."""
    return joined(address).cluster_resources().get("GPU", 0) > 0


def _run(task: Task) -> str:
    """A cell, in a process of Ray's."""
    from refusal_cmp.study.work import run_cell

    return run_cell(task)


class RayExecutor:
    """Tasks of a Ray cluster.

    Parameters
    ----------
    address
        Of the cluster; `auto` for the one that runs here.
    retries
        Times that Ray starts a task anew whose process or node was lost.
    """

    def __init__(self, address: str, retries: int = RETRIES) -> None:
        self.ray = joined(address)
        self.retries = retries
        self.tasks: dict[Any, Task] = {}
        # A process for each task, as here: what one cell sets (no network, threads) is nothing to the next.
        self._remote = self.ray.remote(max_calls=1, max_retries=retries)(_run)

    def takes(self, task: Task) -> bool:
        """Always: Ray lines tasks up until there is room."""
        return True

    def submit(self, task: Task) -> None:
        """Give it to Ray."""
        options = self._remote.options(num_cpus=task.cpus, num_gpus=task.gpus, name=task.label)
        self.tasks[options.remote(task)] = task

    def wait(self, seconds: float) -> list[Ended]:
        """The tasks that have ended; those that Ray starts anew have not."""
        if not self.tasks:
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=seconds)
        return [self._outcome(one) for one in ready]

    def _outcome(self, one: Any) -> Ended:
        label = self.tasks.pop(one).label
        try:
            return Ended(label, self.ray.get(one))
        except self.ray.exceptions.WorkerCrashedError:
            return killed(label, self.retries + 1)
        except self.ray.exceptions.RayError as error:
            why = " ".join(str(error).split()).rstrip(".")
            return Ended(label, f"Ray could not run it ({why[:200]}); its dashboard and logs say more.")

    def close(self) -> None:
        """Cancel what is under way: finished work is kept."""
        for one in self.tasks:
            self.ray.cancel(one, force=True)
        self.tasks.clear()
