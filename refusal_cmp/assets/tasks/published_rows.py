"""The questions that the published comparison asked, and what it gave as shots."""

from collections import defaultdict
from typing import Any

import datasets

from refusal_cmp.data.download import hub_rows

SHOTS = 5


def mmlu(**_: object) -> dict[str, datasets.Dataset]:
    """All test questions, each with the first validation questions of its subject as `shots`."""
    shots = defaultdict(list)
    for row in hub_rows("cais/mmlu", "validation", name="all"):
        shots[row["subject"]].append(row)
    test = hub_rows("cais/mmlu", "test", name="all")
    return {"test": datasets.Dataset.from_list([row | {"shots": shots[row["subject"]][:SHOTS]} for row in test])}


def arc_challenge(**_: object) -> dict[str, datasets.Dataset]:
    """The questions with four options."""
    return {split: datasets.Dataset.from_list(list(filter(_has_four, _arc(split)))) for split in ("train", "test")}


def _arc(split: str) -> Any:
    return hub_rows("allenai/ai2_arc", split, name="ARC-Challenge")


def _has_four(row: dict[str, Any]) -> bool:
    return len(row["choices"]["text"]) == 4
