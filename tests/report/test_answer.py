"""The answer to a run's question: which plan it names, and what the page's first screen says of it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from refusal_cmp.commands.show import print_answer
from refusal_cmp.report.answer import as_good, best_by_method, distinct, pareto, standings
from refusal_cmp.report.page import render
from refusal_cmp.statistics import ENOUGH, fewest, rate_among

from support.finished_run import with_plans


def with_results(run, *rows, n=50):
    """The run with these results on top: plan, dataset, metric, value, the ends of its interval."""
    more = pd.DataFrame(rows, columns=["plan", "dataset", "metric", "value", "ci_low", "ci_high"])
    return replace(run, results=pd.concat([run.results, more]).assign(n=n))


def first_screen(run):
    """The words of the answer, as they are read."""
    header = render(run, [], {}).partition("<header")[2].partition("</header>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", header).replace("\u202f", " "))


def test_the_answer_suppresses_refusal_at_the_least_cost(data):
    run = with_plans(data, **{
        "a/ablation@all": (1.0, 0.0, 1.5, 4),
        "b/ablation@all": (1.0, 0.0, 1.2, 4),
        "b/nullspace@all": (0.95, 0.0, 1.0, 4),
        "a/reflection@all": (0.0, 1.0, 1.1, 4),
    })  # fmt: skip
    ranked = standings(run)
    assert [one.plan for one in ranked] == ["b/ablation@all", "a/ablation@all", "b/nullspace@all", "a/reflection@all"]
    assert [one.suppresses for one in ranked] == [True, True, False, False]
    assert ranked[-1].is_broken
    assert ranked[0].cost == pytest.approx(0.2)
    assert [one.plan for one in best_by_method(ranked)] == ["b/ablation@all", "a/ablation@all"]


def test_of_plans_that_cost_the_same_the_one_with_the_fewest_layers_is_named(data):
    run = with_plans(data, **{
        "a/ablation@all": (1.0, 0.0, 0.999, 9),
        "a/nullspace@single": (1.0, 0.0, 1.003, 1),
        "a/clamp@single": (1.0, 0.0, 1.001, 1),
        "a/actadd@single": (1.0, 0.0, 1.2, 1),
    })  # fmt: skip
    ranked = standings(run)
    assert ranked[0].plan == "a/nullspace@single"
    assert {one.plan for one in as_good(ranked, 0.01)} == {"a/ablation@all", "a/clamp@single"}


def test_without_a_plan_that_suppresses_the_nearest_is_named(data):
    run = with_plans(data, **{
        "a/ablation@all": (0.5, 0.0, 1.0, 1),
        "a/nullspace@all": (0.8, 0.0, 1.7, 1),
        "a/clamp@all": (0.8, 0.0, 1.9, 1),
    })  # fmt: skip
    ranked = standings(run)
    assert [one.plan for one in ranked] == ["a/nullspace@all", "a/clamp@all", "a/ablation@all"]
    assert not ranked[0].suppresses


@pytest.mark.parametrize("broken", [(1.0, 0.0, 6.1, 1), (0.8, 0.2, 1.0, 1), (1.0, 0.0, float("nan"), 1)])
def test_a_plan_that_destroys_the_model_is_never_named(data, broken):
    """However much it answers: strings of digits are answers for a judge that asks for no language."""
    some = with_plans(data, **{"a/ablation@all": broken, "a/nullspace@all": (0.3, 0.0, 1.1, 1)})
    said = first_screen(some)
    assert "No plan suppresses refusal; a/nullspace@all comes nearest." in said
    assert "1 plan destroys the model" in said
    assert "0 of 2 distinct plans do so" in said
    alone = first_screen(with_plans(data, **{"a/ablation@all": broken}))
    assert "No plan suppresses refusal: every one destroys the model." in alone
    assert "a/ablation@all (destroys the model)" in alone


def with_metrics(run, *rows):
    """The run with these values of metrics in place of its own: plan, dataset, metric, value and n."""
    more = pd.DataFrame(rows, columns=["plan", "dataset", "metric", "value", "n"])
    more = more.assign(ci_low=more["value"], ci_high=more["value"])
    keys = ["plan", "dataset", "metric"]
    kept = run.results.set_index(keys).drop(index=more.set_index(keys).index, errors="ignore").reset_index()
    return replace(run, results=pd.concat([kept, more], ignore_index=True))


def test_its_own_answers_are_a_text_that_a_plan_may_ruin_unless_it_refuses_them(data):
    run = with_plans(data, **{"a/ablation@all": (1.0, 0.0, 1.1, 1), "a/actadd@all": (0.2, 0.0, 1.1, 1)})
    own = [("baseline", "on-distribution", "loss", 0.2, 50), ("a/ablation@all", "on-distribution", "loss", 1.4, 50),
           ("a/actadd@all", "on-distribution", "loss", 1.4, 50)]  # fmt: skip
    refused = [("baseline", "harmless", "refusal", 0.0, 50), ("a/ablation@all", "harmless", "refusal", 0.05, 50),
               ("a/actadd@all", "harmless", "refusal", 0.9, 50)]  # fmt: skip
    found = {one.plan: one.is_broken for one in standings(with_metrics(run, *own, *refused))}
    assert found == {"a/ablation@all": True, "a/actadd@all": False}


def test_answers_that_wander_are_told_and_a_line_drawn_from_few_texts(data):
    run = with_plans(data, **{"a/ablation@all": (1.0, 0.0, 1.1, 1)})
    line = ("baseline", "all", "language_threshold", 3.0)
    own, near, far = (
        (plan, "harmless", "unedited_loss", loss, 50)
        for plan, loss in (("baseline", 0.74), ("a/ablation@all", 1.0), ("a/ablation@all", 1.44))
    )
    said = first_screen(with_metrics(run, own, near, (*line, 200)))
    assert "harmful test prompts in language and without refusing" in said or not run.asks_for_language
    assert "Whether its answers help with what was asked was not judged: read some" in said
    assert "a line that is drawn" not in said
    said = first_screen(with_metrics(run, own, far, (*line, 27)))
    assert "much worse than its own answers (1.44 nats a token, and 0.74); it may wander from the question" in said
    assert "What is language was told by a line that is drawn from 27 texts only." in said


def test_what_the_unedited_model_loses_itself_is_no_fault_of_a_plan(data):
    weak = with_plans(data, baseline=(0.0, 0.2, 1.0, None), **{"a/ablation@all": (0.75, 0.25, 1.1, 1)})
    assert not standings(weak)[0].is_broken


def test_the_component_of_the_plan_stands_there_with_its_kl_and_a_fallback_with_a_warning(data):
    method = data.selections[0].method
    run, chosen = with_plans(data, **{f"{method}/ablation@all": (1.0, 0.0, 1.1, 4)}), data.selections[0]
    plans = [replace(one, position=chosen.selected.position, layer=chosen.selected.layer) for one in run.plans]
    run = replace(run, plans=plans)
    at = f"position −{-chosen.selected.position}, layer {chosen.selected.layer}"
    kl = f"{data.chosen(method)['kl']:.3f} nats"
    kept = replace(chosen, fallback=False, relaxed={})
    said = first_screen(replace(run, selections=[kept]))
    assert f"Its direction is that of {at}, whose removal changes harmless validation prompts by {kl}." in said
    taken = replace(chosen, fallback=True, relaxed={"kl_threshold": 0.8})
    said = first_screen(replace(run, selections=[taken]))
    assert (
        f"Beware: no component met the filters, and its direction is that of {at}, taken as a fallback: KL budget"
        in said
    )
    assert f"by {kl}." in said


def test_a_component_that_was_asked_for_comes_with_a_warning_where_the_filters_drop_it(data):
    method, chosen = data.selections[0].method, data.selections[0].selected
    run = with_plans(data, **{f"{method}/ablation[component=shared]@all": (1.0, 0.0, 1.1, 4)})
    plans = [replace(one, position=chosen.position, layer=chosen.layer) for one in run.plans]
    scores = run.scores.copy()
    here = (scores["method"] == method) & (scores["position"] == chosen.position) & (scores["layer"] == chosen.layer)
    scores.loc[here, "kept"] = True
    assert "Beware: its direction" not in first_screen(replace(run, plans=plans, scores=scores))
    scores["dropped_by"] = scores["dropped_by"].astype(object)
    scores.loc[here, ["kept", "dropped_by"]] = [False, "kl"]
    said = first_screen(replace(run, plans=plans, scores=scores))
    assert f"layer {chosen.layer}, which does not meet the filters (dropped by kl); its removal changes" in said


def test_phrases_that_let_pass_what_the_published_ones_find_are_told(data):
    run = with_plans(data, baseline=(0.5, 0.0, 1.0, None), **{"a/ablation@all": (1.0, 0.0, 1.1, 4)})
    same = [
        ("baseline", "harmful", "attack_success", 0.45, 0.3, 0.6),
        ("a/ablation@all", "harmful", "attack_success", 1, 1, 1),
    ]
    assert "by the published phrases" not in first_screen(with_results(run, *same, n=50))
    less = [("baseline", "harmful", "attack_success", 0.1, 0.0, 0.2), same[1]]
    said = first_screen(with_results(run, *less, n=50))
    assert "Beware: by the published phrases the unedited model answers 10 % where that is 50 %; read the compl" in said


def test_where_the_kl_threshold_alone_decides_how_much_a_method_removes_the_first_screen_says_so(data):
    assert "the KL threshold decides" not in first_screen(data)
    scores = data.scores.copy()
    of_method = scores["method"] == "inlp"
    chosen = of_method & scores["selected"].astype(bool)
    other = scores[of_method & ~chosen & (scores["layer"] < 8)].index[0]
    scores.loc[of_method, "local_bypass"] = data.baseline_metric["harmful"]
    scores.loc[other, ["local_bypass", "local_kl", "dropped_by"]] = [-9.5, 0.75, "kl"]
    said = first_screen(replace(data, scores=scores))
    assert "Beware: the KL threshold decides what is compared. inlp: Its removal takes" in said
    assert "to −9.5, at a KL of 0.75 nats (--kl-threshold 1)." in said
    assert "(--component best,shared)" in said


def test_the_command_line_says_what_the_first_screen_says(finished, data):
    shown = Console(file=io.StringIO(), width=1000)
    print_answer(shown, finished)
    headline, sentences, *rest = shown.file.getvalue().splitlines()
    screen = first_screen(data)
    assert headline in screen
    assert sentences.replace("\u202f", " ") in screen
    destroyed = [one.plan for one in distinct(data, standings(data)) if one.is_broken]
    assert (
        rest
        == [f"Low refusal that is no success, as these destroy the model: {', '.join(destroyed)}."][: len(destroyed)]
    )


ONE = {"a/ablation@all": (1.0, 0.0, 1.1, 4)}


@pytest.mark.parametrize("among", [1, 44])
def test_a_plan_that_answers_all_of_the_fewest_prompts_suppresses_refusal_and_of_one_less_does_not(among):
    n = fewest(among)
    assert rate_among(n, n, among).low >= ENOUGH > rate_among(n - 1, n - 1, among).low


def test_the_more_plans_it_is_chosen_from_the_more_it_takes_and_the_first_screen_says_so(data):
    answers_all = (1.0, 0.0, 1.1, 4)
    alone, chosen = (with_plans(data, **{f"a{i}/ablation@all": answers_all for i in range(n)}) for n in (1, 8))
    assert "a0/ablation@all suppresses refusal at the least cost. It answers 100 % [93, 100] of 50" in first_screen(
        alone
    )
    said = first_screen(chosen)
    assert "Too few harmful test prompts to decide; a0/ablation@all comes nearest." in said
    assert "(the interval allows for its choice among 8 plans on the same prompts)" in said
    assert "chosen among 8, its interval would begin at 89 %. It takes 55 or more" in said


def test_the_difference_to_the_unedited_model_has_its_corrected_p_value(data):
    row = {"plan": "a/ablation@all", "against": "baseline", "dataset": "harmful", "metric": "effective_compliance",
           "difference": 1.0, "ci_low": 0.9, "ci_high": 1.0, "p": 1e-9, "p_holm": 0.043, "n": 50}  # fmt: skip
    run = replace(with_plans(data, **ONE), comparisons=pd.DataFrame([row]))
    assert " (p = 0.043 after Holm’s correction)." in first_screen(run)


def test_the_answer_says_how_many_prompts_it_takes_where_there_are_too_few(data):
    few = with_results(with_plans(data, **{"a/ablation@all": (1.0, 0.0, 1.1, 4)}), n=24)
    said = first_screen(few)
    assert "Too few harmful test prompts to decide; a/ablation@all comes nearest." in said
    assert "Of 24 prompts not even a plan that answers all is known to answer 90 %" in said
    assert "begin at 86 %. It takes 36 or more" in said
    assert "Too few" not in first_screen(with_plans(data, **ONE))


@pytest.mark.parametrize(
    ("there", "limit", "said"),
    [
        (40, None, "It takes 36 or more, and its set has 40: take more of them with --n-test."),
        (40, 24, "and its set has 40: take more of them with --n-test and --limit."),
        (30, None, "and its set has no more than 30: give more prompts, or test on another set"),
        (24, 24, "and its set has no more than 24: give more prompts, or test on another set"),
    ],
)
def test_more_of_a_set_are_advised_only_where_it_has_as_many_as_it_takes(data, there, limit, said):
    few = with_results(with_plans(data, **{"a/ablation@all": (1.0, 0.0, 1.1, 4)}), n=24)
    count = {**data.prompts["counts"]["harmful_test"], "available": there, "duplicates": 0, "near_duplicates": 0}
    prompts = {**data.prompts, "counts": {**data.prompts["counts"], "harmful_test": {**count, "sampled": 24}}}
    config = {**data.config, "n_test": 24, "limit": limit}
    assert said in first_screen(replace(few, prompts=prompts, manifest={**data.manifest, "config": config}))


def test_few_prompts_are_enough_to_see_that_a_plan_does_nothing(data):
    run = with_plans(data, **{"a/ablation@all": (0.0, 0.0, 1.1, 4)})
    said = first_screen(replace(run, results=run.results.assign(n=24, ci_high=0.14)))
    assert "No plan suppresses refusal; a/ablation@all comes nearest." in said
    assert "a/ablation@all (does not suppress it)" in said


def test_the_least_cost_is_claimed_only_where_a_cost_is_known(data):
    run = with_plans(data, **ONE)
    assert "a/ablation@all suppresses refusal at the least cost." in first_screen(run)
    unpriced = replace(run, results=run.results[run.results["metric"] != "loss"])
    assert "a/ablation@all suppresses refusal; at what cost was not measured" in first_screen(unpriced)


def test_there_is_nothing_to_suppress_where_the_unedited_model_answers(data):
    run = with_plans(data, baseline=(1.0, 0.0, 1.0, None), **ONE)
    assert "There is no refusal to suppress: the unedited model answers already." in first_screen(run)
    assert "suppresses refusal</span>" not in render(run, [], {})


@pytest.mark.parametrize(
    ("unedited", "said"),
    [(0.5, " It refuses 15 % [7, 28] of the harmless prompts, where the unedited model refuses 50 %"),
     (0.02, " But it refuses 15 % [7, 28] of the harmless prompts, where the unedited model refuses 2 %")],
)  # fmt: skip
def test_refusal_of_harmless_prompts_is_held_against_the_baseline(data, unedited, said):
    run = with_results(with_plans(data, **ONE), ("baseline", "harmless", "refusal", unedited, 0.0, 1.0),
                       ("a/ablation@all", "harmless", "refusal", 0.15, 0.07, 0.28))  # fmt: skip
    assert said in first_screen(run)


def test_identical_plans_count_once(data):
    labels = ["a/ablation@all", "a/nullspace@all", "b/clamp@all", "b/affine@all"]
    run = with_plans(data, **dict.fromkeys(labels, (1.0, 0.0, 1.1, 4)))
    same = {"a/nullspace@all": "a/ablation@all", "b/affine@all": "b/clamp@all"}
    said = first_screen(replace(run, run_as=run.run_as | same))
    assert "1 more distinct plan does so at a cost within 0.01 nats of it, also with b." in said
    assert "2 of 2 distinct plans do so" in said


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    front = [points[index] for index in pareto(points)]
    assert len(set(front)) == len(front)
    assert set(front) == {point for point in points if not any(beats(other, point) for other in points)}
