"""The questions that the published comparison asked, and what it gave as shots."""

from collections import defaultdict
from typing import Any

import datasets

from refusal_cmp.data.sources import ARC, MMLU

SHOTS = 5


def mmlu(**_: object) -> dict[str, datasets.Dataset]:
    """All test questions, each with the first validation questions of its subject as `shots`."""
    shots = defaultdict(list)
    for row in MMLU.rows("validation", subset="all"):
        shots[row["subject"]].append(row)
    test = MMLU.rows("test", subset="all")
    return {"test": datasets.Dataset.from_list([row | {"shots": shots[row["subject"]][:SHOTS]} for row in test])}


def arc_challenge(**_: object) -> dict[str, datasets.Dataset]:
    """The questions with four options."""
    return {split: datasets.Dataset.from_list(list(filter(_has_four, _arc(split)))) for split in ("train", "test")}


def _arc(split: str) -> Any:
    return ARC.rows(split, subset="ARC-Challenge")


def _has_four(row: dict[str, Any]) -> bool:
    return len(row["choices"]["text"]) == 4
