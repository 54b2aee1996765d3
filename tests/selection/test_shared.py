"""One component for all methods."""

from __future__ import annotations

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import component_of
from refusal_cmp.report.data import read_run
from refusal_cmp.report.page import render
from refusal_cmp.run.contents import read_plans, read_selections
from refusal_cmp.selection import Selection
from refusal_cmp.selection.shared import shared
from refusal_cmp.subspace import Component

from support.pipeline import start

A, B, C = (Component(-1, layer) for layer in (2, 3, 4))


def selection(method, ranking, kept):
    return Selection(method, ranking[0], False, 0.1, {}, {}, tuple(ranking), tuple(kept), 0, 0, 9)


@pytest.mark.parametrize(
    ("rankings", "kept", "found"),
    [(([A, B, C], [C, B, A]), ([A, B, C], [A, B, C]), A), (([A, B, C], [B, C, A]), ([A, B, C], [A, B, C]), B),
     (([A, B, C], [B, C, A]), ([A, C], [C]), C), (([A, B, C], [B, C, A]), ([], []), B), (([A, B], [C]), ([A], [C]), A)],
)  # fmt: skip
def test_the_shared_component_is_kept_by_all_and_ranks_best_on_average(rankings, kept, found):
    assert shared([selection(str(i), *both) for i, both in enumerate(zip(rankings, kept, strict=True))]) == found


def test_methods_without_a_component_in_common_share_none():
    with pytest.raises(RefusalCmpError, match="No component has a subspace of each of a, b"):
        shared([selection("a", [A, B], []), selection("b", [C, Component(-2, 3)], [])])


@pytest.mark.parametrize(
    ("given", "found"),
    [("best", ["best"]), ("best,shared", ["best", "shared"]), ("-1,8", ["-1,8"]), ("shared,-2,10,-1,8,best",
     ["shared", "-2,10", "-1,8", "best"])],
)  # fmt: skip
def test_components_are_read_as_they_are_typed(given, found):
    assert list(load_config(None, {"component": given}).component) == found


@pytest.mark.parametrize("given", ["worst", "-1", "1,8", "-1,8,9", "-1,x"])
def test_what_is_no_component_is_one_sentence(given):
    with pytest.raises(RefusalCmpError, match="component"):
        load_config(None, {"component": given})


def test_methods_are_compared_each_at_its_best_and_all_at_one(tiny, tmp_path):
    given = {"methods": "diff-in-means,shuffled", "interventions": "ablation", "scope": "single", "evals": "refusal"}
    session, said = start(tmp_path / "run", tiny, **given, component="best,shared,-1,3")
    plans = [plan for plan, _ in read_plans(session) if plan.method]
    own = {one.method: one.selected for one in read_selections(session)}
    at = shared(read_selections(session))
    assert [component_of(plan) for plan in plans] == [None, None, "shared", "shared", "-1, 3", "-1, 3"]
    assert [plan.label for plan in plans[::2]] == [
        "diff-in-means/ablation@single", "diff-in-means/ablation[component=shared]@single",
        "diff-in-means/ablation[component=-1+3]@single"]  # fmt: skip
    places = [Component(plan.position, plan.layer) for plan in plans]
    assert places == [own["diff-in-means"], own["shuffled"], at, at, Component(-1, 3), Component(-1, 3)]
    assert f"Shared by all methods: the direction at {at}." in said
    page = render(read_run(session), [], {})
    assert "component=shared" in page
