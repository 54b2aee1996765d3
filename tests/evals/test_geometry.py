"""Where activations land under a plan: as the equations of the edits say, on the prompts that the direction is from."""

from __future__ import annotations

import numpy as np
import pytest

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.evals import Subject
from refusal_cmp.evals.geometry import Geometry
from refusal_cmp.model.generation import Answer
from refusal_cmp.plan import baseline
from refusal_cmp.planning import Selected
from refusal_cmp.subspace import Component

from support.models import instructions

KINDS = ("harmful", "harmless")
PLACE = Component(-1, 6)


@pytest.fixture(scope="module")
def prompts():
    return {kind: instructions(f"tiny-{kind}", "train", 32) for kind in KINDS}


@pytest.fixture(scope="module")
def measured(tiny, prompts):
    """What the evaluator finds on the training prompts, by intervention: the metrics, and (kind, prompt, 2) planes."""
    field = extract(tiny, *prompts.values())
    plans = {"unedited": baseline()} | {
        name: plan_intervention(*spec, layer=PLACE.layer, position=PLACE.position, scope="single", strength=strength)
        for name, spec, strength in (
            ("ablated", ("ablation", field), None),
            ("subtracted", ("actadd", field), -1.0),
            ("added", ("actadd", field), 1.0),
        )
    }
    answers = {kind: [Answer(text, "", "", 0, "stop") for text in texts] for kind, texts in prompts.items()}
    evaluator = Geometry()
    found = {}
    for name, plan in plans.items():
        subject = Subject(plan, answers, answers, lambda: tiny, selected=lambda: [Selected(field, PLACE)])
        evaluation = evaluator.evaluate(subject)
        plane = [[row["plane"]["diff-in-means"] for row in evaluation.examples[kind]] for kind in KINDS]
        found[name] = {one.metric: one.estimate for one in evaluation.metrics}, np.array(plane)
    return found


def test_subtracting_the_difference_of_the_means_takes_one_mean_to_the_other(measured):
    for name, landing, near, far in (("subtracted", 0, "harmless", "harmful"), ("added", 2, "harmful", "harmless")):
        metrics, _ = measured[name]
        assert metrics["landing"].value == pytest.approx(landing, abs=0.1)
        assert metrics[f"landing_to_{near}"].value == pytest.approx(abs(landing - (near == "harmful")), abs=0.1)
        assert metrics[f"landing_to_{far}"].value == pytest.approx(abs(landing - (far == "harmful")), abs=0.1)


def test_ablation_leaves_nothing_along_the_direction(measured):
    (_, ablated), (_, unedited) = measured["ablated"], measured["unedited"]
    assert np.ptp(ablated[..., 0]) < 1e-3 * np.ptp(unedited[..., 0])


def test_activations_of_harmless_prompts_move_like_those_of_harmful_ones(measured):
    (_, added), (_, unedited) = measured["added"], measured["unedited"]
    moved = (added - unedited).reshape(-1, 2)
    assert moved.std(0).max() < 1e-3 * np.linalg.norm(moved, axis=-1).mean()


def test_intervals_hold_their_values_and_the_baseline_has_none(measured):
    metrics, _ = measured["unedited"]
    assert metrics == {}
    for metrics, _ in (measured[name] for name in ("ablated", "subtracted", "added")):
        assert all(one.low <= one.value <= one.high and one.n == 32 for one in metrics.values())


def test_without_harmful_or_harmless_prompts_nothing_is_measured(tiny, prompts):
    answers = {"harmful": [Answer(text, "", "", 0, "stop") for text in prompts["harmful"]]}
    subject = Subject(baseline(), answers, answers, lambda: tiny)
    assert Geometry().evaluate(subject).metrics == []
