"""`refusal-cmp compare`: it finds every difference there is, names it, and finds none where there is none."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_cmp.cli import main
from refusal_cmp.commands.compare import compare_runs, distance
from refusal_cmp.config import load_config
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

SMALL = {
    "methods": "diff-in-means",
    "interventions": "ablation,nullspace,clamp",
    "scope": "all",
    "eval_datasets": "harmful,harmless",
    "n_train": 20,
    "n_val": 2,
    "n_test": 3,
    "max_new_tokens": 8,
    "induce_multipliers": "1",
    "evals": "refusal",
}
ANSWERS = "infer/diff-in-means_clamp~-1@all/harmful.jsonl"


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "original"
    run_stages(Session(load_config(None, SMALL), RunDir(path), loaded=tiny), ("extract", "select", "infer", "evaluate"))
    return path


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copies/original")


@pytest.fixture
def refusal_cmp(monkeypatch, capsys):
    """A command in this process: exit code, and what it prints on one line."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["refusal-cmp", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, " ".join((captured.out + captured.err).split())

    return run


def rewrite(path, name, content):
    """As if the run had come to something else."""
    run = RunDir(path)
    write = {".csv": run.write_table, ".jsonl": run.write_lines, ".json": run.write_json}
    write[Path(name).suffix](name, content)
    run.save()


def change_value(run, by):
    """Move the baseline's refusal on harmful prompts."""
    results = pd.read_csv(run / "results.csv")
    there = results.query("method == 'baseline' and dataset == 'harmful' and metric == 'refusal'").index
    results.loc[there, "value"] += by
    rewrite(run, "results.csv", results)


def test_a_copy_agrees_in_everything(original, copy, refusal_cmp):
    diff = compare_runs(original, copy)
    assert {entry.outcome for entry in diff.entries} == {"equal"}
    assert not diff.made
    counts = {part: sum(entry.part == part for entry in diff.entries) for part in ("metrics", "completions")}
    files = list(original.glob("infer/*/*.jsonl"))
    assert counts == {"metrics": len(pd.read_csv(original / "results.csv")), "completions": len(files)}
    assert refusal_cmp("compare", original, copy) == (0, refusal_cmp("compare", copy, original)[1])


@pytest.mark.parametrize(("by", "tolerance", "code"), [(1e-9, 1e-6, 0), (0.1, 0.2, 0), (0.1, 0.05, 1), (-0.1, 0.05, 1)])
def test_a_metric_beyond_the_tolerance_is_a_difference(original, copy, refusal_cmp, by, tolerance, code):
    change_value(copy, by)
    found, shown = refusal_cmp("compare", original, copy, "--tolerance", tolerance)
    assert found == code
    assert ("baseline · harmful · refusal" in shown) == bool(code)


def test_a_number_that_is_none_is_beyond_any_tolerance(original, copy, refusal_cmp):
    change_value(copy, math.nan)
    assert refusal_cmp("compare", original, copy, "--tolerance", "1e9")[0] == 1
    assert refusal_cmp("compare", copy, copy)[0] == 0


def test_a_completion_is_shown_from_where_it_parts(original, copy, refusal_cmp):
    rows = [json.loads(line) for line in (copy / ANSWERS).read_text().splitlines()]
    rows[1]["completion"] += " and [bold]more"
    rewrite(copy, ANSWERS, rows)
    code, shown = refusal_cmp("compare", original, copy)
    assert code == 1
    assert "· harmful · 1 of" in shown
    assert "and [bold]more" in shown
    assert refusal_cmp("compare", original, copy, "--completions-tolerance", "0.34")[0] == 0
    assert refusal_cmp("compare", original, copy, "--completions_tolerance", "0.33")[0] == 1


def test_another_component_is_a_difference(original, copy, refusal_cmp):
    selection = json.loads((copy / "select/selection.json").read_text())
    selection["methods"][0]["selected"] = [-4, 1]
    rewrite(copy, "select/selection.json", selection)
    code, shown = refusal_cmp("compare", original, copy, "--tolerance", "100")
    assert code == 1
    assert "(-4, 1)" in shown


def test_what_one_run_lacks_is_a_difference_whatever_the_tolerance(original, copy, refusal_cmp):
    label = "diff-in-means/clamp:1@all"
    plans = [row for row in json.loads((copy / "infer/plans.json").read_text()) if row["label"] != label]
    rewrite(copy, "infer/plans.json", plans)
    results = pd.read_csv(copy / "results.csv")
    kept = results.query("not (intervention == 'clamp' and strength == 1)")
    rewrite(copy, "results.csv", kept)
    generous = ["--tolerance", "1e9", "--completions-tolerance", "1"]
    code, shown = refusal_cmp("compare", original, copy, *generous)
    assert code == 1
    assert f"only in A {label} metrics: {len(results) - len(kept)}, completions: 2" in shown
    assert f"only in B {label}" in refusal_cmp("compare", copy, original, *generous)[1]


def test_details_are_limited_and_the_rest_is_counted(original, copy, refusal_cmp):
    results = pd.read_csv(copy / "results.csv").assign(value=2.0)
    rewrite(copy, "results.csv", results)
    shown = refusal_cmp("compare", original, copy, "--details", "3")[1]
    assert f"… and {len(results) - 3} more" in shown


def test_another_setting_is_named_and_is_no_difference(original, copy, refusal_cmp):
    run = RunDir(copy)
    run.manifest["config"] |= {"inlp_c": 0.5, "batch_size": 3, "methods": ["inlp"], "given": ["d.safetensors"]}
    run.manifest["versions"] |= {"torch": "2.0"}
    run.save()
    code, shown = refusal_cmp("compare", original, copy)
    assert code == 0
    assert "made with another inlp-c: 0.1 → 0.5" in shown
    assert "made with other methods: diff-in-means → inlp" in shown
    assert "made with other given directions: none → d.safetensors" in shown
    assert "→ 2.0" in shown
    assert "batch" not in shown


def test_folders_are_compared_run_by_run(original, copy, refusal_cmp):
    both = original.parent, copy.parent
    assert refusal_cmp("compare", "--all", *both)[0] == 0
    shutil.copytree(copy, copy.parent / "second")
    code, shown = refusal_cmp("compare", "--all", *both)
    assert code == 1
    assert "only in B second" in shown


def test_results_of_other_choices_are_not_compared(original, copy, refusal_cmp):
    run = RunDir(copy)
    run.outdate(["evaluate"])
    run.save()
    code, said = refusal_cmp("compare", original, copy)
    assert code == 2
    assert "of different choices or settings (evaluate is outdated); run `refusal-cmp evaluate --alias" in said


def test_a_mistake_is_one_sentence_and_exit_code_2(original, copy, refusal_cmp, tmp_path):
    for args, says in (
        ([original, tmp_path], f"{tmp_path} is not a run directory"),
        ([original.parent, copy], "compare two folders of runs with --all"),
        (["--all", original, copy.parent], f"There is no run directory in {original}"),
    ):
        code, shown = refusal_cmp("compare", *args)
        assert (code, says in shown) == (2, True), shown
    for path, stage in ((copy / ANSWERS).parent, "infer"), (copy / "results.csv", "evaluate"):
        path.rename(tmp_path / path.name)
        code, shown = refusal_cmp("compare", original, copy)
        assert code == 2
        assert f"run `refusal-cmp {stage} --alias" in shown


@given(st.floats(), st.floats())
def test_distance_is_symmetric_and_vanishes_only_between_equals(a, b):
    apart = distance(a, b)
    assert apart == distance(b, a)
    assert (apart == 0) == (a == b or (math.isnan(a) and math.isnan(b)))


def test_distance_is_absolute_up_to_one_and_relative_above():
    assert distance(0.25, 0.5) == 0.25
    assert distance(1e9, 1.25e9) == pytest.approx(0.2)
    assert distance(-1.0, 1.0) == 2
    assert distance(math.nan, 0.0) == distance(math.inf, 1.0) == distance(math.inf, -math.inf) == math.inf
