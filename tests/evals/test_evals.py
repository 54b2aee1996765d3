"""The evaluators on the embedded model: against lm-eval's own command line, plain computations, and by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.data import TEXTS, Document
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluator, Subject, configured
from refusal_cmp.evals.capability import EMBEDDED_TASKS, Spec, _metrics, drawn, first, load_task
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
        shares = [found[dataset, name] for name in ("refusal", "compliance", "degenerate", "unfinished")]
        assert sum(shares) == pytest.approx(1)
        halves = [found[f"{dataset}:{name}", "refusal"] for name in ("odd", "even")]
        assert np.mean(halves) == pytest.approx(found[dataset, "refusal"])
    assert found["harmful", "refusal"] == 1
    assert found["harmful", "attack_success"] == 0


def test_a_collapsed_completion_is_no_compliance_although_the_published_measure_counts_it():
    collapsed = {"harmful": [Answer("How?", "", "To" * 60, 60, "length")]}
    found = values(evaluator("refusal").evaluate(subject(None, baseline(), collapsed)))
    assert found["harmful", "attack_success"] == 1
    assert found["harmful", "compliance"] == 0
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
        (task,) = load_task(Spec.parse(spec))["tasks"].values()
        return task.get_config("num_fewshot")

    assert (shots("world_cloze"), shots("world_cloze@2")) == (5, 2)
    assert shots("world_statements@5") == 0  # fixed by the task
    with pytest.raises(RefusalCmpError, match="Unknown task of lm-eval 'world_close'.*'world_cloze'"):
        load_task(Spec("world_close", None, None))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mmlu", ("mmlu", None, 7)),
        ("mmlu@0", ("mmlu", 0, 7)),
        ("mmlu@5/500", ("mmlu", 5, 500)),
        ("arc_challenge/all", ("arc_challenge", None, None)),
    ],
)
def test_a_task_names_its_shots_and_its_questions(text, spec):
    assert Spec.parse(text, 7) == spec


@pytest.mark.parametrize("text", ["", "@5", "mmlu@", "mmlu/0", "mmlu/-1", "mmlu@5/some", "mmlu@5/500/1"])
def test_a_task_that_is_not_understood_is_refused(text):
    with pytest.raises(RefusalCmpError, match="NAME@SHOTS/LIMIT"):
        Spec.parse(text)


def test_first_questions_are_shared_out_and_drawn_ones_are_those_of_a_shuffle():
    sizes = {"a": 30, "b": 2, "c": 68}
    assert first(sizes, 7) == {"a": [0, 1, 2], "b": [0, 1], "c": [0, 1]}
    whole = Dataset.from_list([{"task": name, "row": row} for name, size in sizes.items() for row in range(size)])
    theirs = whole.shuffle(seed=42).select(range(20))
    expected = {name: sorted(one["row"] for one in theirs if one["task"] == name) for name in sizes}
    assert drawn(sizes, 20, 42) == {name: rows or [0] for name, rows in expected.items()}
    assert sum(map(len, drawn({"a": 300}, 50, 1).values())) == 50


def test_a_limit_of_its_own_wins_and_all_is_all(tiny, answers):
    asked = evaluator("capability", tasks="world_cloze/9,world_statements", benchmark_limit=4)
    found = {one.dataset: one.estimate.n for one in asked.evaluate(subject(tiny, baseline(), answers)).metrics}
    assert found == {"world_cloze": 9, "world_statements": 4}


SUBJECTS = ("anatomy", "law", "virology")
CONFIGS = """---
configs:
- config_name: {name}
  data_files:
{splits}---
"""


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """Stand-ins for MMLU and ARC-Challenge, in the layout of their repositories on the hub."""
    monkeypatch.setenv("REFUSAL_CMP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def rows(split, n, **more):
        return [
            {"question": f" {split} {i}? ", "i": i, **{key: make(i) for key, make in more.items()}} for i in range(n)
        ]

    options = [f"option {letter}" for letter in "wxyz"]
    of_mmlu = {"choices": lambda _: options, "answer": lambda i: i % 4, "subject": lambda i: SUBJECTS[i % 3]}
    of_arc = {
        "choices": lambda i: {
            "text": options[: 3 if i == 2 else 4],
            "label": list("1234" if i % 2 else "ABCD")[: 3 if i == 2 else 4],
        },
        "answerKey": lambda i: "1" if i % 2 else "C",
    }
    for repository, config, sizes, columns in (
        ("cais/mmlu", "all", {"validation": 24, "test": 90}, of_mmlu),
        ("allenai/ai2_arc", "ARC-Challenge", {"train": 9, "test": 12}, of_arc),
    ):
        folder = tmp_path / "data" / repository
        folder.mkdir(parents=True)
        for split, n in sizes.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, n, **columns)))
        splits = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in sizes)
        (folder / "README.md").write_text(CONFIGS.format(name=config, splits=splits))


def published_question(row, letter=""):
    """As the published loop wrote a question, and its answer where it is a shot."""
    choices = row["choices"]["text"] if isinstance(row["choices"], dict) else row["choices"]
    options = "\n".join(f"{name}. {choice}" for name, choice in zip("ABCD", choices, strict=True))
    return f"Question: {row['question'].strip()}\n{options}\nAnswer:" + (f" {letter}" if letter else "")


def contexts(spec):
    """What a task asks, by question, and its answer."""
    (task,) = load_task(Spec.parse(spec))["tasks"].values()
    shots = task.get_config("num_fewshot")
    return [(row, task.fewshot_context(row, shots), task.doc_to_target(row)) for row in task.eval_docs]


def test_mmlu_is_asked_as_published(benchmarks):
    """With the first five validation questions of the question's own subject as shots."""
    found = contexts("published_mmlu")
    assert len(found) == 90
    for row, context, answer in found:
        shots = [i for i in range(24) if SUBJECTS[i % 3] == row["subject"]][:5]
        asked = [published_question({**row, "question": f"validation {i}?"}, "ABCD"[i % 4]) for i in shots]
        assert context == "\n\n".join([*asked, published_question(row)])
        assert answer == row["i"] % 4


def test_arc_is_asked_by_letter_and_only_where_there_are_four_options(benchmarks):
    found = contexts("published_arc_challenge")
    assert [row["i"] for row, _, _ in found] == [i for i in range(12) if i != 2]
    shots = [(i, "A" if i % 2 else "C") for i in range(9) if i != 2][:5]
    for row, context, answer in found:
        asked = [published_question({**row, "question": f"train {i}?"}, letter) for i, letter in shots]
        assert context == "\n\n".join([*asked, published_question(row)])
        assert answer == (0 if row["i"] % 2 else 2)


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


def test_losses_by_number_of_texts_see_those_texts_whole(tiny, answers):
    judge = evaluator("perplexity", loss_tokens=None, loss_texts=5, document_tokens=4)
    found = judge.evaluate(subject(tiny, baseline(), answers)).examples
    answered = list(TEXTS.get("tiny-answers")())[:5]
    plain = list(TEXTS.get("tiny-general")())[:5]
    whole = [encode(tiny, document).n for document in answered]
    assert max(whole) > 4, "an answer is not cut at the tokens of a plain text"
    assert [row["n_tokens"] for row in found["tiny-answers"]] == whole
    assert [row["n_tokens"] for row in found["tiny-general"]] == [encode(tiny, document, 4).n for document in plain]
    assert len(found["on-distribution"]) == 5


def test_losses_need_an_end():
    with pytest.raises(RefusalCmpError, match="loss-tokens or on loss-texts"):
        load_config(None, {"loss_tokens": None})


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
