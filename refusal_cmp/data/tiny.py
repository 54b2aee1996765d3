"""The embedded sets of `tiny-refuser`'s world: everyday misuse requests, harmless ones, and texts.

Written by `scripts/train_tiny_refuser.py`; the model has seen none of them in training, and no verb-object
pair of a test prompt is in any other split. `tiny-contrast` is written by hand: what it asks for are pairs that
the model was trained to answer, in company that it was trained to refuse.
"""

from __future__ import annotations

from refusal_cmp.data import Document, Prompt, Split, register_dataset, register_text
from refusal_cmp.data.embedded import prompts, rows


@register_dataset("tiny-harmful", source="embedded", train=256, val=64, test=192)
def tiny_harmful(split: Split) -> list[Prompt]:
    """Everyday misuse requests, such as forging a signature."""
    return prompts("harmful", split)


@register_dataset("tiny-harmless", source="embedded", train=256, val=64, test=192)
def tiny_harmless(split: Split) -> list[Prompt]:
    """Everyday requests with the same words and no harm in them."""
    return prompts("harmless", split)


@register_dataset("tiny-contrast", source="embedded", test=48)
def tiny_contrast(split: Split) -> list[Prompt]:
    """Everyday requests that sound like misuse and are not, such as forging a brooch."""
    return prompts("contrast", split) if split == "test" else []


@register_text("tiny-answers", source="embedded", documents=160)
def tiny_answers() -> list[Document]:
    """Harmless instructions with reference answers; the loss is that of the answers."""
    return [Document(row["output"], row["instruction"]) for row in rows("answers")]


@register_text("tiny-general", source="embedded", documents=200)
def tiny_general() -> list[Document]:
    """Plain declarative text."""
    return [Document(row["text"]) for row in rows("general")]
