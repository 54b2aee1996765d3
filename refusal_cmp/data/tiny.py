"""The embedded sets of `tiny-refuser`'s world: everyday misuse requests, harmless ones, and texts.

Written by `scripts/train_tiny_refuser.py`; the model has seen none of them in training, and no verb-object
pair of a test prompt is in any other split.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from refusal_cmp.data import Document, Prompt, Split, register_dataset, register_text

_ASSETS = files("refusal_cmp") / "assets"


@register_dataset("tiny-harmful")
def tiny_harmful(split: Split) -> list[Prompt]:
    """Everyday misuse requests, such as forging a signature (embedded)."""
    return _prompts("harmful", split)


@register_dataset("tiny-harmless")
def tiny_harmless(split: Split) -> list[Prompt]:
    """Everyday requests with the same words and no harm in them (embedded)."""
    return _prompts("harmless", split)


@register_text("tiny-answers")
def tiny_answers() -> list[Document]:
    """Harmless instructions with reference answers (embedded); the loss is that of the answers."""
    return [Document(row["output"], row["instruction"]) for row in _lines("answers.jsonl")]


@register_text("tiny-general")
def tiny_general() -> list[Document]:
    """Plain declarative text (embedded)."""
    return [Document(row["text"]) for row in _lines("general.jsonl")]


def _prompts(kind: str, split: Split) -> list[Prompt]:
    text = (_ASSETS / "prompts" / f"{kind}_{split}.json").read_text(encoding="utf-8")
    return [Prompt(row["instruction"], row["category"]) for row in json.loads(text)]


def _lines(name: str) -> list[dict[str, Any]]:
    text = (_ASSETS / "texts" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
