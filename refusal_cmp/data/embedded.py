"""Reads the prompts and texts that come with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from refusal_cmp.data import Prompt, Split

_ASSETS = files("refusal_cmp") / "assets"


def prompts(name: str, split: Split) -> list[Prompt]:
    """A split of a set."""
    text = (_ASSETS / "prompts" / f"{name}_{split}.json").read_text(encoding="utf-8")
    return [Prompt(row["instruction"], row["category"]) for row in json.loads(text)]


def rows(name: str) -> list[dict[str, Any]]:
    """What the lines of a text set hold."""
    text = (_ASSETS / "texts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
