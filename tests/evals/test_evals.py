"""The evaluators on the embedded model: against lm-eval's own command line, plain computations, and by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

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
from refusal_cmp.statistics import holm, paired_difference, rate, weighted_mean
from refusal_cmp.statistics.comparisons import compare_plans

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


def test_accuracy_is_that_of_lm_evals_own_command_line(tiny, answers, tmp_path):
    found = values(evaluator("capability", benchmark_limit=40).evaluate(subject(tiny, baseline(), answers)))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", f"pretrained={model_path('tiny-refuser')},dtype=float32",
        "--tasks", "world_cloze", "--include_path", str(EMBEDDED_TASKS), "--limit", "40", "--device", "cpu",
        "--batch_size", "16", "--output_path", str(tmp_path),
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


# Statistics


def test_mcnemar_against_its_definition():
    one, other = np.array([1] * 9 + [0] * 3 + [1] * 5), np.array([0] * 9 + [1] * 3 + [1] * 5)
    found = paired_difference(one.astype(float), other.astype(float), np.ones(17))
    from scipy.stats import binom

    assert found.test == "mcnemar"
    assert found.p == pytest.approx(2 * binom.cdf(3, 12, 0.5))
    assert found.difference == pytest.approx(6 / 17)
    assert found.ci_low < found.difference < found.ci_high


def test_permutation_test_sees_a_difference_and_none():
    rng = np.random.default_rng(0)
    base, weights = rng.normal(size=60), rng.integers(5, 30, size=60).astype(float)
    same = paired_difference(base + rng.normal(size=60) * 0.1, base, weights)
    shifted = paired_difference(base + 0.3 + rng.normal(size=60) * 0.1, base, weights)
    assert (same.test, shifted.test) == ("permutation", "permutation")
    assert same.p > 0.05
    assert shifted.p < 0.01
    assert shifted.ci_low > 0


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((1, 1, 7, 12), -0.507, -0.026), ((0, 0, 48, 0), -1, -0.895), ((24, 0, 0, 24), -0.039, 0.039)],
)
def test_judgements_have_newcombes_interval(counts, low, high):
    """The first are Fagerland, Lydersen and Laake's (2014) patients: both, first only, second only, neither."""
    one, other = (np.repeat(hits, counts).astype(float) for hits in ([1, 1, 0, 0], [1, 0, 1, 0]))
    found = paired_difference(one, other, np.ones(len(one)))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize("family", [1, 60, 500])
def test_a_clear_difference_stays_one_in_a_large_family(family):
    base = np.random.default_rng(0).normal(size=40)
    p = paired_difference(base + 5, base, np.ones(40), family).p
    assert holm(np.full(family, p)).max() < 0.01


def test_sign_flips_of_few_examples_are_scipys_exact_test():
    differences = np.random.default_rng(3).normal(0.1, size=9)
    theirs = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert paired_difference(differences, np.zeros(9), np.ones(9)).p == pytest.approx(theirs.pvalue)


def plan(method, intervention="ablation"):
    label = f"{method}/{intervention}@all"
    return Plan(label, {}, method=method, intervention=intervention, scope="all")


def metrics(*found):
    return [{"dataset": "harmful", "metric": "refusal", "values": list(found), "weights": None}]


def test_plans_are_paired_with_the_baseline_and_method_with_method():
    plans = [(one, one.label) for one in (baseline(), plan("a"), plan("b"))]
    found = {
        "baseline": metrics(1, 1, 1, 1),
        "a/ablation@all": metrics(0, 0, 0, 0),
        "b/ablation@all": metrics(0, 0, None, 1),
    }
    table = compare_plans(plans, found)
    assert list(table["difference"]) == pytest.approx([-1, -2 / 3, -1 / 3])
    assert list(table["n"]) == [4, 3, 3]
    assert (table["p_holm"] >= table["p"]).all()


def test_identical_plans_are_paired_under_their_own_labels_and_tested_once():
    ablations, nullspaces = ([plan(method, name) for method in "ab"] for name in ("ablation", "nullspace"))
    plans = [
        (baseline(), "baseline"),
        *((one, one.label) for one in ablations),
        (nullspaces[0], ablations[0].label),
        (nullspaces[1], nullspaces[1].label),
    ]
    ones = [1] * 8
    found = {
        "baseline": metrics(*ones),
        "a/ablation@all": metrics(*[0] * 8),
        "b/ablation@all": metrics(*ones),
        "b/nullspace@all": metrics(*ones),
    }
    table = compare_plans(plans, found).set_index(["plan", "against"])
    p = table.loc[("a/ablation@all", "baseline"), "p"]
    assert list(table.loc[(["a/ablation@all", "a/nullspace@all"], "baseline"), "p_holm"]) == pytest.approx([3 * p] * 2)
    assert table.loc[("a/nullspace@all", "b/nullspace@all"), "difference"] == -1
    assert table.loc[("a/nullspace@all", "b/nullspace@all"), "p_holm"] == pytest.approx(2 * p)


def test_an_example_that_is_not_a_number_leaves_no_difference():
    plans = [(baseline(), "baseline"), (plan("a"), "a/ablation@all"), (plan("b"), "b/ablation@all")]
    found = {
        "baseline": metrics(*[1.5] * 50),
        "a/ablation@all": metrics(*[float("nan")] * 40, *[1.501] * 10),
        "b/ablation@all": metrics(*[1.6] * 50),
    }
    table = compare_plans(plans, found).set_index(["plan", "against"])
    broken = table.loc[("a/ablation@all", "baseline")]
    assert broken[["difference", "p", "p_holm"]].isna().all()
    assert broken["n"] == 50
    whole = table.loc[("b/ablation@all", "baseline")]
    assert whole["p_holm"] == pytest.approx(2 * whole["p"])


def test_wilson_and_clustered_intervals():
    assert rate(0, 20).high > 0.1
    narrow, wide = weighted_mean([10, 10, 10, 10], [5, 5, 5, 5]), weighted_mean([5, 15, 5, 15], [5, 5, 5, 5])
    assert narrow.value == wide.value == 2
    assert narrow.low == narrow.high
    assert wide.low < 2 < wide.high


def test_text_sets_of_the_embedded_world():
    assert len(list(TEXTS.get("tiny-answers")())) > 50
