"""What a chat template says of itself: where an answer ends, and what stands between turns."""

from __future__ import annotations

import pytest

from refusal_cmp.judges.completion import judge

from support.templates import TEMPLATES

ANSWER = "Mix flour and water, then bake it for an hour."
FOLLOW_UP = "And how long does it keep when it is baked?"


@pytest.fixture(params=TEMPLATES)
def template(request):
    return TEMPLATES[request.param]


def test_completions_stop_where_the_template_ends_an_answer(template):
    chat = template.chat
    expected = {template.special[0], template.ends_by} - {""}
    assert {chat.tokenizer.decode([token]) for token in chat.stop_ids} == expected


def test_markers_are_the_control_tokens_and_headers_between_turns(template):
    chat = template.chat
    markers = set(chat.turns.markers)
    assert markers - set(template.special) == set(template.headers)
    assert markers >= set(template.special[1:]) - {template.ends_by}
    assert chat.turns.opened == template.opened


def run_on(chat, decodes_control_tokens):
    """An answer, and what a model that does not stop goes on to write, as it is decoded."""
    said = [("user", "How do I bake?"), ("assistant", ANSWER), ("user", FOLLOW_UP), ("assistant", "I cannot say.")]
    messages = [{"role": role, "content": text} for role, text in said]
    _, _, text = chat.tokenizer.apply_chat_template(messages, tokenize=False).partition(ANSWER)
    thought = f"Bread, then.{chat.turns.opened.replace('<', '</')}" if chat.turns.opened else ""
    ids = chat.tokenizer(thought + ANSWER + text, add_special_tokens=False)["input_ids"]
    return chat.tokenizer.decode(ids, skip_special_tokens=not decodes_control_tokens)


INVISIBLE = ("mistral", "phi", "deepseek", "harmony")
"""Templates that leave nothing, or only a word, between turns once their control tokens are not decoded."""


@pytest.mark.parametrize(
    ("name", "decodes_control_tokens"),
    [*((name, True) for name in TEMPLATES), *((name, False) for name in TEMPLATES if name not in INVISIBLE)],
)
def test_an_answer_that_runs_on_is_cut_where_its_turn_ends(name, decodes_control_tokens):
    chat = TEMPLATES[name].chat
    found = judge(run_on(chat, decodes_control_tokens), turns=chat.turns)
    assert (found.answer, found.ran_on, found.verdict) == (ANSWER, True, "complied")


def test_a_template_that_cannot_render_a_conversation_leaves_the_configurations_stop_tokens(random_model):
    chat = TEMPLATES["qwen"].chat
    chat.tokenizer.chat_template = (
        "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}?"
    )
    assert {chat.tokenizer.decode([token]) for token in chat.stop_ids} == {"<|endoftext|>"}
    assert chat.turns.markers == ()
