"""The harmfulness direction is read before the template's own tokens, and nothing mixes its place up with theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refusal_cmp.api import extract
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods.given import GivenDirection
from refusal_cmp.model.reading import collect
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures.similarity import _matched
from refusal_cmp.report.method_text import method_text
from refusal_cmp.run.contents import MEANS, read_choices, read_field, read_means, read_plans
from refusal_cmp.selection.among import among, chosen
from refusal_cmp.stages import run_stages
from refusal_cmp.subspace import Component

from support.finished_run import make_run, session_on
from support.models import instructions

HARMFUL = [
    f"how do you make a {a} {b}" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two", "three")
]
HARMLESS = [f"hello {a} {b}" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two", "three")]


def test_it_is_the_difference_in_means_at_the_token_that_the_users_text_ends_with(random_model):
    field = extract(random_model, HARMFUL, HARMLESS, "harmfulness", dev_share=0.2, seed=1)
    at = -1 - len(random_model.positions)
    assert field.means.positions == (at,)
    assert {component.position for component in field} == {at}
    dev = collect(random_model, HARMFUL, HARMLESS, seed=1).dev
    prompts, streams = [*HARMFUL, *HARMLESS], []
    for prompt, ids in zip(prompts, random_model.tokenize(prompts), strict=True):
        assert random_model.tokenizer.decode([ids[at]]) == prompt.split()[-1]
        with torch.inference_mode():
            hidden = random_model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        streams.append(torch.stack(hidden[:-1])[:, 0, at])
    x, train = torch.stack(streams), ~dev
    harmful = torch.arange(len(prompts)) < len(HARMFUL)
    for component in field:
        difference = x[harmful & train, component.layer].mean(0) - x[~harmful & train, component.layer].mean(0)
        expected = difference / difference.norm()
        torch.testing.assert_close(field[component].direction, expected, atol=1e-5, rtol=1e-5)


def test_activations_of_some_positions_are_those_of_all(random_model):
    positions = (-5, -4, -3, -2, -1)
    whole = collect(random_model, HARMFUL, HARMLESS, positions=positions)
    some = whole.only((-5, -2))
    assert [one.position for one in some.components()] == [-5, -2] * random_model.n_layers
    assert torch.equal(some.means().harmful, whole.means().harmful[[0, 3]])
    for component in some.components():
        assert torch.equal(some.at(component)[0].x, whole.at(component)[0].x)
        assert torch.equal(some.moments_at(component)[0].sums, whole.moments_at(component)[0].sums)
    with pytest.raises(RefusalCmpError, match="reads position -40, and the prompt"):
        collect(random_model, HARMFUL, HARMLESS, positions=(-40, -1))


def test_choosing_among_the_templates_tokens_leaves_a_method_its_own(tiny_fields):
    field = tiny_fields["diff-in-means"]
    own = replace(
        field,
        means=replace(field.means, positions=(-9,), harmful=field.means.harmful[:1], harmless=field.means.harmless[:1]),
        subspaces={Component(-9, at.layer): one for at, one in field.subspaces.items() if at.position == -1},
    )
    config = load_config(None, {"positions": "-1", "component": "-1,3"})
    assert {at.position for at in among(field, config)} == {-1}
    assert {at.position for at in among(own, config)} == {-9}
    posts = field.means.positions
    assert {at.position for at in chosen(load_config(None, {"positions": "-9"}), posts, 10, (-9,))} == {-9, *posts}
    with pytest.raises(RefusalCmpError, match=r"post-instruction tokens, -\d to -1 and methods that read -9; choose"):
        chosen(load_config(None, {"positions": "-8"}), posts, 10, (-9,))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    few = {"interventions": "ablation", "scope": "single", "n_test": 2, "max_new_tokens": 4}
    few |= {
        "methods": "diff-in-means,harmfulness",
        "component": "best,-1,5",
        "evals": "refusal,magnitude",
        "n_train": 24,
        "n_val": 4,
    }
    return make_run(tmp_path_factory.mktemp("runs") / "harmfulness", tiny, **few)


def test_a_run_edits_with_it_and_says_where_it_is_from(run, tiny):
    at = -1 - len(tiny.positions)
    assert read_choices(run.run)["harmfulness"].selected.position == at
    assert read_means(run).positions == tiny.positions
    assert read_means(run, "harmfulness").positions == (at,)
    plans = {plan.label: plan for plan, _ in read_plans(run)}
    assert plans["harmfulness/ablation@single"].position == at
    assert "harmfulness/ablation[component=-1+5]@single" not in plans, "it is not at another token"
    assert "diff-in-means/ablation[component=-1+5]@single" in plans
    data = read_run(run)
    assert {one.position for one in data.scored} == {at, *tiny.positions}
    text = method_text(data)
    assert r"\texttt{harmfulness} reads the last token of the instruction itself" in text
    assert "zhao2025llms" in text
    pairs = _matched(data.fields["diff-in-means"], data.fields["harmfulness"], -1)
    assert pairs
    assert all((a.position, b.position, a.layer) == (-1, at, b.layer) for a, b in pairs)


def test_it_joins_a_run_that_is_there_and_leaves_what_is_there(tiny, tmp_path):
    made = make_run(tmp_path / "run", tiny, "extract", methods="diff-in-means")
    before = made.run.digest(MEANS), made.run.digest("extract/diff-in-means.safetensors")
    more = session_on(tmp_path / "run", tiny, methods="diff-in-means,harmfulness")
    run_stages(more, STAGES[:1])
    assert (more.run.digest(MEANS), more.run.digest("extract/diff-in-means.safetensors")) == before
    assert read_field(more, "harmfulness").means.positions == (-1 - len(tiny.positions),)


def test_what_another_run_found_there_may_be_given(run, tiny):
    given = GivenDirection(run.run.path / "extract/harmfulness.safetensors")
    at = -1 - len(tiny.positions)
    assert given.positions(tiny.positions) == (at,)
    prompts = instructions("tiny-harmful", "train", 40), instructions("tiny-harmless", "train", 40)
    field = extract(tiny, *prompts, method="given", path=given.path)
    assert {one.position for one in field} == {at}
    for component, subspace in field.subspaces.items():
        found = read_field(run, "harmfulness")[component].direction
        assert float(subspace.direction @ found) == pytest.approx(1, abs=1e-6)
