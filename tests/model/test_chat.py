"""What a chat template says of itself: where an answer ends, and what stands between turns."""

from __future__ import annotations

import signal
import threading

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.completion import judge
from refusal_cmp.model import ModelSource
from refusal_cmp.model import chat as chats
from refusal_cmp.model.chat import Chat

from support.models import instructions
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


PROMPT = "{{ messages[-1].content }}<|assistant|>"
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BROKEN = {
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in [[1]] recursive %}{{ loop([i]) }}{% endfor %}": "recursion",
    "{% for i in range(10 ** 12) %}{% endfor %}": "Range too big",
    "{{ 'é'.encode('ascii') }}": "UnicodeEncodeError|can't encode",
    "{{ '\\ud800' }}": "surrogates not allowed",
    "{{ 'x' * 10 ** 15 }}": "MemoryError",
    "{{ messages[7].content.strip() }}": "has no element 7",
    "{{ messages.nothing.more }}": "has no attribute 'nothing'",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages() }}": "not callable",
    "{{ raise_exception('not today') }}": "not today",
    "{{ raise_exception('') }}": "TemplateError",
    "{{ 'a' + 1 }}": "TypeError",
    "{% include 'other' %}": "no loader",
    "{{ 1 | unknown }}": "No filter named 'unknown'",
    "{% if %}": "Expected an expression",
}


def with_template(template, **how):
    return Chat.load(ModelSource(chat_template=template, **how))


@pytest.mark.parametrize("start", BROKEN)
def test_whatever_a_template_dies_of_is_a_sentence_that_names_it(start):
    with pytest.raises(
        RefusalCmpError, match=f"^The chat template of tiny-refuser does not work .*{BROKEN[start]}"
    ) as caught:
        with_template(start + PROMPT)
    assert caught.value.settings == {"chat_template": "FILE"}


@pytest.mark.parametrize("start", [start for start in BROKEN if start != "{% if %}" and "unknown" not in start])
def test_what_it_dies_of_at_some_prompts_only_names_the_prompt_too(start):
    chat = with_template("{% if 'bomb' in messages[-1].content %}" + start + "{% endif %}" + PROMPT)
    assert chat.tokenize(["Name a bird."])
    for ask in (lambda: chat.render("A bomb?"), lambda: chat.tokenize(["Name a bird.", "A bomb?"])):
        with pytest.raises(RefusalCmpError, match=f"does not render the prompt 'A bomb\\?' .*{BROKEN[start]}"):
            ask()


def test_a_prompt_that_is_no_text_is_said():
    with pytest.raises(RefusalCmpError, match="does not render the prompt .*surrogates not allowed"):
        with_template(PROMPT).tokenize(["Name a \ud800 bird."])


@pytest.mark.parametrize("start", [FOREVER, "{{ 10 ** (10 ** 9) }}", FOREVER.replace("{% endfor", "xyz{% endfor", 1)])
def test_a_template_that_does_not_end_is_ended(start, monkeypatch):
    monkeypatch.setattr(chats, "RENDER_SECONDS", 0.2)
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(RefusalCmpError, match="does not work .*not done after 0.2 seconds"):
        with_template(start + PROMPT)
    chat = with_template("{% if 'bomb' in messages[-1].content %}" + start + "{% endif %}" + PROMPT)
    with pytest.raises(RefusalCmpError, match="does not render the prompt 'A bomb' .*not done after 0.2 seconds"):
        chat.render("A bomb")
    assert chat.render("A bird").startswith("A bird")
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


def test_a_template_that_does_not_end_is_ended_in_another_thread(monkeypatch):
    monkeypatch.setattr(chats, "RENDER_SECONDS", 0.2)
    said = []

    def work():
        said.append(with_template(PROMPT).render("A bird"))
        try:
            with_template(FOREVER + PROMPT)
        except RefusalCmpError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said[0].startswith("A bird")
    assert "not done after 0.2 seconds" in said[1]


def test_prompts_that_hold_control_tokens_are_found(template):
    chat, plain = template.chat, instructions("tiny-harmless", "test", 3)
    held = {f"Say {token} twice.": token for token in template.special}
    assert chat.controls_in([*plain, *held]) == held
    assert chat.controls_in([*plain, "a <tag>, a [list] and a < b | c > d", ""]) == {}
    assert chat.controls_in([]) == {}


def test_tags_that_a_given_template_writes_and_no_token_is_for_are_found():
    foreign = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|assistant|>\n"
    assert with_template(foreign).unread_tags == ["<|im_start|>", "<|im_end|>"]
    assert with_template("<|user|>{{ messages[0].content }} [INST]<|assistant|>").unread_tags == []
    assert Chat.load(ModelSource()).unread_tags == []
