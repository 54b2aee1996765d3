"""A study on a real Ray cluster of this machine says, byte for byte, what it says without one."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.study.driver import Progress, run_tasks, tasks_of
from refusal_cmp.study.report import write_report


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster with two processors."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def kill_one(home, killed):
    """Kill the first worker that has begun to score, as soon as it has."""
    for _ in range(6000):
        for manifest in home.glob("*/select"):
            for stat in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):  # processes end while they are looked at
                    if f"ray::{manifest.parent.name}" in stat.read_bytes().decode(errors="replace"):
                        os.kill(int(stat.parent.name), signal.SIGKILL)
                        killed.append(manifest.parent.name)
                        return
        time.sleep(0.05)


def test_ray_says_what_processes_of_this_machine_say_though_one_is_killed(whole, cluster, tmp_path):
    on_ray = importlib.import_module("refusal_cmp.study.on_ray")
    study, home, _, _ = whole
    study = replace(study, cells=[cell for cell in study.cells if cell.keys["seed"] == 1])
    here, there, killed = tmp_path / "here", tmp_path / "there", []
    for cell in study.cells:
        shutil.copytree(home / cell.label, here / cell.label)
    write_report(study, here)
    progress = Progress(study, there)
    tasks = tasks_of(study, there, study.cells, lambda _: (1, 0))
    killer = threading.Thread(target=kill_one, args=(there, killed))
    killer.start()
    run_tasks(progress, tasks, on_ray.RayExecutor(cluster, retries=3), lambda _: None)
    killer.join()
    assert not progress.failed
    assert len(killed) == 1
    write_report(study, there)
    assert (there / "study.csv").read_bytes() == (here / "study.csv").read_bytes()


def test_without_ray_one_sentence_says_how_to_get_it(monkeypatch):
    on_ray = importlib.import_module("refusal_cmp.study.on_ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RefusalCmpError, match=r"pip install 'refusal-cmp\[ray\]'"):
        on_ray.joined("auto")
