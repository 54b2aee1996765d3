"""A run whose filters keep nothing says so wherever its choice is shown."""

from __future__ import annotations

import pytest

from refusal_cmp.commands.compare import compare_runs
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures.scores import draw
from refusal_cmp.report.latex import tables
from refusal_cmp.report.page import render
from refusal_cmp.run.contents import SELECTION, read_selections
from refusal_cmp.stages import run_stages

from support.finished_run import session_on

TIGHT = {"methods": "diff-in-means", "kl_threshold": 1e-5, "interventions": "ablation", "scope": "single",
         "evals": "refusal"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    session = session_on(tmp_path_factory.mktemp("runs") / "tight", tiny, **TIGHT)
    session.said = []
    session.say = session.said.append
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    return session


def test_the_warning_says_what_dropped_how_many_and_what_would_keep_the_choice(run, tiny, tmp_path):
    (selection,) = read_selections(run)
    assert selection.kl_budget > 1e-5
    (warning,) = [text for text in run.said if text.startswith("Warning: diff-in-means: the filters keep none")]
    for name, count in selection.dropped.items():
        assert f"{name} {count}" in warning
    option, value = selection.options.split()
    assert f"with {option} {value} they would keep {selection.selected}, which is taken" in warning
    wider = session_on(tmp_path / "wider", tiny, **TIGHT | {option.strip("-").replace("-", "_"): value})
    run_stages(wider, ("extract", "select"))
    (kept,) = read_selections(wider)
    assert (kept.selected, kept.fallback) == (selection.selected, False)


def test_a_fallback_among_part_of_the_components_says_that_others_were_not_scored(run, tiny, tmp_path):
    part = session_on(tmp_path / "part", tiny, **TIGHT, positions="-1", layers="2:8:2")
    part.said = []
    part.say = part.said.append
    run_stages(part, ("extract", "select"))
    (whole,), (some,) = read_selections(run), read_selections(part)
    (warning,) = [text for text in part.said if "the filters keep none" in text]
    n = len(whole.ranking) - len(some.ranking)
    assert f"Other components ({n}) were not scored, and may meet the filters (--layers, --positions)." in warning
    assert not any("were not scored" in text for text in run.said), "of all that could be chosen none was left out"


def test_every_reader_of_the_choice_sees_how_far_the_filters_were_relaxed(run):
    (selection,), data = read_selections(run), read_run(run)
    note = f"fallback: KL budget {selection.kl_budget:g} nats"
    (entry,) = [one for one in compare_runs(run.run.path, run.run.path).entries if one.part == "selection"]
    assert entry.a == f"{selection.selected}, {note}"
    assert note in render(data, [], {})
    assert note in tables(data)["selection"]
    assert note in draw(data)[0].says


def test_a_selection_of_an_older_version_is_refused_with_what_to_do(run, monkeypatch):
    rows = run.run.read_json(SELECTION)
    for row in rows["methods"]:
        del row["kl_budget"]
    monkeypatch.setattr(run.run, "read_json", lambda name: rows)
    with pytest.raises(
        RefusalCmpError, match="is of an older version, without kl_budget; run `refusal-cmp select --alias"
    ):
        read_selections(run)
