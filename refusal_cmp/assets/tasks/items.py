"""Loads the items of a task from the JSONL files beside this one, wherever the package lies."""

from pathlib import Path

import datasets


def load(items: str, **_: object) -> dict[str, datasets.Dataset]:
    """The few-shot and test splits of the folder `items`."""
    folder = Path(__file__).parent / items
    return {split: datasets.Dataset.from_json(str(folder / f"{split}.jsonl")) for split in ("fewshot", "test")}
