"""Evaluators that measure many plans in the same passes: they say of each what they say of it alone."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from refusal_cmp.api import plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.evals import Subject, configured
from refusal_cmp.evals.recognition import QUESTION, WORDS, _begins, asked
from refusal_cmp.model import ChatModel
from refusal_cmp.model.generation import Answer
from refusal_cmp.plan import Place, Plan, baseline, prompted
from refusal_cmp.stages.evaluate import _read_from
from refusal_cmp.subspace import Component

from support.models import instructions

SETTINGS = {
    "texts": ("tiny-answers", "on-distribution"),
    "loss_tokens": 120,
    "tasks": ("world_cloze",),
    "benchmark_limit": 6,
}
EVALUATORS = ("perplexity", "kl", "capability")
OTHER = "checkpoint/other"


@pytest.fixture(scope="module")
def plans(tiny_fields) -> list[Plan]:
    field = tiny_fields["inlp"]
    edits = [
        plan_intervention(name, field, layer=layer, position=-1, scope=scope)
        for name, layer, scope in (
            ("nullspace", 4, "single"), ("actadd", 7, "single"), ("actadd", 4, "single"), ("ablation", 6, "all"),
            ("ablation[tokens=prompt]", 4, "single"), ("actadd[tokens=prompt]", 7, "single"),
        )
    ]  # fmt: skip
    noise = 30 * torch.randn(field[Component(-1, 4)].direction.shape, generator=torch.Generator().manual_seed(0))
    edits.append(Plan("hand/noise", {Place(7, "resid_pre"): LowRankEdit(b=noise)}))
    return [baseline(), *edits, prompted("rude", "Answer in one word."), Plan(OTHER, {}, checkpoint="x", content="y")]


@pytest.fixture(scope="module")
def other(tiny) -> ChatModel:
    """Another checkpoint: the embedded model with one layer's MLP turned down."""
    model = ChatModel.load("tiny-refuser")
    model.blocks[3].module.mlp.down_proj.weight.data *= 0.5
    return model


@pytest.fixture(scope="module")
def subjects(tiny, other, plans) -> list[Subject]:
    answers = {
        kind: [Answer(prompt, "", f"Sure: {prompt}", 4, "stop") for prompt in instructions(f"tiny-{kind}", "test", 5)]
        for kind in ("harmful", "harmless")
    }

    def of(plan):
        model = other if plan.label == OTHER else tiny
        return Subject(plan, answers, answers, lambda: model, batch_size=16, unedited=lambda: tiny)

    return [of(plan) for plan in plans]


def evaluator(name):
    return configured(load_config(None, SETTINGS), name)


def numbers(evaluation):
    return {(one.dataset, one.metric): one.estimate.value for one in evaluation.metrics}


@pytest.mark.parametrize("name", EVALUATORS)
def test_together_is_as_alone(subjects, name, monkeypatch):
    alone = [evaluator(name).evaluate(subject) for subject in subjects]
    judge, known = evaluator(name), {}
    judge.prepare(subjects, known)
    together = [judge.evaluate(subject) for subject in subjects]
    assert known, "work in progress is kept"
    for one, other in zip(together, alone, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-5, abs=1e-9)
        for metric, expected in zip(one.metrics, other.metrics, strict=True):
            if metric.values is not None:
                assert metric.values == pytest.approx(expected.values, rel=1e-5, abs=1e-9)
    assert len({json.dumps(list(numbers(one).values())) for one in together}) > 1, "plans do something"
    if name == "kl":
        assert numbers(together[0]) == {("harmless", "kl"): 0}
    judge.close()

    # After a kill: what some plans were said of is written, and what is known of the others is not measured again.
    def measured_again(*_, **__):
        raise AssertionError("it is known")

    again = evaluator(name)
    again.prepare([replace(one, judged=lambda _: []) if i < 3 else one for i, one in enumerate(subjects)], dict(known))
    monkeypatch.setattr("refusal_cmp.model.passes.Passes._under", measured_again)
    for subject, expected in list(zip(subjects, together, strict=True))[3:5]:
        assert again.evaluate(subject).metrics == expected.metrics


def test_whether_a_prompt_is_called_harmful_is_read_of_many_plans_as_of_each(tiny, plans):
    prompts = instructions("tiny-harmful", "test", 4)
    edits = [plan for plan in plans if plan.tokens == "all" and not plan.edits_nothing]
    yes, no = (_begins(tiny, words) for words in WORDS.values())
    batch = tiny.batch(tiny.tokenize([QUESTION.replace("{request}", prompt) for prompt in prompts]))
    for plan, found in zip(edits, asked(tiny, prompts, edits), strict=True):
        with tiny.edited(plan):
            p = tiny.last_logits(batch).double().softmax(-1)
        expected = p[:, yes].sum(-1).log() - p[:, no].sum(-1).log()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_checkpoints_and_system_prompts_go_alone(subjects):
    """Their work is not kept: nothing of the model's own plans is in it."""
    judge, known = evaluator("perplexity"), {}
    judge.prepare(subjects, known)
    for subject in subjects[-2:]:
        judge.evaluate(subject)
    assert not known


def test_work_in_progress_of_another_model_is_not_gone_on_with():
    """As where a model's files change under their name after a kill, and all is done again."""

    def made_from(name, dtype, completions):
        run = SimpleNamespace(manifest={"model": {"dtype": dtype}}, digest=lambda file: f"{completions} {file}")
        config = SimpleNamespace(test_sets=("harmful", "harmless"))
        return json.dumps(_read_from(SimpleNamespace(run=run, config=config), evaluator(name)))

    for name in EVALUATORS:
        same = made_from(name, "float32", "a")
        assert same == made_from(name, "float32", "a")
        assert same not in (made_from(name, "float32", "b"), made_from(name, "bfloat16", "a"))
    assert made_from("refusal", "float32", "a") == made_from("refusal", "float32", "b"), "it reads no model"
