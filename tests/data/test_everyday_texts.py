"""The texts of everyday English: reference answers of our own, and what the running Python says of its library."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.data import CARDS, DATASETS, SPLITS, TEXTS, stamped
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import configured, facts

SENTENCES = " ".join(["Every word of this sentence is as plain as can be."] * 6)
"""66 words."""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The folder of a Python's library, with one module of one docstring."""
    monkeypatch.setattr("refusal_cmp.data.python_docs.LIBRARY", tmp_path)
    (tmp_path / "abc.py").write_text(f'"""{SENTENCES}"""\n')
    return tmp_path


def texts() -> list[str]:
    return [document.text for document in TEXTS.get("python-docs")()]


# Answers


@pytest.fixture(scope="module")
def answers():
    return TEXTS.get("everyday-answers")()


def test_a_hundred_answers_of_some_sentences(answers):
    assert len(answers) == 100
    assert all(30 <= len(answer.text.split()) <= 80 for answer in answers)
    assert all(
        answer.text == answer.text.strip() and answer.text[0] not in "abcdefghijklmnopqrstuvwxyz" for answer in answers
    )


def test_no_answer_is_given_twice_and_no_instruction_is_in_another_set(answers):
    asked = [answer.instruction.casefold() for answer in answers]
    assert len(set(asked)) == len({answer.text for answer in answers}) == 100
    embedded = [name for name in DATASETS if CARDS[DATASETS][name].source == "embedded"]
    elsewhere = [prompt.instruction for name in embedded for split in SPLITS for prompt in DATASETS.get(name)(split)]
    elsewhere += [document.instruction for document in TEXTS.get("tiny-answers")()]
    assert len(elsewhere) > 500
    assert not set(asked) & {instruction.casefold() for instruction in elsewhere}


# Python's library


def test_hundreds_of_documents_of_plain_english():
    found = [document.text for document in islice(TEXTS.get("python-docs")(), 250)]
    assert len(set(found)) == 250
    assert all(len(text.split()) >= 60 for text in found)
    words = " ".join(found).split()
    assert sum(re.fullmatch("[A-Za-z]+[.,]?", word) is not None for word in words) > 0.9 * len(words)
    assert 0.05 < sum(word == "the" for word in words) / len(words) < 0.12
    assert not [text for text in found if ">>>" in text or "::" in text or "\n  " in text]


def test_the_order_is_the_same_each_time_and_docstrings_need_not_be_compiled():
    """`python -OO` has none, and reads the same."""
    code = (
        "from itertools import islice; from refusal_cmp.data import TEXTS, stamped; "
        "assert TEXTS.get.__doc__ is None; "
        "print(stamped('python-docs')); "
        "print([document.text for document in islice(TEXTS.get('python-docs')(), 20)])"
    )
    there = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, check=True, timeout=120).stdout
    here = [document.text for document in islice(TEXTS.get("python-docs")(), 20)]
    assert there.decode().splitlines() == [stamped("python-docs"), str(here)]


def test_a_document_is_the_prose_of_one_docstring(library):
    left_out = [
        "    indented = 'as code is'",
        ">>> doctest(1)\n1",
        "- an item of a list.\n- another.",
        "1. A numbered item.",
        "no sentence, as it begins small.",
        "No sentence, as it leads to what follows:",
        "Arguments x_1, y_2 and **z_3 are f(x) + g(y_2) == h[z].",
        "+---+---+\n| a | b |",
    ]
    inner = "\n\n".join(["It tells (mostly)\nwhat 'it' does.", *left_out, SENTENCES])
    indented = inner.replace("\n", "\n        ")
    module = f'"""Too short."""\nclass A:\n    def f(self):\n        """{indented}\n        """\n'
    (library / "ast.py").write_text(module)
    assert texts() == [SENTENCES, f"It tells (mostly) what 'it' does.\n\n{SENTENCES}"]


def test_modules_are_read_in_order_without_tests_strangers_and_repetitions(library):
    for name in ("json/__init__.py", "json/test/first.py", "unittest/case.py", "mine.py", "site-packages/x.py", "z.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f'"""{SENTENCES} It is of {name}."""')
    (library / "abc.py").rename(library / "typing.py")
    (library / "re.py").write_text((library / "typing.py").read_text())
    assert texts() == [f"{SENTENCES} It is of json/__init__.py.", SENTENCES]


def test_the_stamp_tells_one_library_from_another(library):
    one = stamped("python-docs")
    assert one == stamped("python-docs")
    assert sys.version.split()[0] in one
    (library / "abc.py").write_text('"""Other words."""')
    assert stamped("python-docs") != one
    assert [stamped(name) for name in ("tiny-answers", "on-distribution")] == ["tiny-answers", "on-distribution"]
    made_with = facts(load_config(None, {"texts": "tiny-answers,python-docs"}), "perplexity")
    assert made_with["texts"] == ["tiny-answers", stamped("python-docs")]


@pytest.mark.parametrize("left", [None, "abc.pyc"])
def test_a_python_without_sources_is_one_sentence_before_anything_is_done(library, left):
    (library / "abc.py").unlink()
    if left:
        (library / left).write_bytes(b"compiled")
    judge = configured(load_config(None, {"texts": "python-docs"}), "perplexity")
    with pytest.raises(RefusalCmpError, match="source files of Python's library, and .* has none; use") as caught:
        judge.check(("harmful", "harmless"))
    assert "texts" in caught.value.settings
    with pytest.raises(RefusalCmpError, match="has none"):
        texts()


@pytest.mark.parametrize("content", [b"def (", b"a = '\0'", b"\xff\xfe"])
def test_a_damaged_library_is_one_sentence(library, content):
    (library / "ast.py").write_bytes(content)
    with pytest.raises(
        RefusalCmpError, match=r"Python's own ast.py is no Python \(.*\); install Python anew"
    ) as caught:
        texts()
    assert "\n" not in str(caught.value)
