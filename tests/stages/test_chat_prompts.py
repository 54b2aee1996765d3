"""Prompts that the chat cannot take as they are: said, or refused, when they are drawn and not hours later."""

from __future__ import annotations

import json

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.data import TEXTS, Document, Prompt
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Subject
from refusal_cmp.evals.perplexity import Perplexity
from refusal_cmp.plan import baseline
from refusal_cmp.run.contents import PROMPTS, prompts_file
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.stages.prompts import _that_fit, read_test_prompts

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


def is_long(prompt):
    return prompt["instruction"].startswith("word word")


def long(n):
    """Prompts of more tokens than the embedded model's context of 1024."""
    return ["word " * 1200 + str(number) for number in range(n)]


def test_prompts_that_are_too_long_are_counted_and_left_out(extract, tiny):
    said = extract(*long(8), loaded=tiny)
    content = json.loads((extract.folder / PROMPTS).read_text())
    kept, counts = content["prompts"], content["counts"]
    assert not any(is_long(prompt) for prompts in kept.values() for prompt in prompts)
    left_out = {name: count["too_long"] for name, count in counts.items() if "too_long" in count}
    assert left_out
    for name, count in counts.items():
        assert len(kept[name]) == count["sampled"] - count.get("too_long", 0)
        expected = (
            f"{name}: {count.get('too_long', 0)} of {count['sampled']} prompts are left out: longer than the context "
            "of 1024 tokens of tiny-refuser."
        )
        assert (expected in said) == (name in left_out)


def test_a_set_of_which_no_prompt_fits_ends_the_stage_before_it_works(extract, tiny, tmp_path):
    (tmp_path / "long.json").write_text(json.dumps([{"instruction": prompt} for prompt in long(40)]))
    with pytest.raises(
        RefusalCmpError,
        match=r"All 16 prompts of harmless_train are longer than the context of 1024 tokens of tiny-ref",
    ):
        extract(loaded=tiny, harmless=str(tmp_path / "long.json"))
    assert not (extract.folder / PROMPTS).exists()


def test_an_engine_that_may_end_at_the_context_needs_room_for_answers(tiny, tmp_path):
    for engine, fits in (("hf", True), ("vllm", False)):
        session = Session(load_config(None, {"engine": engine}), RunDir(tmp_path), loaded=tiny)
        if fits:
            assert _that_fit(session, "x", [Prompt("Name a bird.")], 1020) == [Prompt("Name a bird.")]
            continue
        with pytest.raises(RefusalCmpError, match="1 prompts of x are longer with 1020 to follow than the context of"):
            _that_fit(session, "x", [Prompt("Name a bird.")], 1020)


def test_prompts_of_a_test_set_that_is_added_later_are_left_out_too(extract, tiny, tmp_path):
    extract(loaded=tiny)
    mine = [*instructions("tiny-contrast", "test", 5), *long(2)]
    (tmp_path / "added.json").write_text(json.dumps([{"instruction": prompt} for prompt in mine]))
    config = load_config(
        None,
        {**SIZES, "harmless": str(tmp_path / "mine.json"), "n_test": 7, "eval_datasets": str(tmp_path / "added.json")},
    )
    said: list[str] = []
    session = Session(config, RunDir(extract.folder), say=said.append, loaded=tiny)
    assert len(read_test_prompts(session, "added")) == 5
    content = session.run.read_json(prompts_file(config, "added"))
    assert (content["counts"]["sampled"], content["counts"]["too_long"]) == (7, 2)
    assert "added: 2 of 7 prompts are left out: longer than the context of 1024 tokens of tiny-refuser." in said


def test_texts_whose_prompts_are_too_long_are_left_out_and_counted_in_the_results(tiny, monkeypatch):
    texts = [Document("A robin.", prompt) for prompt in ("Name a bird.", *long(2), "Name a cow.")]
    monkeypatch.setitem(TEXTS._plugins, "some", lambda: texts)
    said: list[str] = []
    subject = Subject(baseline(), {}, {}, lambda: tiny, say=said.append)
    judge = Perplexity(("some",), loss_tokens=None, loss_texts=4, document_tokens=256)
    for _ in range(2):
        found = {one.metric: one.estimate for one in judge.evaluate(subject).metrics}
        assert (found["too_long"].value, found["too_long"].n, found["loss"].n) == (0.5, 4, 2)
    assert said == [
        "some: 2 of 4 texts are left out: their prompts are longer than the context of 1024 tokens of tiny-refuser."
    ]


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
