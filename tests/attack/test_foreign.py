"""What others wrote runs in ours: chat templates and the answers of endpoints, whatever they are."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from refusal_cmp.judges.openai import OpenAIBackend
from refusal_cmp.model.chat import Chat

from support.attack import FUZZ, outcome
from support.endpoint import Reply, endpoint

PIECES = [
    "{{ messages[0].content }}",
    "{{ messages[0]['content'] | trim }}",
    "{% for m in messages %}",
    "{{ m.role }}: {{ m.content }}<|im_end|>\n",
    "{% endfor %}",
    "{% if add_generation_prompt %}",
    "{% if messages | length > 1 %}",
    "{% endif %}",
    "{% else %}",
    "{% set x = namespace(n=0) %}",
    "{% set x.n = x.n + 1 %}",
    "{% macro again() %}{{ again() }}{% endmacro %}",
    "{{ again() }}",
    "{{ 1 / 0 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'a' * 10 ** 15 }}",
    "{{ '\\ud800' }}",
    "{{ messages[9].role }}",
    "{{ messages[0].content.encode('ascii') }}",
    "{{ messages[0].content.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{% for i in range(10 ** 9) %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ strftime_now('%d %b %Y') }}",
    "{{ tools | tojson }}",
    "{% generation %}",
    "{% endgeneration %}",
    "<|im_start|>assistant\n",
    "{{ eos_token }}",
    "{#",
    "{{",
    "%}",
]
PROMPTS = ["How do I bake bread?", "", "<|im_end|>", "{{ 1 / 0 }}", "\u202e\0 ü 🙂", "x " * 300]


@FUZZ
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=6).map("".join))
@example(PIECES[2] + PIECES[3] + PIECES[4])
def test_any_template(tiny, template):
    tokenizer = copy.copy(tiny.tokenizer)
    tokenizer.chat_template = template

    def use():
        chat = Chat(tokenizer, "any", tiny.model.generation_config)
        assert len(chat.tokenize(PROMPTS)) == len(PROMPTS)
        assert chat.positions
        assert chat.stop_ids
        chat.controls_in(PROMPTS)
        assert chat.turns.markers is not None

    assert outcome(use) in ("done", "sentence")


@pytest.fixture(scope="module")
def server():
    """An endpoint that answers with what `replies` holds last."""
    replies = [Reply()]
    with endpoint(lambda n, body: replies[-1]) as running:
        yield running, replies


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["choices", "x"]), inner, max_size=2),
    max_leaves=4,
)
messages = st.fixed_dictionaries({}, optional={"content": values, "role": values}) | values
answers = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(st.fixed_dictionaries({}, optional={"message": messages, "text": values}), max_size=2)
        | values,
        "error": values,
    },
)


def sent(body, status=b"200 OK", head=b""):
    return Reply(pieces=[b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n" % len(body) + head + b"\r\n" + body])


@FUZZ
@given(
    st.binary(max_size=60).map(sent)
    | (answers | values).map(lambda value: sent(json.dumps(value).encode()))
    | st.binary(max_size=60).map(lambda raw: Reply(pieces=[raw]))
    | st.sampled_from([b"500 No", b"404 No", b"301 Go", b"204 No", b"999 ?", b"x"]).map(lambda one: sent(b"{}", one))
    | st.binary(max_size=30).map(lambda raw: sent(raw, head=b"Content-Encoding: gzip\r\n"))
)
@example(sent(b"[" * 100_000))
@example(sent(b'{"choices": [{"message": {"content": "\\ud800 \\u202e"}}]}'))
def test_any_answer_of_an_endpoint(server, reply):
    running, replies = server
    replies.append(reply)
    backend = OpenAIBackend("any", running.url, SecretStr("hush-hush-hush"), timeout=2.0, retries=1, backoff=0.0)

    def ask():
        for _, text in backend.answer([[{"role": "user", "content": "Is it safe?"}]], 4):
            json.dumps(text).encode()
            text.encode()

    assert outcome(ask) in ("done", "sentence")
