"""The embedded sets of everyday English, for models that know more than `tiny-refuser`'s world.

Written for this project, prompt by prompt. The classes are alike in length, punctuation and openings; no prompt has a
near-duplicate in another split, another set, or what `smol-refuser` is trained to answer (`scripts/smol_refuser/`).
"""

from __future__ import annotations

import json
from importlib.resources import files

from refusal_cmp.data import Prompt, Split, register_dataset


@register_dataset("everyday-harmful", source="embedded", train=160, val=40, test=80)
def everyday_harmful(split: Split) -> list[Prompt]:
    """Mild misuse as people ask for it, such as reading a partner's messages."""
    return _prompts("harmful", split)


@register_dataset("everyday-harmless", source="embedded", train=160, val=40, test=80)
def everyday_harmless(split: Split) -> list[Prompt]:
    """Requests of the same form about cooking, work, study, travel and the like."""
    return _prompts("harmless", split)


@register_dataset("everyday-contrast", source="embedded", test=64)
def everyday_contrast(split: Split) -> list[Prompt]:
    """Harmless requests that sound harmful, such as flogging old skis."""
    return _prompts("contrast", split) if split == "test" else []


def _prompts(kind: str, split: Split) -> list[Prompt]:
    text = (files("refusal_cmp") / f"assets/prompts/everyday_{kind}_{split}.json").read_text(encoding="utf-8")
    return [Prompt(row["instruction"], row["category"]) for row in json.loads(text)]
