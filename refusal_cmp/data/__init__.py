"""Prompt sets and texts, by name. A set is a function from a split to its prompts; see `data/tiny.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.registry import Registry

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Prompt:
    """An instruction to the model."""

    instruction: str
    category: str = ""


@dataclass(frozen=True)
class Document:
    """A text to measure the loss on: the answer to an instruction, or, without one, plain text."""

    text: str
    instruction: str | None = None


DATASETS: Registry[Callable[[Split], list[Prompt]]] = Registry("dataset", __name__)
register_dataset = DATASETS.register

TEXTS: Registry[Callable[[], list[Document]]] = Registry("text set", __name__)
register_text = TEXTS.register


def sample(name: str, split: Split, wanted: int, seed: int) -> list[Prompt]:
    """`wanted` prompts of a split, or all if there are fewer, drawn with `seed` and in the set's own order."""
    prompts = DATASETS.get(name)(split)
    if not prompts:
        raise RefusalCmpError(f"The {split} split of dataset {name!r} is empty; choose another set.")
    if wanted >= len(prompts):
        return prompts
    drawn = np.random.default_rng(seed).choice(len(prompts), wanted, replace=False)
    return [prompts[index] for index in sorted(drawn)]
