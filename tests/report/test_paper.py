"""A paper's paragraph and captions say what a run did that was given prompts, layers and a test set of its own."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import pytest

from refusal_cmp.api import load_prompts
from refusal_cmp.planning import Setting
from refusal_cmp.report.citations import works_of
from refusal_cmp.report.data import read_run
from refusal_cmp.report.latex import seeds_tables, tables
from refusal_cmp.report.latex_phrases import public_name, tt, where_scored
from refusal_cmp.report.method_text import method_text, method_text_over_seeds
from refusal_cmp.report.page.seeds import render_seeds
from refusal_cmp.report.seeds import SeedsData
from refusal_cmp.subspace import Component

from support.finished_run import make_run, with_plans


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    """A run on one file with both kinds of prompts, at some components (none is selected from layer 8), and tested on
    another set of harmful prompts."""
    folder = tmp_path_factory.mktemp("own")
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "kind"])
        for name, label in (("tiny-harmful", "bad"), ("tiny-harmless", "good")):
            rows.writerows((text, label) for text in load_prompts(name, "train", 60))
    session = make_run(
        folder / "run",
        tiny,
        harmful=f"{folder / 'mine.csv'}:text",
        label_column="kind",
        harmful_label="bad",
        positions="-1,-2",
        layers="4:10:2",
        methods="diff-in-means,inlp[max-k=3]",
        inlp_c=0.3,
        dev_share=0.25,
        scope="single",
        actadd_multipliers="-1",
        eval_datasets="harmful=tiny-harmful,harmless",
        evals="refusal,coherence,kl",
    )
    return read_run(session)


def with_settings(data, **settings):
    return replace(data, manifest={**data.manifest, "config": {**data.config, **settings}})


def test_the_components_that_were_scored_are_named(own, data):
    last = own.fields["diff-in-means"].means.n_layers - 1
    where = f" at positions $-1$ and $-2$ in layers 4 and 6 (of 0 to {last})"
    assert f"Every component (a token and a layer){where} is scored on" in method_text(own)
    assert f" Only components{where} were scored." in tables(own)["selection"]
    assert {Component(*at) for at in zip(own.scores["position"], own.scores["layer"], strict=True)} <= set(own.scored)
    assert "Every component (a token and a layer) is scored on" in method_text(data), "rankings compare all"
    assert "Only components" not in tables(data)["selection"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([4], "in layer 4 (of"),
        ([4, 5], "in layers 4 and 5 (of"),
        ([4, 5, 6, 7], "in layers 4 to 7 (of"),
        ([0, 2, 4, 6, 8], r"in layers 0, 2, \dots, 8 (of"),
        ([1, 2, 5], "in layers 1, 2 and 5 (of"),
    ],
)
def test_layers_are_written_as_people_do(layers, said, data):
    positions = next(iter(data.fields.values())).means.positions
    some = [Component(position, layer) for position in positions for layer in layers]
    assert where_scored(replace(data, scored=some)).startswith(f" {said}")


def test_prompts_of_one_file_are_told_apart_by_their_label(own):
    text, source = method_text(own), tt("mine.csv")
    assert f"harmful prompts ({source} where {tt('kind')} is {tt('bad')})" in text
    assert f"harmless prompts ({source} where {tt('kind')} is not {tt('bad')})" in text


def test_the_test_prompts_are_counted_with_where_they_are_from(own):
    own_part = f"{tt('mine.csv')} where {tt('kind')} is not {tt('bad')}"
    said = f"6 harmful ({tt('tiny-harmful')}) and 6 harmless ({own_part})"
    assert f"for every test prompt: {said}." in method_text(own)
    assert f"on {said} test prompts." in tables(own)["plans"]


def test_settings_of_inlp_stand_there_where_it_was_run(own):
    text = method_text(own)
    assert "of which 25\\,\\% of either kind are held out as a dev split (seed 42)" in text
    assert r"\texttt{inlp[max-k=3]} fits logistic regressions (L2 penalty, $C = 0.3$)" in text
    assert "no better than chance (binomial, one-sided at 5\\,\\%), which is left out, or after 3." in text
    budget = "as many leading directions as can be removed at a KL of at most 0.1 nats"
    assert f"Of INLP's directions {tt('nullspace')} and the scores of components use {budget}" in text
    assert f"; {tt('ablation')} and {tt('actadd')} edit along the first alone." in text
    other = method_text(with_settings(own, inlp_stop="0.6", inlp_classifier="perceptron", inlp_k=["2", "full"]))
    assert "fits scikit-learn's perceptrons to the classes" in other
    assert "balanced accuracy on the dev split is below 0.6" in other
    assert "use in turn (1) the first 2, or all where there are fewer and (2) all;" in other
    assert "INLP" not in method_text(with_settings(own, methods=["diff-in-means"]))


def test_edits_that_are_the_same_count_once_and_are_marked(own):
    labels = [plan.label for plan in own.edited]
    distinct = len(own.distinct(labels))
    assert distinct < len(labels)
    assert f"Under each of {distinct} distinct edits (of {len(labels)} plans" in method_text(own)
    plans = tables(own)["plans"]
    assert "\ndiff-in-means/nullspace@single = ablation & " in plans
    assert plans.count(" = ") == len(labels) - distinct + 1, "one is in the caption"
    alone = replace(own, run_as={label: label for label in own.run_as})
    assert f"Under each of {len(labels)} edits and" in method_text(alone)
    assert " = " not in tables(alone)["plans"]


def test_the_kl_stands_in_the_table_of_plans_where_it_was_measured(own, data):
    assert "KL to the baseline, nats, harmless" in tables(own)["plans"]
    assert "KL to the baseline" not in tables(data)["plans"]


def test_a_model_and_prompts_with_a_reference_are_cited(data):
    text = method_text(with_settings(data, model="smol-refuser", harmful="jailbreakbench"))
    assert r"of \texttt{smol-refuser} \citep{allal2025smollm2} (" in text
    assert r"(\texttt{jailbreakbench} \citep{chao2024jailbreakbench})" in text


def test_a_plan_that_destroys_the_model_is_marked_in_the_table_of_plans(data):
    plans = {"a/ablation@all": (1.0, 0.0, 6.1, 4), "a/nullspace@all": (1.0, 0.0, 1.1, 4)}
    marked = tables(replace(with_plans(data, **plans), answers=data.answers))["plans"]
    assert re.findall(r"^(\S+) \$\\dagger\$ & ", marked, re.MULTILINE) == ["a/ablation@all"]
    assert r"$\dagger$ destroys the model: more than 10\,\% of the completions" in marked
    whole = with_plans(data, **plans | {"a/ablation@all": (1.0, 0.0, 1.9, 4)})
    assert "dagger" not in tables(replace(whole, answers=data.answers))["plans"]


def only_with(data, *interventions):
    """The run as if it had these interventions alone."""
    return replace(data, plans=[plan for plan in data.plans if plan.intervention in ("", *interventions)])


def with_fallback(data):
    """The run as if the filters had kept nothing of the first method."""
    first, *others = data.selections
    fallen = replace(first, fallback=True, kept=(), relaxed={"kl_threshold": 0.2})
    return replace(data, selections=[fallen, *others])


@pytest.fixture
def two_seeds(data):
    """Two runs that differ by their seed, and in that the second has a fallback and less prompts."""
    train = data.prompts["prompts"]["harmful_train"]
    prompts = {**data.prompts, "prompts": {**data.prompts["prompts"], "harmful_train": train[1:]}}
    other = replace(with_fallback(with_settings(data, seed=2)), prompts=prompts)
    return SeedsData("seeds", {1: with_settings(data, seed=1), 2: other})


def test_the_paragraph_on_several_seeds_is_of_all_of_them(two_seeds):
    text, n = method_text_over_seeds(two_seeds), len(two_seeds.first.prompts["prompts"]["harmful_train"])
    assert "held out as a dev split (seeds 1 and 2)." in text
    assert f"{n - 1} to {n} harmful prompts" in text
    assert "hierarchical, of seeds and prompts" in text
    assert "Wilson" not in text
    fallen = tt(two_seeds.first.selections[0].method)
    assert (
        f"With seed 2, for {fallen} there is none, and the limits were relaxed (fallback: KL budget 0.2 nats)." in text
    )
    assert "With seed 1, for" not in text


def test_a_fallback_is_marked_in_the_table_of_selections_with_one_seed_and_with_several(two_seeds, data):
    several = seeds_tables(two_seeds)["selection"]
    assert several.count("), fallback: KL budget 0.2 nats") == 1
    assert " Fallback: the filters keep no component of the method" in several
    assert " Fallback: " in tables(with_fallback(data))["selection"]
    assert "allback" not in tables(data)["selection"]


def test_edits_act_on_layers_at_the_sites_that_were_set(own, data):
    text = method_text(data)
    assert "at the selected component" not in text
    assert "on every token of prompt and answer, in turn in the layer of its component and in all layers." in text
    assert "all have what was found at that one component." in text
    whole = "the input of the block, the output of its attention and the output of its MLP"
    rest = "the output of its attention and the output of its MLP"
    linear, added = f"{tt('ablation')} and {tt('nullspace')}", tt("actadd")
    assert f"In a layer {linear} edit {whole}; {added} edits the input of the block." in text
    assert "in the layer of its component. A component says" in method_text(own)
    assert "Where several layers" not in method_text(own)
    entry = replace(data, setting=Setting(sites=("resid_pre",)))
    assert f"In a layer {linear} and {added}".replace(" and ", ", ", 1) in method_text(entry)
    mirrored = [replace(plan, intervention="reflection", strength=2.0) for plan in data.edited]
    once = method_text(replace(data, plans=[data.plans[0], *mirrored]))
    assert f"edits {whole} if it is the first that is edited, and {rest} if it is not." in once
    top = [replace(plan, scope="top:50") for plan in data.edited]
    assert "in the layers of the first 50\\,\\% of the ranked components (those that meet the limits first)." in (
        method_text(replace(data, plans=[data.plans[0], *top]))
    )


def test_only_interventions_that_ran_are_said_to_use_many_directions(data):
    first = f"Of INLP's directions {tt('ablation')} and {tt('actadd')} edit along the first alone; the scores of"
    assert first in method_text(only_with(data, "ablation", "actadd"))
    assert f"Of INLP's directions {tt('nullspace')} and the scores of components use in turn (1) as many leading" in (
        text := method_text(only_with(data, "nullspace"))
    )
    assert "the first alone" not in text


def test_what_a_strength_of_an_addition_is_stands_there(own, data):
    text = method_text(data)
    assert r"\texttt{actadd} \citep{arditi2024refusal} at strengths $-1$ and $1$" in text
    assert "in the edited layer, at the token that the direction is from, divided by the number of layers" in text
    assert r"at strength $-1$" in method_text(own)
    assert "divided by" not in method_text(own), "one layer at a time"
    whole = method_text(replace(data, setting=Setting(spread=False, norm="selected", layers="selected")))
    assert f"the distance between the class means at the component chosen for {tt('diff-in-means')}." in whole
    assert f"Whatever the scope, {tt('actadd')} edits the layer of the component alone." in whole
    assert "adds the unit direction" not in method_text(only_with(data, "ablation"))


def test_a_component_that_is_not_the_best_is_named_with_how_it_was_chosen(data):
    shared = [
        replace(plan, label=plan.label.replace("@", "[component=shared]@"), position=-1, layer=7)
        for plan in data.edited
    ]
    both = replace(with_settings(data, component=["best", "shared", "-1,3"]), plans=[*data.plans, *shared])
    text = method_text(replace(both, run_as={plan.label: plan.label for plan in both.plans}))
    at = "token $-1$ in layer 7"
    assert rf"Plans labelled \texttt{{component=shared}} use one component for all methods ({at}): that of the" in text
    assert "best mean rank over the methods, among those that the limits keep with every one of them" in text
    assert r"Plans labelled \texttt{component=-1+3} use what is found at token $-1$ in layer 3" in text
    assert "each method uses the one with the lowest bypass." in text
    assert "the best of a method has the lowest bypass." in method_text(with_settings(data, component=["shared"]))
    assert "Plans labelled" not in method_text(data)


def test_whose_phrases_say_what_refuses(data):
    text = method_text(data)
    assert r"whether it refuses, by the phrases of \citet{arditi2024refusal}, and whether the unedited" in text
    assert "arditi2024refusal" in works_of(data.config)
    extended = method_text(with_settings(data, phrases="extended"))
    assert f"by the extended phrases of {tt('refusal-cmp')}, which are not the published ones" in extended
    assert rf"by phrases of our own ({tt('mine.txt')})" in method_text(with_settings(data, phrases="/home/me/mine.txt"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("../model/notary-135m", "notary-135m"),
        ("../model/notary-135m/", "notary-135m"),
        ("../prompts.csv:text", "prompts.csv"),
        ("data/mine.jsonl", "mine.jsonl"),
        (r"C:\models\small.gguf", "small.gguf"),
        ("~/model", "model"),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("jailbreakbench", "jailbreakbench"),
    ],
)
def test_papers_have_names_and_no_paths(given, said):
    assert public_name(given) == said


def with_tokens(data, **texts):
    """The run as if these were its refusal tokens, with their numbers."""
    numbers, found = [*range(57, 57 + len(texts))], [*texts.values()]
    return replace(data, prompts={**data.prompts, "refusal_tokens": numbers, "refusal_token_texts": found})


def test_the_refusal_metric_can_be_reproduced_from_the_paragraph(data):
    text = method_text(with_tokens(data, one="I", two=" As", three="\n_"))
    assert r"log-odds $\log(P + \epsilon) - \log(1 - P + \epsilon)$, with $\epsilon = 10^{-8}$, where $P$ is" in text
    named = r"\texttt{I} (57), \texttt{\textvisiblespace{}As} (58) and \texttt{\textbackslash{}n\_} (59)"
    assert f"is one of the refusal tokens {named} (numbers are those of the vocabulary)." in text
    assert "the mean refusal metric of harmful prompts with its subspace removed" in text


def test_what_is_left_out_is_left_out_by_the_metric_and_not_by_words(data):
    text = method_text(data)
    assert "at most 0 on harmful ones or above 0 on harmless ones, are left out, whatever the model goes on to" in text
    assert "does not refuse" not in text
    every = method_text(with_settings(data, filter_prompts=False))
    assert "are left out, whatever" not in every
    assert "The refusal metric of a prompt is" in every, "components are scored by it too"


def test_seeds_with_other_refusal_tokens_say_which(two_seeds):
    same = method_text_over_seeds(two_seeds)
    assert same.count("refusal token") == 1
    first, second = (with_tokens(run, one=text) for run, text in zip(two_seeds.runs.values(), "IN", strict=True))
    text = method_text_over_seeds(SeedsData("seeds", {1: first, 2: second}))
    assert (
        r"is the refusal token \texttt{I} (57) with seed 1; the refusal token \texttt{N} (57) with seed 2 (numb" in text
    )


def test_the_component_that_methods_share_stands_beside_what_each_seed_chose(two_seeds):
    def sharing(data, layer):
        label = "diff-in-means/ablation[component=shared]@all"
        one = replace(data.edited[0], label=label, position=-1, layer=layer)
        return replace(data, plans=[*data.plans, one], run_as={**data.run_as, label: label})

    both = SeedsData("seeds", {seed: sharing(run, seed) for seed, run in two_seeds.runs.items()})
    table = seeds_tables(both)["selection"]
    assert r"component=shared & ($-$1, 1) & ($-$1, 2) & -- \\" in table
    assert r"Plans labelled \texttt{component=shared} use one component for all methods." in table
    assert "shared" not in seeds_tables(two_seeds)["selection"]
    page = render_seeds(both, [], {})
    row = page.partition('<th scope="row">component=shared</th>')[2].partition("</tr>")[0]
    assert [cell.split(" <")[0] for cell in re.findall("<td>(.*?)</td>", row)] == ["−1, 1", "−1, 2"]
    assert "component=shared" not in render_seeds(two_seeds, [], {})


def test_the_caption_says_what_the_text_is_whose_name_does_not(data):
    said = r"The text set \texttt{on-distribution} is the unedited model's own answers to the harmless prompts."
    assert said in tables(data)["plans"]
    own = data.results["dataset"] == "on-distribution"
    assert "on-distribution" not in tables(replace(data, results=data.results[~own]))["plans"]


def test_no_path_is_printed(own, data):
    local = with_settings(data, model="../model/notary-135m", guard="../judge")
    for source in (method_text(local), *tables(local).values(), *tables(own).values(), method_text(own)):
        assert "../" not in source
        assert "/mine.csv" not in source
    assert " to notary-135m, on " in tables(local)["plans"]
    tasks = with_settings(data, evals=["refusal", "capability"], tasks=["mmlu@5/500"])
    assert rf"accuracy on {tt('mmlu@5/500')} \citep{{" in method_text(tasks), "a task is no path"


def test_the_rank_key_of_every_method_is_said(data):
    accuracy = (
        "the highest balanced accuracy of its first direction on the dev split and, among equals, the lowest bypass"
    )
    settings = {"rank_key": "accuracy-then-bypass"}
    assert f"each method uses the one with {accuracy}." in method_text(with_settings(data, **settings))
    assert f": {accuracy}, among those" in tables(with_settings(data, **settings))["selection"]
    cosmic = with_settings(data, rank_key="cosmic")
    assert r"cosines of COSMIC \citep{siu2025cosmic}" in method_text(cosmic)
    assert "siu2025cosmic" in works_of(cosmic.config)
    mixed = with_settings(data, rank_key_of={"inlp": "accuracy-then-bypass"})
    both = f"{tt('inlp')} and {tt('inlp[k=full]')}"
    by_method = f"the one with the lowest bypass (with {tt('diff-in-means')}) or {accuracy} (with {both})."
    assert by_method in method_text(mixed)
    assert "each method uses the one with the lowest bypass." in method_text(data)
