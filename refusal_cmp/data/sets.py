"""Prompt sets by name or by path: a registered one, or a local file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from refusal_cmp.config import is_path, path_and_column
from refusal_cmp.data import DATASETS, SPLITS, Columns, Prompt, Split
from refusal_cmp.data.files import read_splits
from refusal_cmp.errors import RefusalCmpError


def check_name(name: str) -> None:
    """RefusalCmpError if a set is neither registered nor given as a path; files are read later."""
    if not is_path(name):
        DATASETS.get(name)


def load(name: str, columns: Columns, say: Callable[[str], None]) -> dict[Split, list[Prompt]]:
    """Every split of a set; one of a single list has it as `test`.

    Parameters
    ----------
    name
        A registered name or the path of a local file, with the column to read behind a colon if that is to be named.
    say
        Told of rows that were left out.
    """
    if is_path(name):
        path, column = path_and_column(name)
        return read_splits(Path(path), columns if column is None else replace(columns, prompt=(column,)), say)
    prompts = DATASETS.get(name)
    return {split: prompts(split) for split in SPLITS}


def load_split(name: str, split: Split, columns: Columns, say: Callable[[str], None]) -> list[Prompt]:
    """One split of a set; of a registered one, the others are not read."""
    return load(name, columns, say)[split] if is_path(name) else DATASETS.get(name)(split)


def load_test(name: str, columns: Columns, say: Callable[[str], None]) -> list[Prompt]:
    """The test split of a set alone.

    Raises
    ------
    RefusalCmpError
        If it is empty.
    """
    prompts = load_split(name, "test", columns, say)
    if not prompts:
        raise RefusalCmpError(f"The test split of dataset {name!r} is empty; choose another set.")
    return prompts


def pick(prompts: list[Prompt], wanted: int, seed: int) -> list[Prompt]:
    """`wanted` of the prompts, or all if there are fewer, drawn with `seed` and in their own order."""
    if wanted >= len(prompts):
        return prompts
    drawn = np.random.default_rng(seed).choice(len(prompts), wanted, replace=False)
    return [prompts[index] for index in sorted(drawn)]
