"""What is scored can be chosen: some positions and layers alone are, and what was scored once is not scored again."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from refusal_cmp.commands.show import print_summary
from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import read_run
from refusal_cmp.run.contents import PAGE, PROMPTS, RANKINGS, SELECTION, read_choices, read_field, read_fields
from refusal_cmp.selection.among import among, chosen, said
from refusal_cmp.selection.scoring import Scorer
from refusal_cmp.stages import run_stages
from refusal_cmp.subspace import Component
from refusal_cmp.terminal import Terminal

from support.finished_run import SMALL, make_run, session_on

SOME = {"positions": "-1,-3", "layers": "5:10:2", "n_val": 4}
"""Two positions at layers 5, 7 and 9."""
PLACES = {Component(position, layer) for position in (-1, -3) for layer in (5, 7, 9)}


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("8:24", [*range(8, 24)]),
        ("8:24:5", [8, 13, 18, 23]),
        (":3", [0, 1, 2]),
        ("-2:", [28, 29]),
        ("::10", [0, 10, 20]),
        (":", [*range(30)]),
        ("0:30", [*range(30)]),
        ("7", [7]),
        ("-1", [29]),
        (9, [9]),
        ([12, 3, "3:5"], [3, 4, 12]),
        ("5,5,4:6", [4, 5]),
    ],
)
def test_layers_are_numbers_and_slices_as_in_python(given, layers):
    config = load_config(None, {"layers": given, "positions": "-2"})
    assert chosen(config, (-3, -2, -1), 30) == [Component(-2, layer) for layer in layers]
    assert load_config(None, json.loads(config.model_dump_json(include={"layers"}))).layers == config.layers


@pytest.mark.parametrize(
    ("component", "layers", "why"),
    [
        ("-1,99", None, "model has no such component: it has positions -3 to -1 and layers 0 to 29"),
        ("-4,2", None, "model has no such component: it has positions -3 to -1 and layers 0 to 29"),
        ("best,-1,7", "8:24", "positions and layers leave it out"),
    ],
)
def test_a_component_that_cannot_be_had_is_refused_before_any_work(component, layers, why):
    config = load_config(None, {"component": component, "layers": layers})
    with pytest.raises(RefusalCmpError, match=why):
        chosen(config, (-3, -2, -1), 30)


def test_all_components_are_chosen_where_nothing_is_said():
    assert len(chosen(load_config(None, {}), (-2, -1), 5)) == 10
    assert said(load_config(None, {})) == ""


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"layers": "30"}, "holds 30, which names what is no layer of the model's 30, 0 to 29; choose among these"),
        ({"layers": "-31"}, "what is no layer of the model's 30, 0 to 29"),
        ({"layers": "8:40"}, "holds 8:40, which names what is no layer"),
        ({"layers": "3,31:"}, "holds 31:, which names what is no layer"),
        ({"layers": "24:8"}, "holds 24:8, which names no layer of the model's 30"),
        ({"layers": "30:"}, "holds 30:, which names no layer of"),
        ({"positions": "-4"}, "holds -4, and the model has 3 post-instruction tokens, -3 to -1; choose among these"),
    ],
)
def test_what_the_model_does_not_have_is_refused(settings, complaint):
    with pytest.raises(RefusalCmpError, match=complaint) as caught:
        chosen(load_config(None, settings), (-3, -2, -1), 30)
    assert list(caught.value.settings) == list(settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"layers": ""}, "at least 1 item"),
        ({"layers": "8-24"}, "START:STOP:STEP as in 8:24:2"),
        ({"layers": "1:2:3:4"}, "START:STOP"),
        ({"layers": "8:24:0"}, "START:STOP"),
        ({"layers": "8:24:-1"}, "START:STOP"),
        ({"layers": [1.5]}, "START:STOP"),
        ({"layers": "first"}, "START:STOP"),
        ({"positions": "0"}, "less than 0"),
        ({"positions": "3"}, "less than 0"),
        ({"positions": []}, "at least 1 item"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(settings, complaint):
    with pytest.raises(RefusalCmpError, match=complaint):
        load_config(None, settings)


def test_what_the_model_does_not_have_is_refused_before_activations_are_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("refusal_cmp.stages.extract.collect", None)
    with pytest.raises(RefusalCmpError, match=f"no layer of the model's {tiny.n_layers}"):
        make_run(tmp_path / "run", tiny, "extract", layers="99")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    few = {"interventions": "ablation", "scope": "single", "eval_datasets": "harmful", "evals": "refusal"}
    path = tmp_path_factory.mktemp("runs") / "some"
    return make_run(path, tiny, "report", compare_rankings=True, max_new_tokens=4, **SOME, **few)


def test_only_what_is_chosen_is_scored_and_can_be_selected(run):
    scores = run.run.read_table("select/scores.csv")
    for _, of_method in scores.groupby("method"):
        assert {Component(*at) for at in zip(of_method["position"], of_method["layer"], strict=True)} == PLACES
    for selection in read_choices(run.run).values():
        assert selection.selected in PLACES
        assert set(selection.ranking) == PLACES
    assert {one["pools"]["all"]["n"] for one in run.run.read_json(RANKINGS)} == {len(PLACES)}
    assert all(len(read_field(run, name)) > len(PLACES) for name in run.config.methods), "extract found all"


def test_scores_are_those_of_a_run_that_scores_everything(run, tiny):
    fields, prompts = read_fields(run), run.run.read_json(PROMPTS)
    val = [[one["instruction"] for one in prompts["prompts"][f"{kind}_val"]] for kind in ("harmful", "harmless")]
    whole = Scorer(tiny, *val, prompts["refusal_tokens"]).score(fields[0], "local", multipliers=(0.5, 1, 2))
    rows = {component: row for row, component in enumerate(fields[0])}
    scores = run.run.read_table("select/scores.csv").query("method == 'diff-in-means'")
    for at in scores.itertuples():
        row = rows[Component(at.position, at.layer)]
        assert at.local_bypass == pytest.approx(float(whole.bypass[row].mean()), abs=1e-3)
        assert at.local_kl == pytest.approx(float(whole.kl[row].mean()), abs=1e-4)


def test_a_share_of_components_is_one_of_those_that_were_scored(tiny, tmp_path):
    made = make_run(tmp_path / "run", tiny, "infer", methods="diff-in-means", scope="top:50", **SOME)
    plans = {row["label"]: row for row in made.run.read_json("infer/plans.json")}
    assert plans["diff-in-means/ablation@top50"]["n_components"] == 2, "of the four that can be selected"
    assert plans["diff-in-means/ablation@top50"]["n_layers"] <= 3


def test_the_page_and_the_summary_say_that_only_these_were_scored(run):
    expected = "Only components at positions -1, -3 in layers 5:10:2 were scored, and could be chosen."
    assert run.run.read_json(SELECTION)["choice"] == read_run(run).choice == expected
    assert expected in (run.run.path / PAGE).read_text()
    shown = Terminal(file=io.StringIO(), width=200)
    print_summary(shown, run.run)
    assert expected in shown.file.getvalue()


def test_what_was_scored_once_is_not_scored_again(tiny, tmp_path, monkeypatch):
    path, scored, score = tmp_path / "run", [], Scorer.score

    def noted(self, field, *args, **more):
        scored.append((field.method, set(field)))
        return score(self, field, *args, **more)

    monkeypatch.setattr(Scorer, "score", noted)
    make_run(path, tiny, "select", **SOME)
    within = {at for at in PLACES if at.layer < int(0.8 * tiny.n_layers)}
    assert scored == [("diff-in-means", within), ("inlp", within)]
    first = pd.read_csv(path / "select/scores.csv").set_index(["method", "position", "layer"])
    scored.clear()

    wider = session_on(path, tiny, **SOME | {"layers": "5,6:10"})
    run_stages(wider, ("select",))
    new = {Component(position, 6) for position in (-1, -3)}  # nothing is selected from layer 8
    assert scored == [("diff-in-means", new), ("inlp", new)]
    again = wider.run.read_table("select/scores.csv").set_index(["method", "position", "layer"])
    assert len(again) == 2 * 2 * 3
    shared = [at for at in first.index if at in again.index]
    pd.testing.assert_frame_equal(again.loc[shared, ["local_bypass", "k"]], first.loc[shared, ["local_bypass", "k"]])
    scored.clear()

    run_stages(session_on(path, tiny, **SOME), ("select",))
    assert not scored
    last = pd.read_csv(path / "select/scores.csv").set_index(["method", "position", "layer"])
    pd.testing.assert_frame_equal(last[first.columns], first)


def test_a_choice_without_a_subspace_is_refused_and_a_single_direction_is_no_choice(run):
    (field, _), config = read_fields(run), load_config(None, {**SMALL, "positions": "-1", "layers": "2"})
    lacking = field.only([at for at in field if at != Component(-1, 2)])
    with pytest.raises(RefusalCmpError, match="At none of the 1 components that positions, layers and prune"):
        among(lacking, config)
    given = field.only([Component(-1, 5)])
    assert among(given, config) is given
