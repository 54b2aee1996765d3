"""The evaluators on the embedded model: against lm-eval's own command line, plain computations, and by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.data import TEXTS, Document
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluator, Subject, configured
from refusal_cmp.evals.capability import EMBEDDED_TASKS, _metrics, load_task
from refusal_cmp.evals.magnitude import projections
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.model.generation import Answer
from refusal_cmp.model.losses import encode
from refusal_cmp.plan import Place, Plan, baseline
from refusal_cmp.planning import Selected
from refusal_cmp.statistics import rate

from support.models import instructions

SETTINGS = {
    "batch_size": 16,
    "texts": ("tiny-answers", "tiny-general", "on-distribution"),
    "loss_tokens": 300,
    "document_tokens": 256,
    "tasks": ("world_cloze",),
    "benchmark_limit": 12,
}


@pytest.fixture(scope="module")
def field(tiny):
    return extract(tiny, instructions("tiny-harmful", "train", 32), instructions("tiny-harmless", "train", 32))


@pytest.fixture(scope="module")
def ablation(field):
    return plan_intervention("ablation", field, layer=6, position=-1, scope="all")


@pytest.fixture(scope="module")
def answers(tiny):
    found = {}
    for kind in ("harmful", "harmless"):
        prompts = instructions(f"tiny-{kind}", "test", 8)
        completions = tiny.generate(prompts, max_new_tokens=12)
        found[kind] = [
            Answer(prompt, "even" if i % 2 else "odd", one.text, one.n_tokens, one.finish)
            for i, (prompt, one) in enumerate(zip(prompts, completions, strict=True))
        ]
    return found


def subject(model, plan, answers) -> Subject:
    return Subject(plan, answers, answers, lambda: model, batch_size=16)


def evaluator(name: str, **settings) -> Evaluator:
    """The evaluator as a run with these settings has it."""
    return configured(load_config(None, {**SETTINGS, **settings}), name)


def values(evaluation) -> dict[tuple[str, str], float]:
    return {(one.dataset, one.metric): one.estimate.value for one in evaluation.metrics}


# Refusal


def test_shares_add_up_and_categories_add_up_to_the_whole(tiny, answers):
    found = values(evaluator("refusal").evaluate(subject(tiny, baseline(), answers)))
    for dataset in ("harmful", "harmless"):
        shares = [found[dataset, name] for name in ("refusal", "effective_compliance", "degenerate")]
        assert sum(shares) == pytest.approx(1)
        halves = [found[f"{dataset}:{name}", "refusal"] for name in ("odd", "even")]
        assert np.mean(halves) == pytest.approx(found[dataset, "refusal"])
    assert found["harmful", "refusal"] == 1
    assert found["harmful", "attack_success"] == 0


def test_a_collapsed_completion_is_no_compliance_although_the_published_measure_counts_it():
    collapsed = {"harmful": [Answer("How?", "", "To" * 60, 60, "length")]}
    found = values(evaluator("refusal").evaluate(subject(None, baseline(), collapsed)))
    assert found["harmful", "attack_success"] == 1
    assert found["harmful", "effective_compliance"] == 0
    assert found["harmful", "degenerate"] == 1


# Capability


@pytest.mark.parametrize("template", [False, True])
def test_accuracy_is_that_of_lm_evals_own_command_line(tiny, answers, tmp_path, template):
    ours = evaluator("capability", benchmark_limit=40, task_template=template)
    found = values(ours.evaluate(subject(tiny, baseline(), answers)))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", f"pretrained={model_path('tiny-refuser')},dtype=float32",
        "--tasks", "world_cloze", "--include_path", str(EMBEDDED_TASKS), "--limit", "40", "--device", "cpu",
        "--batch_size", "16", "--output_path", str(tmp_path), *["--apply_chat_template"] * template,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (results,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["world_cloze"]
    assert found["world_cloze", "acc"] == theirs["acc,none"]
    assert found["world_cloze", "acc_norm"] == theirs["acc_norm,none"]


def test_a_plan_in_force_is_a_model_with_edited_weights(tiny, answers):
    """Adding a constant on entry to a block is the same as a bias on what the block before it writes."""
    offset = 4 * torch.randn(tiny.d_model, generator=torch.Generator().manual_seed(0))
    plan = Plan("hand/offset", {Place(5, "resid_pre"): LowRankEdit(b=offset)})
    edited = ChatModel.load("tiny-refuser")
    edited.blocks[4].module.mlp.down_proj.bias = torch.nn.Parameter(offset)
    judge = evaluator("capability")
    hooked = judge.evaluate(subject(tiny, plan, answers))
    folded = evaluator("capability").evaluate(subject(edited, baseline(), answers))
    assert values(hooked) == values(folded)
    assert [one.values for one in hooked.metrics] == [one.values for one in folded.metrics]
    assert values(hooked) != values(judge.evaluate(subject(tiny, baseline(), answers)))


def test_running_twice_gives_the_same(tiny, answers):
    judge = evaluator("capability")
    first, second = (judge.evaluate(subject(tiny, baseline(), answers)) for _ in range(2))
    assert values(first) == values(second)


def test_a_prompt_that_does_not_fit_is_an_error(tiny, answers, monkeypatch):
    monkeypatch.setattr(type(tiny), "context", 40)
    with pytest.raises(RefusalCmpError, match="benchmark prompt has .* tokens and the model takes 40"):
        evaluator("capability").evaluate(subject(tiny, baseline(), answers))


def test_shots_are_part_of_a_tasks_name():
    def shots(spec):
        (task,) = load_task(spec)["tasks"].values()
        return task.get_config("num_fewshot")

    assert (shots("world_cloze"), shots("world_cloze@2")) == (5, 2)
    assert shots("world_statements@5") == 0  # fixed by the task
    with pytest.raises(RefusalCmpError, match="Unknown task of lm-eval 'world_close'.*'world_cloze'"):
        load_task("world_close")


def task(samples, **results):
    """What lm-eval says of a task: results by metric,filter, and for each filter the value of every question."""
    rows = [
        {"doc_id": question, "filter": name, "em": value, "filtered_resps": ["x"]}
        for name, values in samples.items()
        for question, value in enumerate(values)
    ]
    return {one.metric: one.estimate for one in _metrics("t", {"results": {"t": results}, "samples": {"t": rows}})}


def test_the_interval_of_a_share_is_wilsons_and_of_a_mean_within_its_range():
    right = [1.0] * 49 + [0.0]
    found = task({"none": right}, **{"em,none": 0.98, "em_stderr,none": 0.02})
    assert found["em"] == rate(49, 50)
    found = task({"none": [0.9, 1.0]}, **{"em,none": 0.95, "em_stderr,none": 0.05})
    assert (found["em"].low, found["em"].high) == (pytest.approx(0.852, abs=1e-3), 1)
    found = task({"none": [90.0, 100.0]}, **{"em,none": 95.0, "em_stderr,none": 5.0})
    assert found["em"].high > 100


def test_questions_of_a_task_with_several_filters_count_once():
    found = task({"strict": [1.0] * 10, "loose": [1.0] * 10}, **{"em,strict": 1.0, "em,loose": 1.0})
    assert {name: one.n for name, one in found.items()} == {"em,strict": 10, "em,loose": 10, "non_finite": 10}


# Losses


def test_all_plans_see_the_same_tokens_within_the_budget(tiny, answers, ablation):
    judge = evaluator("perplexity")
    plain, edited = (judge.evaluate(subject(tiny, plan, answers)) for plan in (baseline(), ablation))
    for name in SETTINGS["texts"]:
        counts = [[row["n_tokens"] for row in one.examples[name]] for one in (plain, edited)]
        assert counts[0] == counts[1]
        assert sum(counts[0]) <= 300
    assert sum(row["n_tokens"] for row in plain.examples["tiny-general"]) == 300
    assert values(plain) != values(edited)


def test_perplexity_is_the_exponential_of_the_loss_and_on_distribution_is_low(tiny, answers):
    found = values(evaluator("perplexity").evaluate(subject(tiny, baseline(), answers)))
    for name in SETTINGS["texts"]:
        assert found[name, "perplexity"] == pytest.approx(np.exp(found[name, "loss"]))
    assert found["on-distribution", "loss"] < found["tiny-general", "loss"]


def test_a_long_text_is_cut_at_the_models_context(tiny):
    scored = encode(tiny, Document("word " * 5000))
    assert len(scored.ids) == tiny.context
    assert scored.n == tiny.context - 1


# KL, coherence, magnitude


def test_kl_is_zero_for_the_baseline_and_textbook_for_a_plan(tiny, answers, ablation):
    judge = evaluator("kl")
    assert values(judge.evaluate(subject(tiny, baseline(), answers))) == {("harmless", "kl"): 0}
    found = judge.evaluate(subject(tiny, ablation, answers))
    batch = tiny.batch(tiny.tokenize([answers["harmless"][3].instruction]))
    with torch.inference_mode():
        p = tiny.last_logits(batch)[0].double().softmax(-1)
        with tiny.edited(ablation):
            q = tiny.last_logits(batch)[0].double().softmax(-1)
    assert found.metrics[0].values[3] == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_a_model_that_yields_no_number_has_neither_a_kl_of_zero_nor_a_perplexity(tiny, answers):
    broken = Plan("hand/nan", {Place(5, "resid_pre"): LowRankEdit(b=torch.full((tiny.d_model,), torch.nan))})
    for name in ("kl", "perplexity"):
        assert np.isnan(list(values(evaluator(name).evaluate(subject(tiny, broken, answers))).values())).all()


def test_collapsed_text_is_seen_and_unlikely(tiny, answers):
    broken = {"harmless": [Answer(one.instruction, "", "bread " * 40, 40, "length") for one in answers["harmless"]]}
    plain, collapsed = (
        values(evaluator("coherence").evaluate(subject(tiny, baseline(), some))) for some in (answers, broken)
    )
    for name, sign in (("distinct_trigrams", -1), ("compression", -1), ("unedited_loss", 1)):
        assert sign * (collapsed["harmless", name] - plain["harmless", name]) > 0


def test_projections_are_those_of_the_residual_stream(tiny, field, answers):
    selected = [Selected(field, next(iter(c for c in field if c.layer == 6)))]
    prompts = [one.instruction for one in answers["harmful"]]
    found, _ = projections(tiny, prompts, selected, [1, 2], batch_size=3)
    batch = tiny.batch(tiny.tokenize(prompts[4:5]))
    component = selected[0].component
    stream = tiny.streams(batch)[component.layer][0, component.position].double()
    assert float(found["diff-in-means"][4]) == pytest.approx(float(stream @ field[component].direction), abs=1e-4)


def test_magnitude_tells_refused_prompts_apart(tiny, field, answers):
    selected = [Selected(field, next(iter(c for c in field if c.layer == 6)))]
    given = Subject(
        baseline(), answers, answers, lambda: tiny, batch_size=16, selected=lambda: selected, refusal_tokens=(1, 2)
    )
    evaluation = evaluator("magnitude").evaluate(given)
    assert values(evaluation)["all", "magnitude_auroc:diff-in-means"] == 1
    assert ("harmful", "magnitude_auroc:diff-in-means") not in values(evaluation)  # all are refused: not defined


# Texts


def test_text_sets_of_the_embedded_world():
    assert len(list(TEXTS.get("tiny-answers")())) > 50
