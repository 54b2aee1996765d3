"""The everyday questions: well-made items, which two tasks ask, by the answer's text and by its letter."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.evals import Subject, configured
from refusal_cmp.evals.capability import Spec, load_task
from refusal_cmp.plan import baseline


def task(spec: str):
    (loaded,) = load_task(Spec.parse(spec))["tasks"].values()
    return loaded


@pytest.fixture(scope="module")
def questions():
    return task("everyday_questions")


@pytest.fixture(scope="module")
def items(questions):
    return list(questions.test_docs())


@pytest.fixture(scope="module")
def shots(questions):
    return list(questions.fewshot_docs())


def test_two_tasks_ask_the_same_items(items, shots):
    letters = task("everyday_letters")
    assert list(letters.test_docs()) == items
    assert list(letters.fewshot_docs()) == shots
    assert (len(items), len(shots)) == (240, 8)


def test_every_question_is_asked_once_and_no_shot_is_tested(items, shots):
    asked = [one["question"].casefold() for one in items + shots]
    assert len(set(asked)) == len(asked)


def test_options_are_four_short_and_distinct(items, shots):
    for one in items + shots:
        assert len({option.casefold() for option in one["choices"]}) == 4, one
        for option in one["choices"]:
            assert option == option.strip()
            assert 1 <= len(option.split()) <= 4
            assert not option.endswith(".")
        assert one["question"][0].isupper()
        assert one["question"][-1].isalnum()


def test_the_right_option_stands_everywhere_equally_often(items, shots):
    assert Counter(one["answer"] for one in items) == dict.fromkeys(range(4), 60)
    assert Counter(one["answer"] for one in shots) == dict.fromkeys(range(4), 2)


def test_no_order_gives_the_right_option_away(items):
    """Neither the position of the question before it, nor the rank in the alphabet."""
    follows = [(after["answer"] - before["answer"]) % 4 for before, after in pairwise(items)]
    ranks = [sorted(one["choices"]).index(one["choices"][one["answer"]]) for one in items]
    for found in (follows, ranks):
        assert all(0.15 < n / len(items) < 0.35 for n in Counter(found).values())


def test_length_does_not_give_the_right_option_away(items):
    """A guess of the longest or the shortest option, one of them at random if several are, is at chance."""
    for extreme in (max, min):
        hits = []
        for one in items:
            lengths = [len(option) for option in one["choices"]]
            best = [i for i, length in enumerate(lengths) if length == extreme(lengths)]
            hits.append((one["answer"] in best) / len(best))
        assert 0.19 < fmean(hits) < 0.31


def test_the_first_item_as_it_is_asked(items):
    first = items[0]
    by_text, by_letter = task("everyday_questions"), task("everyday_letters")
    assert by_text.doc_to_text(first) == first["question"]
    assert by_text.doc_to_choice(first) == first["choices"]
    shown = by_letter.doc_to_text(first).splitlines()
    assert shown[0] == first["question"]
    assert shown[1:] == [f"{letter}. {option}" for letter, option in zip("ABCD", first["choices"], strict=True)] + [
        "Answer:"
    ]
    assert by_letter.doc_to_choice(first) == list("ABCD")


def test_shots_can_be_set():
    specs = ("everyday_questions", "everyday_questions@5", "everyday_letters", "everyday_letters@0")
    assert [task(spec).get_config("num_fewshot") for spec in specs] == [None, 5, 5, 0]


def test_every_item_is_scored(tiny):
    given = load_config(None, {"tasks": "everyday_questions,everyday_letters@0/8", "batch_size": 32})
    subject = Subject(baseline(), {}, {}, lambda: tiny, batch_size=32)
    found = configured(given, "capability").evaluate(subject).metrics
    n = {(one.dataset, one.metric): one.estimate.n for one in found}
    assert n["everyday_questions", "acc"] == n["everyday_questions", "acc_norm"] == 240
    assert n["everyday_letters", "acc"] == 8
    assert all(one.estimate.value == 0 for one in found if one.metric == "non_finite")
