"""Conversations as prompts: files, rendering, and what refuses to be one; wrappers around requests."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_cmp.data import Columns
from refusal_cmp.data.conversations import Turn, conversation, has_prefill, in_words, turns_of, words, written
from refusal_cmp.data.files import read_splits
from refusal_cmp.data.wrappers import WRAPPERS, wrapper
from refusal_cmp.errors import RefusalCmpError

SAID = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi! What is it?"},
    {"role": "user", "content": "How do I pick a lock?"},
]
SHARED = [
    {"from": "human", "value": "Hello."},
    {"from": "gpt", "value": "Hi! What is it?"},
    {"from": "human", "value": "How do I pick a lock?"},
]


def read(path, told=lambda _: None, **columns):
    return [prompt.instruction for prompt in read_splits(path, Columns(**columns), told)["test"]]


def test_turns_come_back_as_they_were_said():
    text = conversation(SAID, prefill="Sure")
    assert turns_of(text) == (*(Turn(one["role"], one["content"]) for one in SAID), Turn("assistant", "Sure"))
    assert written(turns_of(text)) == text
    assert has_prefill(text)
    assert not has_prefill(conversation(SAID))
    assert in_words(text) == "user: Hello.\nassistant: Hi! What is it?\nuser: How do I pick a lock?\nassistant: Sure"
    assert words(conversation(SAID)) == "Hello.\nHi! What is it?\nHow do I pick a lock?"


@pytest.mark.parametrize("text", ["How do I pick a lock?", '[{"role": "user"', '[{"role": 3}]', "[]", ""])
def test_any_other_text_is_what_the_user_says(text):
    assert turns_of(text) == (Turn("user", text),)
    assert in_words(text) == words(text) == text


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no turn of the user's"),
        ([{"role": "system", "content": "Be brief."}], "no turn of the user's"),
        (SAID[1:], "Turn 1 of a conversation is the assistant's, where it should be the user's"),
        ([SAID[0], SAID[2]], "Turn 2 of a conversation is the user's"),
        ([{"role": "tool", "content": "x"}], "it must have a role"),
        ([{"role": "user", "content": 3}], "it must have a role"),
        ([{"role": "user"}], "it must have a role"),
    ],
)
def test_what_is_no_conversation_is_one_sentence(messages, says):
    with pytest.raises(RefusalCmpError, match=says):
        conversation(messages)


@pytest.mark.parametrize("messages", [SAID, SHARED], ids=["messages", "from and value"])
@pytest.mark.parametrize("kind", ["json", "rows", "jsonl", "csv", "parquet"])
def test_files_of_any_kind_hold_conversations(tmp_path, kind, messages):
    rows = [{"messages": messages, "category": "locks"}] * 2
    path = tmp_path / f"my.{'json' if kind == 'rows' else kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "rows":
        path.write_text(json.dumps([messages] * 2))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        quoted = json.dumps(messages, indent=1).replace('"', '""')
        path.write_text(f'messages,category\n"{quoted}",locks\n"{quoted}",locks\n')
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path) == [conversation(SAID)] * 2


def test_the_answer_that_a_file_has_is_left_out_and_a_prefill_is_how_it_begins(tmp_path):
    path, told = tmp_path / "my.jsonl", []
    rows = [
        {"messages": [*SAID, {"role": "assistant", "content": "No."}]},
        {"messages": SAID, "prefill": "Sure"},
        {"messages": []},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path, told.append) == [conversation(SAID), conversation(SAID, "Sure")]
    assert any("the last answer of 1 of 3 conversations is left out" in one for one in told)
    assert any("1 of 3 rows have no prompt" in one for one in told)
    path.write_text(json.dumps({"prompt": "Hello.", "prefill": "Sure"}))
    assert read(path) == [conversation([SAID[0]], "Sure")]


def test_what_a_file_has_that_is_no_conversation_names_the_row(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"messages": SAID}) + "\n" + json.dumps({"messages": SAID[1:]}))
    with pytest.raises(RefusalCmpError, match=r"messages of row 2 of .*my.jsonl is no conversation. Turn 1"):
        read(path)


def test_the_template_renders_every_turn_and_the_answer_goes_on_from_its_beginning(tiny):
    ids = tiny.tokenize([conversation(SAID), conversation(SAID, "Sure")])
    expected = tiny.tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    assert tiny.tokenizer.decode(ids[0]) == tiny.tokenizer.decode(
        tiny.tokenizer(expected, add_special_tokens=False).input_ids
    )
    assert tiny.render(conversation(SAID, "Sure")) == expected + "Sure"
    own = conversation([{"role": "system", "content": "Be brief."}, *SAID])
    assert "Be brief." in tiny.render(own)
    with tiny.asked("Say yes."):
        assert "Be brief." not in tiny.render(own)
        assert "Say yes." in tiny.render(own)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_request_asks_for_the_same(tiny, name):
    wrap = wrapper(name)
    for instruction in ("How do I pick a lock?", conversation(SAID), conversation(SAID, "Well")):
        asked = [turn for turn in turns_of(wrap(instruction)) if turn.role == "user"][-1]
        assert "How do I pick a lock?" in asked.text
        assert "Well" not in wrap(instruction)
        assert wrap(instruction) != instruction
        tiny.render(wrap(instruction))
    assert has_prefill(wrap("x")) == (name == "prefill")


def test_an_unknown_wrapper_is_one_sentence():
    with pytest.raises(RefusalCmpError, match="role-play"):
        wrapper("roleplay")
