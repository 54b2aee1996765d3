"""The summary: which columns it has, what they are called, and how it is printed."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from refusal_cmp.commands.show import print_summary
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import measure_of
from refusal_cmp.report.table import columns, summary
from refusal_cmp.run.contents import read_results
from refusal_cmp.run.directory import RunDir


def test_columns_leave_out_what_says_nothing_new():
    rows = [
        ("harmful", "refusal", 1.0), ("harmful:fraud", "refusal", 1.0), ("harmful", "non_finite", 0.0),
        ("harmless", "attack_success", 1.0), ("harmful", "attack_success", 0.0), ("text", "loss", 1.0),
        ("text", "perplexity", 2.7), ("other", "perplexity", 2.7), ("all", "magnitude_auroc:inlp", 0.9),
        ("quiz", "acc", float("nan")), ("quiz", "surprise", 3.0),
    ]  # fmt: skip
    found = columns(pd.DataFrame(rows, columns=["dataset", "metric", "value"]))
    assert [(one.dataset, one.metric) for one in found] == [
        ("harmful", "refusal"), ("harmful", "attack_success"), ("text", "loss"), ("other", "perplexity"),
        ("quiz", "surprise"),
    ]  # fmt: skip


def test_the_summary_is_the_results_and_parts_of_sets_do_not_count_twice(finished):
    results = read_results(finished.run)
    labels = [row["label"] for row in finished.run.read_json("infer/plans.json")]
    table = summary(results).set_index("plan")
    assert list(table.index) == labels
    for row in results[results["metric"] == "refusal"].itertuples():
        if ":" not in row.dataset:
            assert table.loc[row.plan, f"{row.dataset}_refusal"] == row.value
    whole = results[
        (results["metric"] == "degenerate") & (results["plan"] == labels[-1]) & ~results["dataset"].str.contains(":")
    ]
    assert table.loc[labels[-1], "degenerate"] == pytest.approx((whole["value"] * whole["n"]).sum() / whole["n"].sum())


def test_no_interval_goes_beyond_what_a_metric_can_be(data):
    shares = data.results[data.results["metric"].map(lambda name: measure_of(name).unit == "share")]
    assert shares["value"].between(0, 1).all()
    assert shares["ci_low"].dropna().between(0, 1).all()
    assert shares["ci_high"].dropna().between(0, 1).all()
    assert (data.results[data.results["metric"] == "compression"]["ci_high"] > 1).any()


def test_results_of_an_older_version_are_asked_for_again(finished, tmp_path):
    run = RunDir(tmp_path)
    run.write_table("results.csv", read_results(finished.run).drop(columns="plan"))
    with pytest.raises(RefusalCmpError, match="run `refusal-cmp evaluate --alias [^`]*` again"):
        read_results(run)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_printed_summary_shows_the_columns_that_fit(finished, width):
    console = Console(width=width, file=io.StringIO())
    print_summary(console, finished.run)
    *lines, last = console.file.getvalue().splitlines()
    head = next(line for line in lines if line.strip().startswith("plan"))
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert "harmful" in head
    assert (" general" in head) == (width > 60)
    assert last.endswith("results.csv")
