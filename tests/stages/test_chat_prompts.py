"""Prompts that the chat cannot take as they are: said, or refused, when they are drawn and not hours later."""

from __future__ import annotations

import json

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.contents import PROMPTS
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.models import instructions

SIZES = {"n_train": 16, "n_val": 4, "n_test": 4, "methods": "diff-in-means", "filter_prompts": False}


@pytest.fixture
def extract(tmp_path):
    """The stage with a harmless set that ends in these prompts; what was said."""

    def run(*added: str, loaded=None, **settings) -> list[str]:
        prompts = [*instructions("tiny-harmless", "train", 24), *added]
        (tmp_path / "mine.json").write_text(json.dumps([{"instruction": prompt} for prompt in prompts]))
        said: list[str] = []
        config = load_config(None, {**SIZES, "harmless": str(tmp_path / "mine.json"), **settings})
        run_stages(Session(config, RunDir(tmp_path / "run"), say=said.append, loaded=loaded), ("extract",))
        return said

    run.folder = tmp_path / "run"
    return run


def test_control_tokens_in_prompts_are_counted_and_warned_of(extract, tiny):
    said = [line for line in extract(*(f"Say <|end|> {n} times." for n in range(24)), loaded=tiny) if "control" in line]
    kept = json.loads((extract.folder / PROMPTS).read_text())["prompts"]
    for name in ("harmless_train", "harmless_val", "harmless_test"):
        held = sum("<|end|>" in prompt["instruction"] for prompt in kept[name])
        assert held == 0 or any(f"Warning: {held} of {len(kept[name])} prompts of {name} hold" in line for line in said)
    assert said
    assert not any("harmful" in line for line in said)


def test_a_prompt_that_is_too_long_ends_the_stage_before_it_works(extract, tiny):
    with pytest.raises(RefusalCmpError, match="The prompt 'word word .*…' has .* ends at 1024; leave that prompt out"):
        extract(*("word " * 1200 + str(n) for n in range(24)), loaded=tiny)
    assert not (extract.folder / PROMPTS).exists()


def test_a_prompt_that_the_template_does_not_take_ends_the_stage_before_it_works(extract, tmp_path):
    template = "{% if 'bomb' in messages[0].content %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}<|assistant|>"
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(RefusalCmpError, match="does not render the prompt 'A bomb .*ZeroDivisionError"):
        extract(*(f"A bomb {n}?" for n in range(24)), chat_template=str(tmp_path / "own.jinja"))
    assert not (extract.folder / PROMPTS).exists()


def test_tags_of_a_given_template_that_the_model_has_no_tokens_for_are_warned_of(extract, tmp_path):
    (tmp_path / "own.jinja").write_text("<|im_start|>user\\n{{ messages[0].content }}<|im_end|>\\n<|assistant|>")
    said = extract(chat_template=str(tmp_path / "own.jinja"), refusal_tokens="5")
    assert any(
        "the chat template writes <|im_start|>, <|im_end|>, which tiny-refuser has no token for" in s for s in said
    )
