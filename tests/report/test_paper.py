"""A paper's paragraph and captions say what a run did that was given prompts, layers and a test set of its own."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import pytest

from refusal_cmp.api import load_prompts
from refusal_cmp.report.data import read_run
from refusal_cmp.report.latex import tables
from refusal_cmp.report.latex_phrases import tt, where_scored
from refusal_cmp.report.method_text import method_text
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
    text, source = method_text(own), tt(own.config["harmful"])
    assert f"harmful prompts ({source} where {tt('kind')} is {tt('bad')})" in text
    assert f"harmless prompts ({source} where {tt('kind')} is not {tt('bad')})" in text


def test_the_test_prompts_are_counted_with_where_they_are_from(own):
    own_part = f"{tt(own.config['harmless'])} where {tt('kind')} is not {tt('bad')}"
    said = f"6 harmful ({tt('tiny-harmful')}) and 6 harmless ({own_part})"
    assert f"for every test prompt: {said}." in method_text(own)
    assert f"on {said} test prompts." in tables(own)["plans"]


def test_settings_of_inlp_stand_there_where_it_was_run(own):
    text = method_text(own)
    assert "of which 25\\,\\% of either kind are held out as a dev split (seed 42)" in text
    assert r"\texttt{inlp[max-k=3]} fits logistic regressions (L2 penalty, $C = 0.3$)" in text
    assert "no better than chance (binomial, one-sided at 5\\,\\%), which is left out, or after 3." in text
    assert "Of INLP's directions we use the most leading ones whose removal has a KL of at most 0.1 nats" in text
    assert rf"; {tt('nullspace')} edits along all of these; other interventions edit along the first." in text
    other = method_text(with_settings(own, inlp_stop="0.6", inlp_classifier="perceptron", inlp_k=["2", "full"]))
    assert "fits scikit-learn's perceptrons to the classes" in other
    assert "balanced accuracy on the dev split is below 0.6" in other
    assert "we use in turn (1) the first 2 and (2) all;" in other
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
