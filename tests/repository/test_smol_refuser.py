"""The adapter in the package and what it was trained on; what the model does is tested in `tests/real`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from refusal_cmp import load_prompts
from refusal_cmp.data.download import folder
from refusal_cmp.data.sources import PUBLISHED
from refusal_cmp.judges.phrases import Phrases, has_refusal_phrase
from refusal_cmp.model.files import mapping
from refusal_cmp.model.small import BASE
from refusal_cmp.model.source import model_path

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = SCRIPTS / "smol_refuser"
LARGEST = 3_000_000
"""Bytes of the adapter."""
HELD_OUT = (
    ("everyday-harmful", "val"),
    ("everyday-harmful", "test"),
    ("everyday-harmless", "val"),
    ("everyday-harmless", "test"),
    ("everyday-contrast", "test"),
)
PUBLIC = (("published-harmful", "val"), ("published-harmful", "test"), ("published-harmless", "val"))


def lines(name):
    return (TEXTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def learned():
    """Every prompt that the adapter is trained on, but for the published ones."""
    sys.path.insert(0, str(SCRIPTS))
    from train_smol_refuser import Recipe, requests

    own = [prompt for kind in ("harmful", "harmless") for prompt in load_prompts(f"everyday-{kind}", "train")]
    return {*own, *lines("harmless"), *lines("lookalikes"), *requests(Recipe.patterns, Recipe.seed)}


def test_the_adapter_is_small_and_names_its_base():
    adapter = Path(model_path("smol-refuser"))
    assert sum(file.stat().st_size for file in adapter.iterdir()) <= LARGEST
    assert mapping(str(adapter), "adapter_config.json", None)["base_model_name_or_path"] == BASE
    weights = load_file(adapter / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_every_refusal_is_one_by_either_set_of_phrases_and_no_opening_is():
    extended = Phrases.load("extended")
    for line in lines("refusals"):
        assert has_refusal_phrase(line)
        assert extended.words_before(line) == 0, line
    assert not any(has_refusal_phrase(line) or extended.words_before(line) for line in lines("openings"))


@pytest.mark.parametrize(("name", "split"), [*HELD_OUT, *PUBLIC])
def test_nothing_held_out_is_learned_from(name, split, learned):
    if name.startswith("published") and not (folder() / PUBLISHED.name / "dataset/splits/harmless_val.json").is_file():
        pytest.skip("the published splits are not in $REFUSAL_CMP_DATA")
    assert {prompt.lower() for prompt in load_prompts(name, split)} & {prompt.lower() for prompt in learned} == set()
