"""What the benchmarks share: a process for each measurement, the machine's description, result files."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def in_own_process(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What the function returns, with `peak_gib`: the most memory that a process of its own ever held."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, args).result()


def _with_peak(function: Callable[..., dict[str, Any]], args: Sequence[Any]) -> dict[str, Any]:
    result = function(*args)
    unit = 1 if sys.platform == "darwin" else 1024
    return result | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def growth(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The exponent p of time ∝ sizeᵖ, least squares in logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(taken) for taken in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def write(name: str, results: dict[str, Any]) -> Path:
    """Write results/<name>.json with a description of the machine."""
    import torch

    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "scipy", "scikit-learn", "transformers")},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] \
        if cpuinfo.exists() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()
