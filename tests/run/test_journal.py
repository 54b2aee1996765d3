"""Journals: whatever happens to the file, what is read back are items that were written, from the first one on."""

from __future__ import annotations

import os
import random

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.generation import Completion
from refusal_cmp.run.journal import Journal, Memo

from support.attack import EFFORT, damaged

CORRUPTIONS = 500 * EFFORT
ITEMS = [Completion(f"Answer {n}, «ü» \u2028 and 1{n}.", n, "stop") for n in range(6)]


def opened(path, identity="me"):
    """A journal of completions, as the stage infer has it."""
    return Journal(path, identity, encode=vars, decode=lambda row: Completion(**row))


@pytest.fixture
def path(tmp_path):
    """The file of a journal that holds all items."""
    journal = opened(tmp_path / "x.jsonl")
    for index, item in enumerate(ITEMS):
        journal[index] = item
    return journal.path


def test_a_damaged_file_gives_no_wrong_item_and_goes_on(path):
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(CORRUPTIONS):
        path.write_bytes(damaged(whole, rng))
        journal = opened(path)
        assert list(journal) == list(range(len(journal)))
        assert list(journal.values()) == ITEMS[: len(journal)]
        for index, item in enumerate(ITEMS):
            if index not in journal:
                journal[index] = item
        assert list(opened(path).values()) == ITEMS


def test_a_line_that_a_kill_cut_short_is_made_again(path):
    path.write_bytes(path.read_bytes()[:-20])
    journal = opened(path)
    assert list(journal.values()) == ITEMS[:-1]
    journal[5] = ITEMS[5]
    assert list(opened(path).values()) == ITEMS


@pytest.mark.parametrize("item", [3, None, [1, 2], {"text": "of an older version"}, "text"])
def test_an_item_of_another_shape_ends_the_items(tmp_path, item):
    journal = Journal(tmp_path / "x.jsonl", "me")
    journal[0] = vars(ITEMS[0])
    journal[1] = item
    journal[2] = vars(ITEMS[2])
    assert dict(opened(journal.path)) == {0: ITEMS[0]}


def test_every_text_survives(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive\rsix\r\nseven \ud800 \x00"
    journal = Journal(tmp_path / "x.jsonl", "me")
    journal[0], journal[7] = {"text": text}, text
    assert dict(Journal(tmp_path / "x.jsonl", "me")) == {0: {"text": text}, 7: text}


def test_a_journal_of_other_work_is_begun_anew(path):
    other = opened(path, "you")
    assert not other
    other[3] = ITEMS[3]
    assert dict(opened(path, "you")) == {3: ITEMS[3]}


def test_a_full_disk_is_a_sentence_that_names_the_file(path):
    journal = opened(path)
    before = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(RefusalCmpError, match=r"Cannot write .*x\.jsonl: .*(space|argument).*"):
        journal[6] = ITEMS[0]
    path.unlink()
    path.write_bytes(before)
    journal[6] = ITEMS[0]
    assert list(opened(path).values()) == [*ITEMS, ITEMS[0]]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_cannot_be_read_is_a_sentence(path):
    path.chmod(0)
    with pytest.raises(RefusalCmpError, match=r"Cannot read .*x\.jsonl: Permission denied"):
        opened(path)


def test_a_memo_that_a_kill_cut_short_knows_what_came_before(tmp_path):
    path = tmp_path / "known"
    memo = Memo(Journal(path, "me"))
    memo["a"] = 1
    first = path.stat().st_size
    memo["ü"] = [0.1 + 0.2, None]
    whole = path.read_bytes()
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert dict(Memo(Journal(path, "me"))) == {"a": 1}
    path.write_bytes(whole)
    assert dict(Memo(Journal(path, "me"))) == dict(memo) == {"a": 1, "ü": [0.1 + 0.2, None]}
    assert not Memo(Journal(path, "another guard"))
