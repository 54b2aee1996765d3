"""The very prompts and texts of the published comparison (Rocchetti & Ferrara 2026), and of Arditi et al. 2024.

Both drew from the published splits with Python's own generator, seeded once, in this order:

    random.seed(42)
    harmful train 128, harmless train 128, harmful val 32, harmless val 32, harmless test 100

so that what one call draws depends on the sizes of the splits before it. Harmful test prompts were not drawn: they are
the 100 behaviours of JailbreakBench, with which the stored harmful test split begins. Of Alpaca's answers the first
were taken, after a shuffle of the whole set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

import numpy as np

from refusal_cmp.data import Columns, Document, Prompt, Split, register_dataset, register_text
from refusal_cmp.data.files import prompts_of
from refusal_cmp.data.public import having
from refusal_cmp.data.sources import ALPACA, PUBLISHED
from refusal_cmp.data.tables import Row, read_table
from refusal_cmp.errors import RefusalCmpError

Kind = Literal["harmful", "harmless"]

SEED = 42
DRAWS: tuple[tuple[Kind, Split, int], ...] = (
    ("harmful", "train", 128),
    ("harmless", "train", 128),
    ("harmful", "val", 32),
    ("harmless", "val", 32),
    ("harmless", "test", 100),
)
"""In the order of the calls."""
BEHAVIOURS = 100
"""Of JailbreakBench, ten of each category."""


@register_dataset("published-sample-harmful", source=f"GitHub {PUBLISHED.name}", train=128, val=32, test=BEHAVIOURS)
def published_sample_harmful(split: Split) -> list[Prompt]:
    """Harmful requests of the published runs: those that they drew, and JailbreakBench to test on."""
    return _sample()["harmful", split]


@register_dataset("published-sample-harmless", source=f"GitHub {PUBLISHED.name}", train=128, val=32, test=100)
def published_sample_harmless(split: Split) -> list[Prompt]:
    """Alpaca instructions of the published runs: those that they drew."""
    return _sample()["harmless", split]


@register_text("published-alpaca", source=f"HF hub {ALPACA.name}", documents=31323)
def published_alpaca() -> Iterator[Document]:
    """Alpaca's answers in the order of the published runs (Taori et al. 2023)."""
    rows = list(having(ALPACA.rows("train"), ALPACA.name, "instruction", "input", "output"))
    order = np.random.default_rng(SEED).permutation(len(rows))  # that of datasets.Dataset.shuffle(seed=42)
    shuffled = (rows[index] for index in order)
    return (Document(row["output"], row["instruction"]) for row in shuffled if not row["input"].strip())


def _sample() -> dict[tuple[Kind, Split], list[Prompt]]:
    """All draws, as later ones depend on earlier ones, and the behaviours."""
    generator = random.Random(SEED)
    rows = {(kind, split): _drawn(generator, kind, split, n) for kind, split, n in DRAWS}
    rows["harmful", "test"] = _rows("harmful", "test")[:BEHAVIOURS]
    return {
        key: prompts_of(found, Columns(("instruction",), "category"), PUBLISHED.name) for key, found in rows.items()
    }


def _drawn(generator: random.Random, kind: Kind, split: Split, n: int) -> list[Row]:
    rows = _rows(kind, split)
    if len(rows) < n:
        raise RefusalCmpError(
            f"The published split {kind}_{split} has {len(rows)} prompts here, and {n} are drawn from it; "
            "put the whole file there."
        )
    return generator.sample(rows, n)


def _rows(kind: Kind, split: Split) -> list[Row]:
    return list(read_table(PUBLISHED.file(f"dataset/splits/{kind}_{split}.json")).rows)
