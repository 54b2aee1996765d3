"""How numbers and lists are written for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_cmp.report.wording import clause_list, log_odds, span


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [
        (-0.04, 1, "−0.040"),
        (-0.04, 2, "−0.040"),
        (0.0042, 2, "0.0042"),
        (-5.31, 1, "−5.3"),
        (12.345, 2, "12.35"),
        (0.0, 1, "0.0"),
        (math.nan, 2, "nan"),
    ],
)
def test_log_odds_keep_their_sign_and_two_digits(value, digits, said):
    assert log_odds(value, digits) == said


@given(st.floats(1e-5, 30) | st.floats(-30, -1e-5))
def test_no_log_odds_are_rounded_away(value):
    shown = float(log_odds(value, 1).replace("−", "-"))
    assert shown == pytest.approx(value, rel=0.05)


def test_a_span_of_one_number_is_that_number():
    assert (span(1, 3), span(1, 1), span("7°", "7°")) == ("1 to 3", "1", "7°")


def test_clauses_have_a_comma_before_the_last():
    assert [clause_list(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a, and b", "a, b, and c"]
