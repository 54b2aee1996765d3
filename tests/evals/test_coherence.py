"""What is language, by the embedded model: its own answers are, the same words without their order are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.evals import EVALUATORS, Subject
from refusal_cmp.judges.language import read_answers, shuffled
from refusal_cmp.model.generation import Answer
from refusal_cmp.plan import baseline

from support.models import instructions


@pytest.fixture(scope="module")
def answers(tiny):
    found = {}
    for kind in ("harmful", "harmless"):
        prompts = instructions(f"tiny-{kind}", "test", 8)
        completions = tiny.generate(prompts, max_new_tokens=40)
        found[kind] = [
            Answer(prompt, "", one.text, one.n_tokens, one.finish)
            for prompt, one in zip(prompts, completions, strict=True)
        ]
    return found


@pytest.fixture
def measured(tiny, answers):
    """Metrics of the unedited model's completions, each changed by a function, or of a plan's."""

    def measure(change=lambda text: text, plan=None, evaluator=None):
        changed = {
            dataset: [replace(one, completion=change(one.completion)) for one in of_set]
            for dataset, of_set in answers.items()
        }
        subject = Subject(plan or baseline(), changed, answers, lambda: tiny, batch_size=16)
        evaluation = (evaluator or EVALUATORS.create("coherence")).evaluate(subject)
        return {(one.dataset, one.metric): one.estimate.value for one in evaluation.metrics}

    return measure


def test_words_without_order_comply_by_their_words_and_are_no_answers(measured):
    ordered, mixed = measured(), measured(shuffled)
    for metric in ("in_language", "effective_compliance"):
        assert (ordered["harmless", metric], mixed["harmless", metric]) == (1, 0)


def test_refusals_are_language_and_no_compliance(measured):
    found = measured()
    assert (found["harmful", "in_language"], found["harmful", "effective_compliance"]) == (1, 0)


def test_a_loop_is_no_language_however_well_it_is_foreseen(measured):
    assert measured(lambda _: "To " * 60)["harmless", "in_language"] == 0


def test_the_loss_is_of_what_is_said_before_a_loop(measured):
    """A loop is foreseen, and would hide words without order before it."""
    plain, looped = measured(), measured(lambda text: text + f" {text}" * 9)
    for dataset in ("harmful", "harmless"):
        assert looped[dataset, "unedited_loss"] == pytest.approx(plain[dataset, "unedited_loss"])


def test_without_text_there_is_neither_a_loss_nor_language(measured):
    found = measured(lambda _: "")
    assert found["harmless", "in_language"] == 0
    assert ("harmless", "unedited_loss") not in found


def test_the_line_and_its_errors_are_told_of_the_baseline_alone(tiny, measured):
    prompts = instructions("tiny-harmful", "train", 24), instructions("tiny-harmless", "train", 24)
    plan = plan_intervention("ablation", extract(tiny, *prompts), layer=6)
    evaluator = EVALUATORS.create("coherence")
    plain, edited = measured(evaluator=evaluator), measured(evaluator=evaluator, plan=plan)
    names = {("all", f"language_{name}") for name in ("threshold", "false_alarms", "misses")}
    assert names <= set(plain)
    assert not names & set(edited)
    assert plain["all", "language_misses"] == 0


def test_what_plans_say_alike_is_read_once_and_gives_the_same_to_the_last_bit_whatever_is_finished(
    tiny, answers, monkeypatch
):
    other = {
        name: [replace(one, completion=f"Yes. {one.completion}") for one in rows] for name, rows in answers.items()
    }
    mixed = {"harmful": other["harmful"], "harmless": answers["harmless"]}
    labels = {"baseline": answers, "a": other, "b": mixed, "c": answers}
    plans = [
        Subject(replace(baseline(), label=label), said, answers, lambda: tiny, 16) for label, said in labels.items()
    ]
    read = []

    def reading(model, documents, *more):
        read.extend(documents)
        return read_answers(model, documents, *more)

    monkeypatch.setattr("refusal_cmp.evals.coherence.read_answers", reading)
    evaluator = EVALUATORS.create("coherence")
    evaluator.prepare(plans, {})
    together = [evaluator.evaluate(plan) for plan in plans]
    assert len(read) == len(set(read)) == 2 * sum(map(len, answers.values()))
    for plan, found in zip(plans, together, strict=True):
        for one, alone in zip(found.metrics, EVALUATORS.create("coherence").evaluate(plan).metrics, strict=True):
            assert one.estimate.value == pytest.approx(alone.estimate.value, abs=1e-5, nan_ok=True)
    for again in range(len(plans)):
        judged = [replace(plan, judged=None if index == again else found.examples.__getitem__)
                  for index, (plan, found) in enumerate(zip(plans, together, strict=True))]  # fmt: skip
        evaluator = EVALUATORS.create("coherence")
        evaluator.prepare(judged, {})
        assert evaluator.evaluate(judged[again]).examples == together[again].examples
