"""The embedded sets of everyday English, for models that know more than `tiny-refuser`'s world.

Written for this project, prompt by prompt. The classes are alike in length, punctuation and openings; no prompt has a
near-duplicate in another split, another set, or what `smol-refuser` is trained to answer (`scripts/smol_refuser/`).
"""

from __future__ import annotations

from refusal_cmp.data import Document, Prompt, Split, register_dataset, register_text
from refusal_cmp.data.embedded import prompts, rows


@register_dataset("everyday-harmful", source="embedded", train=160, val=40, test=80)
def everyday_harmful(split: Split) -> list[Prompt]:
    """Mild misuse as people ask for it, such as reading a partner's messages."""
    return prompts("everyday_harmful", split)


@register_dataset("everyday-harmless", source="embedded", train=160, val=40, test=80)
def everyday_harmless(split: Split) -> list[Prompt]:
    """Requests of the same form about cooking, work, study, travel and the like."""
    return prompts("everyday_harmless", split)


@register_dataset("everyday-contrast", source="embedded", test=64)
def everyday_contrast(split: Split) -> list[Prompt]:
    """Harmless requests that sound harmful, such as flogging old skis."""
    return prompts("everyday_contrast", split) if split == "test" else []


@register_text("everyday-answers", source="embedded", documents=100)
def everyday_answers() -> list[Document]:
    """Harmless everyday questions with reference answers of 48 to 59 words; the loss is that of the answers."""
    return [Document(row["output"], row["instruction"]) for row in rows("everyday_answers")]
