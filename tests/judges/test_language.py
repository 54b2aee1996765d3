"""The line between language and none: where it is drawn, how its errors are counted, and what falls on which side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_cmp.data import Document
from refusal_cmp.judges.language import FLUENT, draw_line, learn, read_answers, shuffled
from refusal_cmp.model.losses import Loss

from support.models import instructions

SURPRISES = st.lists(st.floats(0, 20), min_size=2, max_size=150)


@given(SURPRISES, SURPRISES)
def test_the_line_leaves_almost_all_fluent_texts_below_it_and_counts_its_errors(fluent, mixed):
    line = draw_line(fluent, mixed)
    above = [one for one in fluent if one > line.threshold]
    assert line.threshold in fluent
    assert len(above) <= (1 - FLUENT) * len(fluent)
    alone = sum(one > draw_line(fluent[:i] + fluent[i + 1 :], []).threshold for i, one in enumerate(fluent))
    assert line.false_alarms == (alone, len(fluent))
    assert line.misses == (sum(np.array(mixed) <= line.threshold), len(mixed))


def test_without_a_text_there_is_no_line_and_no_language():
    line = draw_line([], [])
    assert math.isnan(line.threshold)
    assert not line.holds(Loss(0.1, 5))


@pytest.mark.parametrize(("loss", "holds"), [(Loss(10, 12), True), (Loss(60, 12), False), (Loss(0, 0), False),
                                             (Loss(math.nan, 12), False), (Loss(9, 1), True)])  # fmt: skip
def test_a_text_is_language_up_to_the_line(loss, holds):
    """The cost of an unexpected subject is spread: one word that costs nine nats is language."""
    assert draw_line([1.0, 2.0], []).holds(loss) == holds


@given(st.text(min_size=1))
def test_shuffling_keeps_the_words_and_is_always_the_same(text):
    assert shuffled(text) == shuffled(text)
    if len(text.split()) > 1:
        assert sorted(shuffled(text).split()) == sorted(text.split())
    else:
        assert sorted(shuffled(text)) == sorted(text)


@pytest.fixture(scope="module")
def own(tiny):
    prompts = [one for kind in ("harmful", "harmless", "contrast") for one in instructions(f"tiny-{kind}", "test", 24)]
    completions = tiny.generate(prompts, max_new_tokens=48)
    return [Document(one.text, prompt) for one, prompt in zip(completions, prompts, strict=True)]


def test_the_embedded_model_tells_its_answers_from_their_words_in_disorder(tiny, own):
    language = learn(tiny, own)
    assert language.false_alarms.wrong <= 0.03 * language.false_alarms.n
    assert language.misses.wrong == 0
    assert all(language.holds(loss) for loss in read_answers(tiny, own))


@pytest.mark.parametrize(
    "text",
    [
        "- try-t-min-t-l - try-est-t-min - t-try-est-t-min",
        "To sck a the photog in, mak a sht lis an follw it thn",
        "ToI deflate an aI deflate rubber, bandI theI touch the of",
    ],
)
def test_mush_is_no_language(tiny, own, text):
    (loss,) = read_answers(tiny, [Document(text, own[0].instruction)])
    assert not learn(tiny, own).holds(loss)


def test_equal_answers_count_once_and_are_read_after_another_prompt(tiny, own):
    doubled = learn(tiny, [*own, *own])
    assert doubled.false_alarms.n == learn(tiny, own).false_alarms.n
    alone = learn(tiny, own[:2])
    crossed = [Document(own[0].text, own[1].instruction), Document(own[1].text, own[0].instruction)]
    assert alone.threshold == pytest.approx(max(one.total / (one.n_tokens + 8) for one in read_answers(tiny, crossed)))
