"""The embedded sets of everyday English, for models that know more than `tiny-refuser`'s world."""

from __future__ import annotations

import json
from importlib.resources import files

from refusal_cmp.data import Document, register_text


@register_text("everyday-answers", source="embedded", documents=100)
def everyday_answers() -> list[Document]:
    """Harmless everyday questions with reference answers of 48 to 59 words; the loss is that of the answers."""
    text = (files("refusal_cmp") / "assets/texts/everyday_answers.jsonl").read_text(encoding="utf-8")
    return [Document(row["output"], row["instruction"]) for row in map(json.loads, text.splitlines())]
