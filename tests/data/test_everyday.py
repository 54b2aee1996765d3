"""The everyday sets are what they say: no two prompts are alike, and only content tells the classes apart."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from refusal_cmp.data import CARDS, DATASETS, SPLITS, Columns
from refusal_cmp.data.sampling import NEAR, draw, normal

KINDS = ("harmful", "harmless", "contrast")
SETS = {
    (kind, split): DATASETS.get(f"everyday-{kind}")(split)
    for kind in KINDS
    for split in (SPLITS if kind != "contrast" else ("test",))
}
TEXTS = {which: [prompt.instruction for prompt in prompts] for which, prompts in SETS.items()}
TRAINED_ON = {
    name: (Path(__file__).parents[2] / f"scripts/smol_refuser/{name}.txt").read_text(encoding="utf-8").splitlines()
    for name in ("harmless", "lookalikes")
}


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_has_the_sizes_of_its_card(kind):
    sizes = {split: len(prompts) for (of, split), prompts in SETS.items() if of == kind}
    assert CARDS[DATASETS][f"everyday-{kind}"].sizes == sizes
    assert kind != "contrast" or DATASETS.get("everyday-contrast")("train") == []


@pytest.mark.parametrize("which", SETS, ids="-".join)
def test_topics_are_spread_evenly(which):
    topics = Counter(prompt.category for prompt in SETS[which])
    assert len(topics) >= 8
    assert len(set(topics.values())) == 1
    assert set(topics) == {prompt.category for prompt in SETS[which[0], "test"]}


@pytest.mark.parametrize("texts", [*TEXTS.values(), *TRAINED_ON.values()], ids=[*map("-".join, TEXTS), *TRAINED_ON])
def test_a_prompt_is_a_line_of_plain_text(texts):
    for text in texts:
        assert text.isascii(), text
        assert text == " ".join(text.split()), text
        assert text[0].isupper() or text[0].isdigit(), text


@pytest.mark.parametrize("which", SETS, ids="-".join)
def test_a_prompt_is_a_sentence_or_a_few(which):
    for text in TEXTS[which]:
        assert re.search(r"\w[.?!]$", text), text
        assert 6 <= words(text) <= 30, text


@pytest.mark.parametrize("kind", ["harmful", "harmless"])
def test_no_split_has_a_near_duplicate_in_an_earlier_one(kind):
    sizes = {split: len(SETS[kind, split]) for split in SPLITS}
    drawn = draw(f"everyday-{kind}", sizes, 0, columns=Columns(), near_duplicates=None, say=print)
    for split, counts in drawn.counts.items():
        assert counts["sampled"] == sizes[split]
        assert not any(counts.get(f"near_{earlier}") for earlier in SPLITS)


def test_no_two_prompts_are_alike_in_any_set_or_in_what_the_adapter_learns():
    lists = {**TEXTS, **TRAINED_ON}
    flat = [normal(text) for texts in lists.values() for text in texts]
    assert len(set(flat)) == len(flat)
    vectors = TfidfVectorizer(token_pattern=r"(?u)\w+").fit(flat)
    rows = {which: vectors.transform(texts) for which, texts in lists.items()}
    for one, other in combinations_with_replacement(rows, 2):
        cosines = (rows[one] @ rows[other].T).toarray()
        if one == other:
            np.fill_diagonal(cosines, 0)
        i, j = np.unravel_index(cosines.argmax(), cosines.shape)
        assert cosines[i, j] < NEAR, (lists[one][i], lists[other][j])


@pytest.mark.parametrize("split", SPLITS)
def test_harmful_and_harmless_prompts_are_equally_long(split):
    harmful, harmless = (np.mean([words(text) for text in TEXTS[kind, split]]) for kind in ("harmful", "harmless"))
    assert abs(harmful / harmless - 1) < 0.15


def test_the_form_of_a_prompt_does_not_tell_its_class():
    """Length, punctuation and the first word, learned on the training split, say little about the test split."""

    def form(text: str) -> dict[str, float | str]:
        marks = {mark: text.count(mark) for mark in "?.,;:'!"}
        return {"characters": len(text), "words": words(text), "first": text.split()[0], **marks}

    def split(name):
        texts = [(form(text), kind) for kind in ("harmful", "harmless") for text in TEXTS[kind, name]]
        return zip(*texts, strict=True)

    model = make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression(max_iter=1000)).fit(*split("train"))
    assert model.score(*split("train")) > 0.55  # it did learn
    assert model.score(*split("test")) < 0.65
