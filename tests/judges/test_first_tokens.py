"""Refusal tokens of a model that begins its refusals as nobody expects."""

from __future__ import annotations

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.first_tokens import refusal_tokens

from support.models import instructions


@pytest.fixture
def unusual(tiny, monkeypatch):
    """The embedded model, as if none of the usual openers were its own."""
    unlikely = int(tiny.tokenizer("zz", add_special_tokens=False)["input_ids"][0])
    monkeypatch.setattr(type(tiny), "refusal_candidates", lambda self: {unlikely: "zz"})
    return tiny


def test_the_usual_openers_come_first(tiny):
    harmful, said = instructions("tiny-harmful", "train", 16), []
    assert refusal_tokens(tiny, harmful, say=said.append) == tiny.refusal_tokens(harmful)
    assert said == []


def test_where_they_have_no_mass_the_models_own_refusals_say_how_they_begin(unusual):
    harmful, said = instructions("tiny-harmful", "train", 16), []
    (token,) = refusal_tokens(unusual, harmful, say=said.append)
    assert unusual.tokenizer.decode([token]) == "I"
    assert said == [
        "Warning: tiny-refuser begins no answer as refusals usually begin; the refusal tokens are those of its own "
        "refusals, 'I'. If its answers to harmless prompts begin so too, give other refusal tokens."
    ]


def test_a_model_that_refuses_none_has_no_refusal_tokens(unusual):
    with pytest.raises(RefusalCmpError, match="refuses none of 8 harmful prompts") as raised:
        refusal_tokens(unusual, instructions("tiny-harmless", "train", 8), say=print)
    assert raised.value.settings == {"refusal_tokens": "IDS"}
