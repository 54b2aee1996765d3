"""What a cell takes of a machine, by the size of its model's weights."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from refusal_cmp.config import EMBEDDED, SMALL, RunConfig
from refusal_cmp.study.spec import Cell, Resources

ROOM = 1.3
"""How many times its weights a model takes with what it computes; docs/studies.md has the measured figures."""
LIGHT = 2**30
"""Bytes of weights up to which one processor is as good as several."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
OF_OURS = {EMBEDDED: 8 * 2**20, SMALL: 280 * 2**20}


def resources(cell: Cell, given: Resources, cpus: int, gpu_bytes: int | None) -> tuple[int, int]:
    """Processors and GPUs for a cell: what the study says, or what its model needs.

    Parameters
    ----------
    cpus
        Of a machine.
    gpu_bytes
        Memory of one of its GPUs; None where there are none.
    """
    size = weights(cell.config)
    gpus = 0
    if gpu_bytes is not None and cell.config.device != "cpu":
        gpus = 1 if size is None else max(1, math.ceil(size * ROOM / gpu_bytes))
    gpus = gpus if given.gpus is None else given.gpus
    by_size = 1 if size is not None and size <= LIGHT else max(1, min(8, cpus))
    return by_size if given.cpus is None else given.cpus, gpus


def weights(config: RunConfig) -> int | None:
    """Bytes of a model's weights in the precision that it runs in; None where nobody knows."""
    stored = _stored(config.model, config.revision, config.offline)
    if stored is None:
        return None
    smaller = {"8bit": 2, "4bit": 4}.get(config.quantization, 1)
    return stored // smaller


@cache
def _stored(model: str, revision: str | None, offline: bool) -> int | None:
    """Bytes of the files with weights: of a folder, of the hub's cache, or as the hub says."""
    if model in OF_OURS:
        return OF_OURS[model]
    path = Path(os.path.expanduser(model))
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return _largest_kind({file.name: file.stat().st_size for file in path.iterdir() if file.is_file()})
    if offline or os.environ.get("HF_HUB_OFFLINE") or model.startswith((".", "/", "~")):
        return None
    try:
        from huggingface_hub import HfApi

        found = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=10)
    except Exception:  # whatever the hub or the way to it says, the cell itself says it better
        return None
    return _largest_kind({one.rfilename: one.size or 0 for one in found.siblings or []})


def _largest_kind(sizes: dict[str, int]) -> int | None:
    """Bytes of the files of one kind: a folder may hold the same weights as safetensors and as pickles."""
    of_kind = [sum(size for name, size in sizes.items() if name.endswith(kind) and "/" not in name) for kind in WEIGHTS]
    return max(of_kind) or None
