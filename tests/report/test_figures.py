"""Figures: every one says what it shows, shows all of it, and is the same every time."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.linalg import subspace_angles

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import FACTS
from refusal_cmp.report.answer import destroyed
from refusal_cmp.report.figures import FIGURES, Drawn, Skipped, draw_all, rendered
from refusal_cmp.report.figures._style import FORMATS, INK, PAPER, VENUES, method_colours, venue
from refusal_cmp.report.figures.plans import across
from refusal_cmp.report.figures.scores import scores_figure
from refusal_cmp.report.figures.seeds import draw_seeds
from refusal_cmp.report.figures.similarity import principal_angles
from refusal_cmp.report.landings import PLACES, Landing
from refusal_cmp.report.latex import tables
from refusal_cmp.report.page import render
from refusal_cmp.report.seeds import SeedsData
from refusal_cmp.run.session import open_run
from refusal_cmp.subspace import Subspace

from support.finished_run import with_plans


def test_every_figure_is_drawn_and_says_what_it_shows(outcomes):
    assert not [one for one in outcomes if isinstance(one, Skipped)]
    names = [one.name for one in outcomes]
    assert len(set(names)) == len(names)
    for name in FIGURES.keys() - {"methods", "stability"}:  # of five methods or more, and of a command of its own
        assert any(one.split("-")[0] == name for one in names), name
    for one in outcomes:
        assert one.says.endswith("."), one.name
        assert any(character.isdigit() for character in one.says), one.name
        assert "nan" not in one.says, one.name


def test_nothing_is_cut_off_and_no_tick_labels_overlap(outcomes):
    nothing_is_cut_off(outcomes)


def nothing_is_cut_off(outcomes):
    for one in outcomes:
        canvas = FigureCanvasAgg(one.figure)
        canvas.draw()
        width, height = one.figure.get_size_inches()
        taken = one.figure.get_tightbbox(canvas.get_renderer())
        assert min(taken.x0, taken.y0) > -0.02, one.name
        assert taken.x1 < width + 0.02, one.name
        assert taken.y1 < height + 0.02, one.name
        for ax in one.figure.axes:
            low, high = sorted(ax.get_xlim())
            shown = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in shown if label.get_visible() and label.get_text()]
            ends = sorted((box.x0, box.x1) for box in boxes)
            for (_, end), (start, _) in pairwise(ends):
                assert end <= start + 1, (one.name, ax.get_title())


def test_every_figure_fits_a_paper(outcomes):
    for one in outcomes:
        width, height = one.figure.get_size_inches()
        assert width <= 7, one.name
        assert height <= 9.5, one.name


def test_many_methods_are_matrices(data):
    """A row for each method, a cell for each plan, a mark where it destroys the model; a cell for every two methods."""
    names = [f"method-{n}" for n in range(17)]
    plans = {f"{name}/{what}@{scope}": (n / 20, 0.1, 1.0 + n, 4) for n, name in enumerate(names)
             for what in ("ablation", "actadd", "affine") for scope in ("single", "all")}  # fmt: skip
    field = data.fields["inlp"]
    run = replace(with_plans(data, **plans), fields={name: replace(field, method=name) for name in names})
    found = FIGURES["methods"](run) + FIGURES["similarity"](run)
    assert [one.name for one in found] == ["methods-single", "methods-all", "similarity"]
    nothing_is_cut_off(found)
    test_every_figure_fits_a_paper(found)
    refused, harmless, lost = found[0].figure.axes
    written = [text.get_text() for text in refused.texts]
    assert len(written) == 17 * 3
    assert not harmless.texts
    assert written[:3] == ["90"] * 3
    assert [one for one in written if one.endswith("×")] == [f"{90 - 5 * n}×" for n in range(2, 17) for _ in range(3)]
    assert [text.get_text() for text in lost.texts[:9:3]] == ["0", "1", "2×"]
    assert "with 0 interventions method-0, " in found[0].says
    assert len(found[2].figure.axes[0].texts) == 17 * 17
    assert "a |cosine| of 1.00 on average" in found[2].says
    few = with_plans(data, **{label: value for label, value in plans.items() if label < "method-11"})
    assert len(few.methods) == 3
    assert [one.why for one in FIGURES["methods"](few)] == [
        "it takes 5 methods; the figure of every plan has intervals"
    ]


def test_both_rules_with_any_number_of_methods_fit_a_paper(data):
    """A row for each rule, a figure for each reach."""
    scores = data.scores.assign(local_cosmic=-data.scores["local_bypass"], global_cosmic=-data.scores["global_bypass"])
    cosmic = [one | {"rule": "cosmic"} for one in data.ranking_rules]
    both = replace(data, scores=scores, ranking_rules=[*data.ranking_rules, *cosmic])
    for methods in ([], ["inlp"]):
        found = FIGURES["rules"](both.only(methods))
        assert [one.name for one in found] == ["rules-local", "rules-global"]
        assert [one.figure.get_axes()[0].get_title().split("\n")[0].split(", ")[1] for one in found] == [
            "local",
            "global",
        ]
        test_every_figure_fits_a_paper(found)
        nothing_is_cut_off(found)


def test_a_figure_has_the_same_bytes_every_time(data):
    (one,), (again,) = FIGURES["tradeoff"](data), FIGURES["tradeoff"](data)
    for kind in ("png", "svg", "pdf"):
        assert rendered(one.figure, kind) == rendered(again.figure, kind), kind


def test_what_was_not_measured_is_said_not_drawn(data):
    without = replace(
        data,
        results=data.results[data.results["metric"] == "compression"],
        rankings=None,
        ranking_rules=None,
        magnitude=None,
        landings=None,
        fields={"diff-in-means": data.fields["diff-in-means"]},
    )
    skipped = {one.name: one.why for one in draw_all(without) if isinstance(one, Skipped)}
    assert set(skipped) == set(FIGURES) - {"scores"}
    assert "--compare-rankings" in skipped["rankings"]
    assert "--ranking-rules" in skipped["rules"]
    assert "magnitude" in skipped["magnitude"]


def test_effects_by_k_are_drawn_only_where_they_were_measured(data):
    without = replace(data, results=data.results[data.results["metric"] == "compression"])
    (one,) = FIGURES["inlp"](without)
    assert [ax.get_ylabel() for ax in one.figure.axes] == ["accuracy on the dev split", "directions found"]


@pytest.mark.parametrize("baseline", [True, False])
def test_what_is_not_finite_is_said_not_drawn(data, baseline):
    results = data.results.copy()
    broken = (results["metric"] == "loss") & (baseline | (results["plan"] != "baseline"))
    results.loc[broken, ["value", "ci_low", "ci_high"]] = np.nan
    nowhere = (Landing(np.nan, np.nan, np.nan),) * len(PLACES)
    landings = dict.fromkeys(data.landings.landings, nowhere)
    planes = {key: plane if key[1] == "baseline" else plane * np.nan for key, plane in data.landings.planes.items()}
    run = replace(data, results=results, landings=replace(data.landings, landings=landings, planes=planes))
    outcomes = draw_all(run)
    assert {one.name for one in outcomes if isinstance(one, Skipped)} == {"tradeoff", "plane", "methods", "stability"}
    drawn = [one for one in outcomes if isinstance(one, Drawn)]
    assert not any("nan" in one.says for one in drawn)
    text = render(run, outcomes, {(one.name, kind): rendered(one.figure, kind) for one in drawn for kind in FORMATS})
    assert "no plan has a finite cost" in text


def test_identical_plans_count_once_in_the_sentences(data):
    labels = [plan.label for plan in data.edited]
    run = replace(data, run_as=dict.fromkeys(labels, labels[0]) | {"baseline": "baseline"})
    assert re.search(r"\. (1 plan of 1 costs|0 plans of 1 cost) at most", FIGURES["tradeoff"](run)[0].says)
    assert "1 plan of 1 " in (said := FIGURES["plans"](run)[0].says) or "none of the 1 plans" in said


ONE_BREAKS = {
    "diff-in-means/ablation@all": (1.0, 0.0, 6.1, 4),
    "inlp/ablation@all": (0.92, 0.0, 1.1, 4),
    "inlp/nullspace@single": (0.1, 0.0, 1.005, 1),
}
"""The first answers most, and its loss is another model's."""


def hollow(ax):
    return [line for line in ax.lines if line.get_marker() != "None" and line.get_markerfacecolor() == PAPER]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_plan_that_destroys_the_model_is_hollow_and_no_success(data):
    all_layers, _ = FIGURES["plans"](with_plans(data, **ONE_BREAKS))
    (ax,) = all_layers.figure.axes
    assert [line.get_xdata().tolist() for line in hollow(ax)] == [[0.0]], "it refuses nothing"
    assert "destroys the model" in legend(all_layers.figure)
    assert (
        "1 plan of 2 answers most of them, at the lower end of the interval too (ablation); 1 plan destroys the "
        in (all_layers.says)
    )


def test_a_plan_answers_most_only_where_its_interval_says_so(data):
    run = with_plans(data, **{"inlp/ablation@all": (0.92, 0.0, 1.1, 4), "inlp/nullspace@all": (0.56, 0.0, 1.1, 4)})
    (one,) = FIGURES["plans"](run)
    assert "1 plan of 2 answers most of them, at the lower end of the interval too (ablation); of 1 the interval " in (
        one.says
    )
    (runs,) = across([run, replace(run, name="other")])
    assert "small: 1 plan of 2; other: 1 plan of 2." in runs.says


def test_a_plan_that_destroys_the_model_is_hollow_and_not_on_the_front(data):
    (one,) = FIGURES["tradeoff"](with_plans(data, **ONE_BREAKS))
    every, single = one.figure.axes
    assert [line.get_xdata().tolist() for line in hollow(every)] == [pytest.approx([5.1])]
    assert not hollow(single)
    (front,) = (line for line in every.lines if line.get_drawstyle() == "steps-post")
    assert max(front.get_ydata()) == 0.92
    assert (
        "2 plans are on the Pareto front of the plans shown, at all layers and one layer; 90\u202f% or more of harmful"
        in (one.says)
    )
    assert "are answered by inlp/ablation@all. 1 plan of 3 costs at most 0.01 nats" in one.says
    assert "1 plan destroys the model, hollow here and on no front." in one.says


def test_the_front_is_said_to_be_of_the_scopes_that_are_shown(data):
    whole = with_plans(data, **ONE_BREAKS)
    for run, scopes in ((whole, "all layers and one layer"), (whole.only(scopes=["single"]), "one layer")):
        (one,) = FIGURES["tradeoff"](run)
        assert f"Pareto front of the plans at {scopes}" in legend(one.figure)
        assert f"of the plans shown, at {scopes};" in one.says


def test_plans_that_the_front_s_sentence_names_are_said_to_answer_enough(data):
    many = {f"inlp/ablation[{n}]@all": (0.9 + 0.02 * n, 0.0, 1.1 + 0.1 * n, 4) for n in range(5)}
    (one,) = FIGURES["tradeoff"](with_plans(data, **many))
    assert "are answered by 5 of them, at the least cost by inlp/ablation[0]@all, inlp/ablation[1]@all and " in one.says
    (few,) = FIGURES["tradeoff"](with_plans(data, **{"inlp/ablation@all": (0.4, 0.0, 1.1, 4)}))
    assert "none of them answers 90\u202f% of harmful prompts" in few.says


MAIN = ("plans", "tradeoff", "scores")
"""The figures of the main result."""


@pytest.mark.parametrize("name", ["acl", "neurips"])
def test_the_main_result_is_drawn_exactly_as_wide_as_a_column_and_nothing_is_cut_off(data, name):
    with venue(name, "column"):
        found = [one for figure in MAIN for one in FIGURES[figure](data)] + across([data, replace(data, name="other")])
    assert {one.name for one in found} >= {"plans-all", "tradeoff", "scores", "runs-all"}
    for one in found:
        assert one.figure.get_figwidth() == VENUES[name][0], one.name
        assert one.figure.get_figheight() <= 9.5, one.name
    nothing_is_cut_off(found)


@pytest.mark.parametrize("name", VENUES)
def test_no_tick_labels_of_the_scores_overlap_in_a_deep_model(data, name):
    deep = data.scores.assign(layer=data.scores["layer"] * 3)
    methods = [deep.assign(method=method) for method in ("diff-in-means", "inlp")]
    with venue(name):
        figure = scores_figure(pd.concat(methods), data.baseline_metric, data.rule, 30)
    nothing_is_cut_off([Drawn("scores", "", figure, "")])


def test_log_odds_near_zero_keep_their_sign_in_sentences(data):
    selected = data.scores["selected"].astype(bool)
    near = data.scores.assign(local_induce=data.scores["local_induce"].where(~selected, -0.04))
    (found, *_) = FIGURES["scores"](replace(data, scores=near))
    assert " to −0.040, and KL is" in found.says


def test_a_figure_is_as_wide_as_a_column_or_as_a_page(data):
    one, two = data.only(["inlp"]), data.only(["diff-in-means", "inlp"])
    with venue("acl"):
        shown = [figure for name in ("scores", "plane", "magnitude", "rankings") for figure in FIGURES[name](one)]
        shown += FIGURES["scores"](two) + FIGURES["similarity"](two)
    assert {
        figure.name: figure.figure.get_figwidth() for figure in shown if figure.name in ("scores", "similarity")
    } == {
        "scores": 3.03 if len(two.scores.filter(regex="_bypass$").columns) == 1 else 6.3,
        "similarity": 3.03,
    }
    assert {figure.figure.get_figwidth() for figure in shown} <= set(VENUES["acl"])


def test_panels_below_each_other_fill_several_figures_where_one_is_too_tall(data):
    plans = {f"inlp/ablation[{n}]@all": (0.5, 0.0, 1.1, 4) for n in range(40)}
    with venue("any", "column"):
        found = FIGURES["plans"](replace(run := with_plans(data, **plans), results=_refuses_both(run.results)))
    assert [one.name for one in found] == ["plans-all", "plans-all-2"]
    assert all(len(one.figure.axes) == 1 for one in found)


def _refuses_both(results):
    """The results with what harmful prompts have for harmless ones too."""
    return pd.concat([results, results.assign(dataset=results["dataset"].replace("harmful", "harmless"))])


def test_every_mark_and_band_of_the_tradeoff_is_in_its_legend(data):
    (both,) = FIGURES["tradeoff"](with_plans(data, **ONE_BREAKS))
    assert {"another scope", "90\u202f% or more answered", "destroys the model"} <= set(legend(both.figure))
    (one,) = FIGURES["tradeoff"](with_plans(data, **ONE_BREAKS).only(scopes=["all"]))
    assert "another scope" not in legend(one.figure), "nothing is grey there"


def test_figures_over_seeds_have_what_destroys_the_model_with_some_seed(data):
    label, whole = "diff-in-means/ablation@all", ONE_BREAKS | {"diff-in-means/ablation@all": (1.0, 0.0, 1.1, 4)}
    runs = {seed: with_plans(data, **plans) for seed, plans in ((1, whole), (2, ONE_BREAKS), (3, whole), (4, whole))}
    facts = {"model": "tiny", **dict.fromkeys(FACTS)}
    runs = {seed: replace(run, results=run.results.assign(**facts)) for seed, run in runs.items()}
    over = SeedsData("seeds", runs)
    assert destroyed(over.as_run) == {label} == {one.plan for one in over.verdicts if one.broken}
    assert not destroyed(runs[1])
    (moves,) = (one for one in draw_seeds(over) if one.name == "seeds")
    for ax in moves.figure.axes:
        assert len(hollow(ax)) == 1


def test_one_strength_beside_the_baseline_is_no_sweep(data):
    names = {one.name for one in FIGURES["strengths"](data)}
    assert names == {"strengths-actadd"}
    (skipped,) = FIGURES["strengths"](replace(data, plans=[plan for plan in data.plans if plan.strength != 1]))
    assert isinstance(skipped, Skipped)
    assert "no intervention has two strengths" in skipped.why


def test_the_means_of_the_landings_have_no_method_s_colour(outcomes):
    (landing,) = (one for one in outcomes if one.name == "landing")
    for ax in landing.figure.axes:
        means = [line for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert {line.get_color() for line in means} == {INK}
        assert len({line.get_linestyle() for line in means}) == 2
        assert {"harmless", "harmful"} <= {text.get_text() for text in ax.texts}


def test_the_title_of_the_magnitude_study_has_the_correlation_within_kinds_first(outcomes):
    (one,) = (one for one in outcomes if one.name == "magnitude")
    for ax in one.figure.axes:
        _, numbers = ax.get_title().split("\n", 1)
        assert numbers.startswith("r within harmful")
        assert numbers.index("harmless") < numbers.index("all together")


def test_a_rank_correlation_of_few_components_has_no_interval(data):
    pool = {"n": 7, "rho": -0.2, "rho_noise_free": -0.2, "ci_low": -0.4, "ci_high": -0.25, "says_little": True,
            "p": 0.8, "tau": 0.0, "top1_match": False}  # fmt: skip
    study = {"method": "inlp", "regret": 0.25, "pools": {"all": pool}}
    run = replace(data, rankings=[study])
    (one,) = FIGURES["rankings"](run)
    assert "says little" in one.says
    for text in (one.figure.axes[0].get_title(), tables(run)["rankings"]):
        assert "too few" in text
    for text in (one.says, one.figure.axes[0].get_title(), tables(run)["rankings"]):
        assert "0.25]" not in text


def test_methods_keep_their_colours_and_differ():
    methods = ["diff-in-means", "inlp", "inlp[k=1]", "inlp[k=2]", "random", "random[seed=1]", "shuffled", "given-x"]
    colours = method_colours(methods)
    assert len(set(colours.values())) == len(methods)
    assert method_colours(["inlp"])["inlp"] == colours["inlp"]


def test_a_run_can_be_narrowed_to_some_methods(data):
    one = data.only(["inlp"])
    assert one.methods == ["inlp"]
    assert list(one.fields) == ["inlp"]
    assert one.plans[0].label == "baseline"
    assert set(one.results["plan"]) == {plan.label for plan in one.plans}
    with pytest.raises(RefusalCmpError, match="Did you mean 'inlp'"):
        data.only(["inpl"])


def test_a_run_can_be_narrowed_to_a_scope(data):
    one = data.only(scopes=["all"])
    assert (one.scopes, one.methods) == (["all"], data.methods)
    assert {outcome.name for outcome in FIGURES["plans"](one)} == {"plans-all"}
    assert "plane-inlp-all" in {outcome.name for outcome in FIGURES["plane"](one)}
    with pytest.raises(RefusalCmpError, match="Unknown scope 'top:50'; known are all, single"):
        data.only(scopes=["top:50"])


def test_principal_angles_are_scipys():
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(12, k, generator=generator, dtype=torch.float64)).Q.mT for k in (3, 5)]
    one, other = (Subspace(basis, basis[0], 1.0, torch.ones(len(basis))) for basis in bases)
    expected = np.sort(np.rad2deg(subspace_angles(bases[0].mT.numpy(), bases[1].mT.numpy())))
    assert principal_angles(one, other).numpy() == pytest.approx(expected)


def test_runs_stand_side_by_side(data):
    outcomes = across([data, replace(data, name="other")])
    assert all(isinstance(one, Drawn) for one in outcomes)
    assert [one.name for one in outcomes] == ["runs-single", "runs-all"]
    assert {ax.get_title() for ax in outcomes[0].figure.axes} == {"small", "other"}


def test_a_finished_run_is_opened_by_its_folder(finished):
    opened = open_run(finished.run.path)
    assert opened.config.digest == finished.config.digest
