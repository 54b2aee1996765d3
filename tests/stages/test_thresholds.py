"""Thresholds choose by scores that are kept: another one ranks again at once, and says what that outdates."""

from __future__ import annotations

import io
import re

import pytest

from refusal_cmp.commands.what_if import print_what_if, what_if
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import read_run
from refusal_cmp.report.wording import counted
from refusal_cmp.run.contents import RANKING_RULES, read_choices, read_scores
from refusal_cmp.run.directory import RunDir
from refusal_cmp.selection.scoring import Scorer
from refusal_cmp.subspace import Component
from refusal_cmp.terminal import Terminal

from support.pipeline import start

GRID = {"methods": "diff-in-means", "interventions": "ablation", "scope": "single", "evals": "refusal"}
LEARNED = ("extract", "select")


@pytest.fixture(scope="module")
def selected(tiny, tmp_path_factory):
    """A run that has chosen, and no more."""
    path = tmp_path_factory.mktemp("runs") / "selected"
    session, _ = start(path, tiny, LEARNED, **GRID)
    return session


@pytest.fixture
def unscored(monkeypatch):
    """The model is not asked: no score is made."""

    def refuse(*_, **__):
        raise AssertionError("something was scored")

    for name in ("score", "baseline", "local_kl"):
        monkeypatch.setattr(Scorer, name, refuse)


def test_pruned_layers_are_not_scored(selected):
    keys, _ = read_scores(selected, "diff-in-means", "local")
    limit = int(0.8 * selected.model.n_layers)
    assert max(layer for _, layer, _ in keys) == limit - 1


@pytest.mark.parametrize(
    ("setting", "value"), [("kl_threshold", 0.3), ("induce_threshold", -1.0), ("prune_layers", 0.6),
                           ("rank_key", "accuracy-then-bypass"), ("induce_aggregate", "median")],
)  # fmt: skip
def test_another_threshold_ranks_the_stored_scores_again(selected, tiny, unscored, setting, value, tmp_path):
    before = (selected.run.path / "select/diff-in-means.local.safetensors").read_bytes()
    again, said = start(selected.run.path, tiny, ("select",), **GRID | {setting: value})
    assert (selected.run.path / "select/diff-in-means.local.safetensors").read_bytes() == before
    name = setting.replace("_", "-")
    assert any(text.startswith(f"{name} was ") and f"and is now {value}: the stored scores" in text for text in said)
    assert again.run.manifest["config"][setting] == value
    start(selected.run.path, tiny, ("select",), **GRID)  # and back


def test_a_choice_by_another_threshold_is_that_of_a_run_of_its_own(selected, tiny, tmp_path):
    given = GRID | {"prune_layers": 0.5, "kl_threshold": 0.02}
    again, _ = start(selected.run.path, tiny, ("select",), **given)
    fresh, _ = start(tmp_path / "fresh", tiny, LEARNED, **given)
    assert read_choices(again.run)["diff-in-means"].selected == read_choices(fresh.run)["diff-in-means"].selected
    start(selected.run.path, tiny, ("select",), **GRID)


def test_more_layers_are_scored_where_fewer_are_pruned_and_only_those(selected, tiny, monkeypatch):
    scored = []
    score = Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda self, field, *a, **k: scored.extend(field) or score(self, field, *a, **k)
    )
    start(selected.run.path, tiny, ("select",), **GRID | {"prune_layers": 1.0})
    limit = int(0.8 * selected.model.n_layers)
    assert scored
    assert all(component.layer >= limit for component in scored)


def test_finished_completions_are_not_replaced_unasked_and_select_says_what_is_outdated(tiny, tmp_path):
    session, _ = start(tmp_path / "run", tiny, **GRID)
    chosen = read_choices(session.run)["diff-in-means"].selected
    other = GRID | {"prune_layers": chosen.layer / session.model.n_layers}
    with pytest.raises(RefusalCmpError, match="which changes what is chosen with diff-in-means, and .* finished work"):
        start(session.run.path, tiny, **other)
    assert read_choices(session.run)["diff-in-means"].selected == chosen, "nothing was written"
    again, said = start(session.run.path, tiny, ("select",), **other)
    assert "The choice is another with diff-in-means; infer, evaluate, report have to be run again." in said
    assert read_choices(again.run)["diff-in-means"].selected.layer < chosen.layer
    with pytest.raises(RefusalCmpError, match="infer of .* is not finished \\(outdated\\)"):
        start(session.run.path, tiny, ("evaluate",), **other)
    outdated = "infer is outdated, evaluate is outdated\\); run `refusal-cmp infer --alias [^`]*` and the stages after"
    with pytest.raises(RefusalCmpError, match=outdated):
        read_run(again)
    start(session.run.path, tiny, ("infer", "evaluate", "report"), **other)


def test_a_threshold_that_changes_no_choice_leaves_finished_work_as_it_is(tiny, tmp_path):
    session, _ = start(tmp_path / "run", tiny, **GRID)
    before = (session.run.path / "results.csv").read_bytes()
    _, said = start(session.run.path, tiny, **GRID | {"kl_threshold": 0.1001})
    assert "What is chosen stays the same." in said
    assert (session.run.path / "results.csv").read_bytes() == before


def test_directions_within_another_budget_are_those_of_a_run_of_its_own(tiny, tmp_path):
    given = {**GRID, "methods": "inlp"}
    one, _ = start(tmp_path / "one", tiny, LEARNED, **given, kl_threshold=0.05)
    fresh, _ = start(tmp_path / "other", tiny, LEARNED, **given, kl_threshold=0.3)
    one, _ = start(one.run.path, tiny, ("select",), **given, kl_threshold=0.3)
    assert one.run.read_table("select/scores.csv").equals(fresh.run.read_table("select/scores.csv"))
    one, _ = start(one.run.path, tiny, ("select",), **given, kl_threshold=0.05)
    again, _ = start(tmp_path / "again", tiny, LEARNED, **given, kl_threshold=0.05)
    assert one.run.read_table("select/scores.csv").equals(again.run.read_table("select/scores.csv"))


def test_more_directions_of_the_same_component_are_another_choice(tiny, tmp_path):
    given = {**GRID, "methods": "inlp", "pool": "all", "layers": "7", "positions": "-1"}
    found = {}
    for budget in (1e-6, 0.3):
        _, said = start(tmp_path / "run", tiny, ("select",) if found else LEARNED, **given, kl_threshold=budget)
        scores = RunDir(tmp_path / "run").read_table("select/scores.csv")
        found[budget] = int(scores[scores["selected"]]["k"].iloc[0])
    assert found[1e-6] < found[0.3]
    assert "The choice is another with inlp." in said


def test_a_budget_for_other_directions_leaves_the_choice_open_and_no_other_threshold_does(tiny, tmp_path):
    """What is said of INLP under another KL threshold is what comes of it, or that nobody knows."""
    given = {**GRID, "methods": "inlp"}
    session, _ = start(tmp_path / "run", tiny, LEARNED, **given, kl_threshold=0.05)
    found = {one.setting: one for one in what_if(session)}
    ks = {(one.position, one.layer): one.k for one in session.run.read_table("select/scores.csv").itertuples()}
    for setting in ("--kl-threshold 0.0125", "--kl-threshold 0.5"):
        other, _ = start(tmp_path / setting, tiny, LEARNED, **given, kl_threshold=float(setting.split()[1]))
        table = other.run.read_table("select/scores.csv")
        moved = sum(ks[one.position, one.layer] != one.k for one in table.itertuples())
        assert found[setting].others == moved > 0
    assert {one.others for one in found.values() if not one.setting.startswith("--kl-threshold")} == {0}
    console = Terminal(file=io.StringIO(), width=200)
    print_what_if(console, session)
    n = counted(found["--kl-threshold 0.5"].others, "component")
    assert f"open: other directions at {n}" in console.file.getvalue()
    assert "are not scored yet" in " ".join(console.file.getvalue().split())


def test_what_other_thresholds_would_choose_is_what_they_choose(selected, tiny, tmp_path):
    selected, _ = start(selected.run.path, tiny, ("select",), **GRID)
    found = {one.setting: one for one in what_if(selected)}
    assert found[""].selection == read_choices(selected.run)["diff-in-means"]
    for setting in ("--kl-threshold 0.025", "--prune-layers 0.5", "--induce-threshold 2"):
        name, value = setting.removeprefix("--").replace("-", "_").split()
        other, _ = start(selected.run.path, tiny, ("select",), **GRID | {name: value})
        chosen, expected = found[setting].selection, read_choices(other.run)["diff-in-means"]
        assert (chosen.selected, chosen.kept, chosen.note) == (expected.selected, expected.kept, expected.note), setting
    selected, _ = start(selected.run.path, tiny, ("select",), **GRID)
    console = Terminal(file=io.StringIO(), width=200)
    print_what_if(console, selected)
    at = found[""].selection.selected
    assert isinstance(at, Component)
    assert re.search(rf"^these settings +\({at.position}, {at.layer}\): ", console.file.getvalue(), re.MULTILINE)
    assert "the same: " in console.file.getvalue()


def test_other_rules_are_scored_when_asked_for_kept_and_rank_at_once(selected, tiny, monkeypatch):
    exact = (selected.run.path / "select/diff-in-means.local.safetensors").read_bytes()
    asked = GRID | {"ranking_rules": "cosmic,attribution"}
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", None)  # what is exact is there
        session, _ = start(selected.run.path, tiny, ("select",), **asked)
    found = session.run.read_json(RANKING_RULES)
    assert [(one["rule"], one["reach"]) for one in found] == [("cosmic", "local"), ("attribution", "local")]
    assert all(set(one["against"]) == {"local"} and one["exact_passes"] > 0 for one in found)
    assert {
        "select/diff-in-means.cosmic-local.safetensors",
        "select/diff-in-means.attribution-local.safetensors",
    } == set(session.run.manifest["seconds"]), "of exact scores, which were made before, nobody knows"

    monkeypatch.setattr(Scorer, "passes", None)
    monkeypatch.setattr("refusal_cmp.selection.attribution.over_slopes", None)
    for key, best in (("attribution", "idxmin"), ("cosmic", "idxmax")):
        session, said = start(selected.run.path, tiny, ("select",), **asked | {"rank_key": key})
        assert any(f"is now {key}: the stored scores are ranked again." in text for text in said)
        table = session.run.read_table("select/scores.csv")
        kept = table[table["kept"]]
        assert table["selected"].idxmax() == getattr(kept[f"local_{key}"], best)()
        assert {one.setting for one in what_if(session)} > {"", "--kl-threshold 0.05"}, "from the same columns"
    start(selected.run.path, tiny, ("select",), **GRID)
    assert (selected.run.path / "select/diff-in-means.local.safetensors").read_bytes() == exact


def test_cosmic_that_was_stopped_goes_on(selected, tiny, monkeypatch):
    at = "select/diff-in-means.cosmic-local.safetensors"
    asked = GRID | {"ranking_rules": "cosmic"}
    start(selected.run.path, tiny, ("select",), **asked)
    whole = (selected.run.path / at).read_bytes()
    (selected.run.path / at).unlink()
    passes, made = Scorer.passes, []

    def stops(self, start, candidates, *rest):
        made.append(tuple(candidates))
        if len(set(made)) > 2:
            raise KeyboardInterrupt
        yield from passes(self, start, candidates, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "passes", stops)
        with pytest.raises(KeyboardInterrupt):
            start(selected.run.path, tiny, ("select",), **asked)
    done = set(made[:-1])
    made.clear()
    monkeypatch.setattr(Scorer, "passes", lambda self, *rest: made.append(tuple(rest[1])) or passes(self, *rest))
    session, _ = start(selected.run.path, tiny, ("select",), **asked)
    assert done
    assert not done & set(made)
    assert (selected.run.path / at).read_bytes() == whole
    assert at not in session.run.manifest["seconds"], "it was not made in one go"
