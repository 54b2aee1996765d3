"""The pipeline on the embedded model: what a run leaves, what is reused, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from refusal_cmp.commands.compare import compare_runs
from refusal_cmp.config import STAGES
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.plan import file_name
from refusal_cmp.run.contents import COLUMNS, read_results
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session

from support.attack import files
from support.pipeline import start


def refuses_to_work(session):
    raise AssertionError("finished work was done again")


@pytest.fixture(scope="module")
def with_gradients():
    """Of every module that a run calls, the guard's and the run's own: whether what gradients need was kept."""
    return set()


@pytest.fixture(scope="module")
def finished(tiny, with_gradients, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny-refuser"
    noted = register_module_forward_pre_hook(lambda *_: with_gradients.add(torch.is_grad_enabled()))
    try:
        start(path, tiny)
    finally:
        noted.remove()
    return path


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to write in."""
    return shutil.copytree(finished, tmp_path / "tiny-refuser")


@pytest.fixture
def generated(monkeypatch):
    """The labels of the plans whose completions of a test set are made, as they are finished."""
    labels, generate_many = [], HFEngine.generate_many

    def noted(self, jobs, max_new_tokens, progress, finished):
        def one_more(job):
            labels.append(job.plan.label)
            finished(job)

        there = [job for job in jobs if job.is_done]
        generate_many(self, jobs, max_new_tokens, progress, lambda job: (finished if job in there else one_more)(job))

    monkeypatch.setattr(HFEngine, "generate_many", noted)
    return labels


def test_a_run_leaves_what_the_contract_says(finished):
    for name in (
        "manifest.json",
        "extract/prompts.json",
        "extract/class_means.safetensors",
        "extract/diff-in-means.safetensors",
        "extract/inlp.safetensors",
        "select/scores.csv",
        "select/selection.json",
        "infer/baseline/harmful.jsonl",
        "infer/inlp_actadd~-1@all/harmless.jsonl",
        "results.csv",
    ):
        assert (finished / name).is_file(), name
    results = pd.read_csv(finished / "results.csv")
    assert list(results) == COLUMNS
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {stage: entry["state"] for stage, entry in manifest["stages"].items()} == dict.fromkeys(STAGES, "done")
    assert manifest["config"]["n_test"] == 4
    assert not [path for path in finished.rglob("*") if path.name.startswith(".")]


def test_no_pass_of_a_run_keeps_what_gradients_need(finished, with_gradients):
    assert with_gradients == {False}


def test_results_hold_the_full_grid_with_intervals(finished):
    results = pd.read_csv(finished / "results.csv")
    plans = results.drop_duplicates(["method", "intervention", "strength", "scope"])
    assert len(plans) == 1 + 2 * 2 * (1 + 1 + 2)
    whole = results[~results["dataset"].str.contains(":")]
    rates = whole[whole["metric"].isin(["refusal", "compliance", "degenerate", "unfinished"])]
    sums = rates.groupby(["method", "intervention", "strength", "scope", "dataset"], dropna=False)["value"].sum()
    assert sums.round(9).eq(1).all()
    estimates = results[results["metric"] != "language_threshold"]  # a line that was drawn, not an estimate
    assert estimates[["value", "ci_low", "ci_high", "n"]].notna().all().all()
    assert (estimates["ci_low"] <= estimates["value"]).all()
    assert (estimates["value"] <= estimates["ci_high"]).all()


def test_identical_plans_are_run_once_and_have_the_same_numbers(finished):
    assert not (finished / "infer" / file_name("diff-in-means/nullspace@all")).exists()
    results = pd.read_csv(finished / "results.csv").query("method == 'diff-in-means' and scope == 'all'")
    values = [results[results["intervention"] == name]["value"].tolist() for name in ("ablation", "nullspace")]
    assert values[0] == values[1]


def test_finished_work_is_not_done_again(copied, tiny, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.jsonl")}
    monkeypatch.setattr(HFEngine, "generate_many", refuses_to_work)
    monkeypatch.setattr("refusal_cmp.model.passes.Passes.over", refuses_to_work)
    monkeypatch.setattr("refusal_cmp.stages.select.Scorer", refuses_to_work)
    monkeypatch.setattr("refusal_cmp.stages.extract.collect", refuses_to_work)
    start(copied, tiny)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("changed", "was"),
    [
        ({"loss_tokens": 99}, "loss-tokens was 100"),
        ({"document_tokens": 9}, "document-tokens was 256"),
        ({"guard_min_words": 3}, "guard-min-words was 0"),
        ({"phrases": "extended"}, "phrases was 'published'"),
        ({"benchmark_draw": "random"}, "benchmark-draw was 'first'"),
        ({"contrast": "tiny-harmless"}, "was 'tiny-contrast'"),
        ({"eval_datasets": "harmful=tiny-contrast,harmless,contrast"}, "prompts was 'tiny-harmful'"),
    ],
)
def test_a_setting_that_would_change_finished_work_stops_the_run(copied, tiny, changed, was):
    before = files(copied)
    for stages in (STAGES, ("evaluate",)):
        with pytest.raises(RefusalCmpError, match=was):
            start(copied, tiny, stages=stages, **changed)
        assert files(copied) == before


def test_a_list_that_is_added_to_is_measured_again_and_that_is_said(copied, tiny):
    _, said = start(copied, tiny, stages=("evaluate",), texts="tiny-answers,tiny-general")
    assert "evaluate/baseline/perplexity.json is made again: texts has changed." in said


def test_texts_of_another_python_are_measured_again_and_that_is_said(copied, tiny, tmp_path, monkeypatch):
    def said(words: str) -> list[str]:
        """What a run says under a Python whose library consists of these words."""
        (tmp_path / "abc.py").write_text("".join(f'def f{n}():\n    """A {words}{n}."""\n' for n in range(2)))
        monkeypatch.setattr("refusal_cmp.data.python_docs.LIBRARY", tmp_path)
        return start(copied, tiny, stages=("evaluate",), texts="python-docs")[1]

    again = "evaluate/baseline/perplexity.json is made again: texts has changed."
    assert again in said("a " * 60)
    assert not any("made again" in line for line in said("a " * 60))
    assert again in said("the " * 60)


def test_a_changed_judge_redoes_only_itself_and_needs_no_generating_model(copied, tiny, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in copied.rglob("evaluate/*/*.json")}
    monkeypatch.setattr(Session, "model", property(refuses_to_work))
    start(copied, tiny, stages=("evaluate",), guard_min_words=3, evals="guard", force=True)
    start(copied, tiny, stages=("evaluate",), guard_min_words=3)
    redone = {file.name for file, then in before.items() if file.stat().st_mtime_ns != then}
    assert redone == {"guard.json"}


def test_a_setting_that_several_evaluators_read_names_them_all(copied, tiny):
    start(copied, tiny, stages=("evaluate",), phrases="extended", evals="refusal", force=True)
    with pytest.raises(RefusalCmpError, match="is now 'extended'; redo just that") as caught:
        start(copied, tiny, stages=("evaluate",), phrases="extended")
    left = caught.value.settings["evals"]
    assert left == "coherence,magnitude"
    start(copied, tiny, stages=("evaluate",), phrases="extended", evals=left, force=True)
    start(copied, tiny, stages=("evaluate",), phrases="extended")


def test_every_metric_of_every_plan_is_there(finished):
    results = pd.read_csv(finished / "results.csv")
    results = results.query("dataset != 'all' and not metric.str.contains('^magnitude|^landing')")
    plans = results.groupby(["method", "intervention", "strength", "scope"], dropna=False)
    metrics = [set(zip(rows["dataset"], rows["metric"], strict=True)) for _, rows in plans]
    assert all(one == metrics[0] for one in metrics)
    assert {"guard_unsafe", "loss", "acc", "kl", "unedited_loss", "refusal"} <= {metric for _, metric in metrics[0]}
    comparisons = pd.read_csv(finished / "comparisons.csv")
    assert set(comparisons["test"]) == {"mcnemar", "permutation"}
    assert (comparisons["p_holm"] >= comparisons["p"]).all()
    assert pd.read_csv(finished / "evaluate/agreement.csv").loc[0, ["first", "second"]].tolist() == ["guard", "refusal"]


def test_a_larger_grid_adds_only_what_is_new(copied, tiny, generated):
    _, said = start(copied, tiny, stages=("infer",), interventions="ablation,nullspace,actadd,clamp")
    edits = [row for row in json.loads((copied / "infer/plans.json").read_text()) if row["label"] != "baseline"]
    distinct = len({row["same_as"] for row in edits})
    assert any(f"{len(edits)} plans, {distinct} of them distinct" in one for one in said), "the baseline is no choice"
    assert generated
    assert all("/clamp" in label for label in generated)


def test_methods_in_another_order_are_the_same_plans(copied, tiny, generated):
    def plans():
        return {row["label"]: row for row in json.loads((copied / "infer/plans.json").read_text())}

    before = plans()
    start(copied, tiny, stages=("infer",), methods="inlp,diff-in-means")
    assert generated == []
    assert plans() == before


def test_a_method_that_select_has_not_scored_is_named(copied, tiny):
    message = r"select has not scored inlp\[k=full\] in .*, only diff-in-means, inlp; run `refusal-cmp select --alias"
    with pytest.raises(RefusalCmpError, match=message):
        start(copied, tiny, stages=("infer",), inlp_k="full,1")


def test_a_setting_that_an_older_version_did_not_know_counts_as_its_default(copied, tiny):
    run = RunDir(copied)
    stages = run.manifest["stages"]
    for stage in ("extract", "select", "infer"):
        for name in ("calibrate", "calibrate_tokens", "wrappers"):
            stages[stage]["settings"].pop(name, None)
    assert "calibrate_tokens" not in stages["infer"]["settings"]
    run.note(stages=stages)
    start(copied, tiny, stages=("evaluate", "report"))
    with pytest.raises(RefusalCmpError, match=r"The setting calibrate-tokens was 16 in infer of .*, is now 8"):
        start(copied, tiny, stages=("report",), calibrate_tokens=8)


def test_a_changed_setting_stops_and_leaves_the_run_as_it_was(copied, tiny):
    kept = (copied / "infer/baseline/harmful.jsonl").read_text()
    with pytest.raises(RefusalCmpError, match="max-new-tokens was 8 and is now 9"):
        start(copied, tiny, stages=("infer",), max_new_tokens=9)
    with pytest.raises(RefusalCmpError, match="seed was 42"):
        start(copied, tiny, stages=("infer",), seed=7)
    assert (copied / "infer/baseline/harmful.jsonl").read_text() == kept
    with pytest.raises(RefusalCmpError, match="max-new-tokens was 8 and is now 9"):  # after new prompts are written
        start(copied, tiny, stages=("infer",), max_new_tokens=9, eval_datasets="harmful,tiny-contrast")
    assert RunDir(copied).has("infer/prompts/tiny-contrast.json")
    assert RunDir(copied).manifest["config"]["max_new_tokens"] == 8


def test_a_stage_that_was_interrupted_is_run_again_before_others_build_on_it(copied, tiny):
    run = RunDir(copied)
    run.manifest["stages"]["select"]["state"] = "running"
    run.save()
    with pytest.raises(
        RefusalCmpError, match=r"select of .* is not finished \(running\); run `refusal-cmp select --alias"
    ):
        start(copied, tiny, stages=("infer",))
    start(copied, tiny, stages=("select",))
    start(copied, tiny, stages=("infer",))


def test_a_run_that_is_being_worked_on_is_left_alone(copied, tiny):
    message = "Another process is at work in"
    with RunDir(copied).locked(), pytest.raises(RefusalCmpError, match=message):
        start(copied, tiny, stages=("report",))


def test_force_does_it_all_again_and_gives_the_same_bytes(copied, tiny, generated):
    names = ["extract/inlp.safetensors", "select/scores.csv", "infer/baseline/harmful.jsonl", "results.csv"]
    before = {name: (copied / name).read_bytes() for name in names}
    start(copied, tiny, force=True)
    assert {name: (copied / name).read_bytes() for name in names} == before
    answers = list(copied.glob("infer/*/*.jsonl"))
    assert len(generated) == len(answers) > 0


def test_redoing_that_was_stopped_goes_on_and_what_is_typed_after_it_is_redone_from_the_start(
    copied, tiny, generated, monkeypatch
):
    before = {path: path.read_bytes() for path in copied.glob("infer/*/*.jsonl")}
    whole, record = len(list(copied.glob("infer/*/*.jsonl"))), RunDir.record

    def stopped(*args, **more):
        if len(generated) == 4:
            generated.pop()  # it is not recorded
            raise KeyboardInterrupt
        return record(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "record", stopped)
        with pytest.raises(KeyboardInterrupt):
            start(copied, tiny, stages=("infer",), force=True)
    assert len(generated) == 3
    _, said = start(copied, tiny, stages=("infer",), force=True)
    assert len(generated) == whole
    assert any(text.startswith("Redoing goes on where it was stopped: ") for text in said)
    assert {path: path.read_bytes() for path in copied.glob("infer/*/*.jsonl")} == before
    start(copied, tiny, stages=("infer",), force=True)
    assert len(generated) == 2 * whole


def test_redoing_that_was_stopped_is_forgotten_once_something_else_is_typed(copied, tiny, generated, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("refusal_cmp.stages.infer._report_endings", None)
        with pytest.raises(TypeError):
            start(copied, tiny, stages=("infer",), force=True)
    start(copied, tiny, stages=("infer",))
    generated.clear()
    start(copied, tiny, stages=("infer",), force=True)
    assert len(generated) == len(list(copied.glob("infer/*/*.jsonl")))


def test_a_stage_without_the_one_before_names_it(tiny, tmp_path):
    for stage, missing in (("select", "extract"), ("infer", "extract"), ("evaluate", "infer"), ("report", "evaluate")):
        with pytest.raises(RefusalCmpError, match=f"run `refusal-cmp {missing} --alias [^`]*` first"):
            start(tmp_path / "empty", tiny, stages=(stage,))


def test_a_damaged_artifact_is_named(copied, tiny):
    (copied / "extract/inlp.safetensors").write_bytes(b"short")
    with pytest.raises(RefusalCmpError, match="inlp.safetensors is not what extract wrote there"):
        start(copied, tiny, stages=("select",))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_class_means_that_are_gone_are_read_again_and_no_method_is_fitted(copied, tiny, damage, monkeypatch):
    means = copied / "extract/class_means.safetensors"
    before = means.read_bytes()
    damage(means)
    with pytest.raises(RefusalCmpError, match=r"class_means.safetensors (is missing|is not what extract wrote there)"):
        start(copied, tiny, stages=("select",), force=True)
    monkeypatch.setattr("refusal_cmp.methods.Extractor.fit_field", None)
    start(copied, tiny, stages=("extract",))
    assert means.read_bytes() == before


def test_loss_is_that_of_one_document_at_a_time(tiny):
    """Perplexity equals a plain per-document computation without padding; the batch size changes nothing."""
    import torch

    from refusal_cmp.data import TEXTS

    documents = [*TEXTS.get("tiny-answers")()[:5], *TEXTS.get("tiny-general")()[:5]]
    found = losses(tiny, [encode(tiny, document) for document in documents], batch_size=4)
    for document, loss in zip(documents, found, strict=True):
        prompt = [] if document.instruction is None else tiny.tokenize([document.instruction])[0]
        ids = prompt + tiny.tokenizer(document.text, add_special_tokens=document.instruction is None)["input_ids"]
        with torch.inference_mode():
            log_probs = tiny.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scored = range(max(1, len(prompt)), len(ids))
        assert loss.n_tokens == len(scored)
        assert loss.total == pytest.approx(-sum(float(log_probs[i - 1, ids[i]]) for i in scored), rel=1e-5)


def test_test_sets_of_any_name_come_to_the_page(tiny, tmp_path):
    """Names that tables take for nothing, for numbers, and for all test sets together."""
    names = ["null", "NA", "2024", "true", "all"]
    rows = [{"prompt": f"How do I paint {n} cows?", "type": kind} for n, kind in enumerate(["NA", "", "other", "1"])]
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    flags = {
        "methods": "diff-in-means",
        "interventions": "ablation",
        "scope": "single,single",
        "evals": "refusal,magnitude",
    }
    sets = [str(tmp_path / f"{name}.json") for name in names]
    session, _ = start(tmp_path / "run", tiny, **flags, eval_datasets=["harmful", *sets, "harmful"])
    assert session.config.test_sets == ("harmful", "null", "na", "2024", "true", "all-file")
    results = read_results(session.run)
    assert {*session.config.test_sets, "2024:NA", "2024:other", "2024:1", "all"} <= set(results["dataset"])
    assert not results.duplicated(["plan", "dataset", "metric"]).any()
    assert {f"{name}_refusal" for name in session.config.test_sets} <= set(session.run.read_table("report/summary.csv"))
    assert compare_runs(session.run.path, session.run.path).agrees
