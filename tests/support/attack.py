"""What is done to files and processes, to see that nothing is silent and nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from hypothesis import settings

from refusal_cmp.errors import RefusalCmpError

EFFORT = int(os.environ.get("EFFORT", "1"))
"""How many times as much as in a run of the tests; `make fuzz` takes an hour with 100."""
FUZZ = settings(max_examples=100 if EFFORT == 1 else 15 * EFFORT, deadline=None)
FORK = multiprocessing.get_context("fork")
PATIENCE = 300
"""Seconds after which a process hangs."""


def damaged(content: bytes, rng: Random) -> bytes:
    """The content with one thing wrong: a flipped bit, bytes that are lost, doubled or foreign, a digit changed."""
    if not content:
        return rng.randbytes(8)
    at, length = rng.randrange(len(content)), rng.randrange(1, 40)
    head, tail = content[:at], content[at + length :]
    return rng.choice(
        [
            head + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            head,
            head + tail,
            head + rng.randbytes(length) + tail,
            head + content[at : at + length] * 2 + tail,
            content.replace(str(rng.randrange(10)).encode(), str(rng.randrange(10)).encode(), 1),
        ]
    )


def files(path: Path) -> dict[str, Any]:
    """Everything a run leaves, by name; wall times are not compared."""
    found: dict[str, Any] = {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["checksum"]
    for stage in manifest["stages"].values():
        stage.pop("seconds", None)
    return found | {"manifest.json": manifest}


def outcome(work: Callable[[], Any]) -> str:
    """How something ended: `done`, `sentence`, or the traceback."""
    try:
        work()
    except RefusalCmpError as error:
        return "sentence" if str(error).strip() else "an error without a word"
    except Exception:
        return traceback.format_exc()
    return "done"


def begun(work: Callable[..., Any], *args: Any) -> multiprocessing.process.BaseProcess:
    """The work in a process of its own, with what is loaded here."""
    process = FORK.Process(target=_forked, args=(work, *args), daemon=True)
    process.start()
    return process


def _forked(work: Callable[..., Any], *args: Any) -> None:
    """torch makes its pool of threads anew after a fork, and not safely where several threads ask for it at once."""
    torch.set_num_threads(torch.get_num_threads())
    work(*args)


def exit_code(process: multiprocessing.process.BaseProcess) -> int:
    """Of a process that ends by itself, and soon."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def kill(process: multiprocessing.process.BaseProcess) -> None:
    """As the machine does when memory or a lease has run out."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    exit_code(process)


def report(what: str, counts: Counter[str]) -> None:
    """The figures of an attack; `make fuzz` shows them."""
    print(f"{what}: {sum(counts.values())}; " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
