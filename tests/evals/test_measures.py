"""What a metric is stands at its evaluator: nothing of ours is undeclared, nothing is declared twice."""

from __future__ import annotations

import math

import pytest

from refusal_cmp.evals import EVALUATORS, Evaluation, Evaluator, Measure, all_measures, measure_of
from refusal_cmp.statistics import Estimate

OURS = [name for name in EVALUATORS if EVALUATORS.get(name).__module__.startswith("refusal_cmp.")]


@pytest.fixture
def third_party(monkeypatch):
    """A registered evaluator that declares two measures, one of them a pattern."""

    class Tone(Evaluator):
        """The tone of completions."""

        measures = (
            Measure("tone", "Tone", "mean tone", "share", better="higher"),
            Measure("tone_by:*", "Tone by topic", shown="never"),
        )

        def evaluate(self, subject):
            return Evaluation([])

    EVALUATORS.get("refusal")  # discover first
    monkeypatch.setitem(EVALUATORS._plugins, "tone", Tone)
    return Tone


@pytest.mark.parametrize("name", OURS)
def test_every_evaluator_of_ours_says_what_its_metrics_are(name):
    evaluator = EVALUATORS.get(name)
    assert evaluator.measures
    assert evaluator.order < Evaluator.order
    for measure in evaluator.measures:
        assert measure.meaning, measure.name
        assert not measure.meaning.endswith("."), measure.name
        assert measure_of(measure.name) == measure, "a pattern before it hides it, or it means something else elsewhere"


def test_evaluators_have_places_of_their_own():
    places = [EVALUATORS.get(name).order for name in OURS]
    assert len(set(places)) == len(places)


def test_a_metric_of_a_third_party_stands_after_ours_with_its_heading(third_party):
    assert all_measures()[-2:] == list(third_party.measures)
    assert measure_of("tone").heading == "Tone"
    assert measure_of("tone_by:weather").shown == "never"


def test_a_metric_that_nobody_declares_goes_by_its_own_name():
    assert measure_of("some_new_metric") == Measure("some_new_metric", "some new metric")


@pytest.mark.parametrize(
    ("metric", "given", "kept"),
    [
        ("distinct_trigrams", (0.99, 0.98, 1.01), (0.98, 1.0)),
        ("acc", (0.02, -0.01, 0.05), (0.0, 0.05)),
        ("compression", (1.14, 1.05, 1.23), (1.05, 1.23)),
        ("loss", (0.1, -0.2, 0.4), (0.0, 0.4)),
        ("magnitude_spearman:inlp", (-0.9, -1.2, 0.1), (-1.0, 0.1)),
        ("landing", (1.1, -0.2, 2.4), (-0.2, 2.4)),
        ("some_new_metric", (3.0, -2.0, 8.0), (-2.0, 8.0)),
    ],
)
def test_an_interval_is_no_wider_than_what_a_metric_can_be(metric, given, kept):
    assert measure_of(metric).within(Estimate(*given, 40)) == (given[0], *kept, 40)
    unknown = measure_of(metric).within(Estimate(given[0], math.nan, math.nan, 40))
    assert math.isnan(unknown.low)
    assert math.isnan(unknown.high)


def test_units_that_numbers_do_not_show_stand_in_the_title():
    assert measure_of("loss").title == "Loss, nats a token"
    assert measure_of("refusal").title == "Refuses"
