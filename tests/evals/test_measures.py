"""What a metric is stands at its evaluator: nothing of ours is undeclared, nothing is declared twice."""

from __future__ import annotations

import pytest

from refusal_cmp.evals import EVALUATORS, Evaluation, Evaluator, Measure, all_measures, measure_of

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


def test_units_that_numbers_do_not_show_stand_in_the_title():
    assert measure_of("loss").title == "Loss, nats a token"
    assert measure_of("refusal").title == "Refuses"
