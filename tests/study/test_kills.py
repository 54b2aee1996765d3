"""Studies that survive: cells, what they are forked from and the driver killed, they end as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from support.attack import EFFORT, report
from support.study import command, written

KILLS = {"worker": max(2, 3 * EFFORT // 2), "driver": max(1, EFFORT // 4), "server": max(1, EFFORT // 4)}
"""By what is killed: a cell, the driver, or the process that cells are forked from."""
PATIENCE = 600
"""Seconds after which a study hangs."""


def below(pid):
    """The processes that a process has started, and those that these have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    children = [child for child, parent in parents.items() if parent == pid]
    return children, [child for child, parent in parents.items() if parent in children]


def victim(driver, kind):
    """A process of this kind; None if there is none now."""
    servers, workers = below(driver.pid)
    found = {"driver": [driver.pid], "worker": workers, "server": [pid for pid in servers if below(pid)[0]]}[kind]
    return random.choice(found) if found else None


def ended(driver):
    """The exit code and the output of a driver that ends by itself, and soon."""
    output, _ = driver.communicate(timeout=PATIENCE)
    return driver.returncode, output


def test_whatever_is_killed_the_study_ends_with_the_same_bytes(whole, tmp_path):
    _, home, failed, _ = whole
    assert not failed
    expected = {
        name: (home / name).read_bytes() for name in ("study.csv", "report/over_seeds.csv", "report/index.html")
    }
    rng = random.Random(EFFORT)
    left = [kind for kind, n in KILLS.items() for _ in range(n)]
    rng.shuffle(left)
    kills, studies, drivers = Counter(), 0, 0
    while True:
        folder = tmp_path / str(studies)
        folder.mkdir()
        file = written(folder / "small.yaml")
        while True:
            drivers += 1
            driver = command("study", str(file), "--workers", "2", "--retries", "1000", cwd=folder)
            while left and driver.poll() is None:
                time.sleep(rng.uniform(0.05, 2.5))
                pid = victim(driver, left[-1])
                if pid is None or driver.poll() is not None:
                    continue
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills[left.pop()] += 1
            code, output = ended(driver)
            if code != -signal.SIGKILL:
                break
        assert code == 0, output
        found = {name: (folder / "runs/small" / name).read_bytes() for name in expected}
        assert found == expected
        studies += 1
        if not left:
            break
    report(f"kills of studies, {studies} ended as the undisturbed one, {drivers} drivers; by what was killed", kills)
    assert kills == KILLS
