"""Prompt sets by name or by path: a registered one, or a local file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from refusal_cmp.config import KINDS, RunConfig, is_path, path_and_column
from refusal_cmp.data import DATASETS, SPLITS, Columns, Label, Prompt, Split, plain
from refusal_cmp.data.files import read_splits
from refusal_cmp.errors import RefusalCmpError


def check_name(name: str) -> None:
    """RefusalCmpError if a set is neither registered nor given as a path; files are read later."""
    if not is_path(name):
        DATASETS.get(name)


def columns_of(config: RunConfig, kind: str = "") -> Columns:
    """What is read of prompt files; of the run's own that hold both kinds, the rows of one."""
    return Columns(config.column, config.category_column, config.split_column, _label(config, kind), kind)


def check_files(config: RunConfig) -> None:
    """RefusalCmpError for a prompt file that cannot be read, or has no such column or label."""
    own = [(getattr(config, kind), columns_of(config, kind)) for kind in KINDS]
    for name, columns in (*own, *((name, columns_of(config)) for name in config.other_sets.values())):
        if is_path(name):
            load(name, columns, lambda _: None)


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


def _label(config: RunConfig, kind: str) -> Label | None:
    """Which rows are of a kind: those with its label, or, if only the other's is given, those without that."""
    if config.label_column is None or not kind:
        return None
    own, other = (config.harmful_label, config.harmless_label)[:: 1 if kind == "harmful" else -1]
    return Label(config.label_column, frozenset(map(plain, own or other or ())), others=not own)
