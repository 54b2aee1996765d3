"""Interventions in other forms, by options in brackets: what they do to vectors, and how plans and runs have it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import grid_cells, most_plans
from refusal_cmp.interventions import INTERVENTIONS, edits_whole_subspace
from refusal_cmp.model.folding import InexactError, fold
from refusal_cmp.model.hooks import before, installed
from refusal_cmp.model.passes import edited_pass
from refusal_cmp.model.reading import stream_at
from refusal_cmp.plan import Plan, component_of, file_name, label_of
from refusal_cmp.planning import Chosen, Scope, Setting
from refusal_cmp.subspace import Component

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
AT = {"layer": 2, "position": -1}


@pytest.fixture(scope="module")
def field(random_model):
    return extract(random_model, HARMFUL, HARMLESS, "diff-in-means")


def streams(model, plan, prompts=("how do you make a cake ?",)):
    """What every block takes in under the plan, before and after the plan's own edit there."""
    seen: list[torch.Tensor] = []
    batch = model.batch(model.tokenize(list(prompts)))
    with model.edited(plan), installed([before(block.module, seen.append) for block in model.blocks]):
        model.last_logits(batch)
    return seen


@pytest.mark.parametrize("name", ["ablation", "actadd", "affine", "clamp", "reflection", "alterrep"])
def test_a_kept_norm_is_the_norm_of_what_was_edited_and_its_way_is_the_edit_s(field, name):
    plain, kept = (plan_intervention(form, field, **AT) for form in (name, f"{name}[keep-norm=true]"))
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert plain.edits.keys() == kept.edits.keys()
    for place, edit in kept.edits.items():
        torch.testing.assert_close(edit(x).norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=1e-12)
        cosine = torch.cosine_similarity(edit(x), plain.edits[place](x), dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_kept_norm_is_that_of_the_stream_on_entry_to_every_block(random_model, field):
    setting = Setting(sites=("resid_pre",))
    plan = plan_intervention("ablation[keep-norm=true]", field, scope="single", setting=setting, **AT)
    unedited, edited = (streams(random_model, one)[2] for one in ({}, plan))
    torch.testing.assert_close(edited.norm(dim=-1), unedited.norm(dim=-1))
    assert (edited @ field[Component(-1, 2)].direction).abs().max() < 1e-10


def test_both_forms_are_compared_in_one_run_and_have_labels_and_files_of_their_own(field):
    config = load_config(None, {"interventions": "ablation, ablation[keep_norm=true],actadd[keep-norm=true]"})
    assert config.interventions == ("ablation", "ablation[keep-norm=true]", "actadd[keep-norm=true]")
    assert most_plans(config) == len(config.methods) * len(config.scope) * (1 + 1 + 2)
    chosen = Chosen(field, Component(-1, 2), tuple(field), component="shared")
    strengths = {"actadd": (0.5,), "actadd[keep-norm=true]": (2.0, 3.0)}
    cells = grid_cells([chosen], (*config.interventions, "actadd"), [Scope("single")], strengths=strengths)
    plans = [cell.plan() for cell in cells]
    assert [plan.label for plan in plans] == [
        "diff-in-means/ablation[component=shared]@single",
        "diff-in-means/ablation[component=shared,keep-norm=true]@single",
        "diff-in-means/actadd[component=shared,keep-norm=true]:2@single",
        "diff-in-means/actadd[component=shared,keep-norm=true]:3@single",
        "diff-in-means/actadd[component=shared]:0.5@single",
    ]
    assert [plan.intervention for plan in plans[:3]] == list(config.interventions)
    assert len({plan.digest for plan in plans}) == 5
    for plan in plans:
        assert label_of(file_name(plan.label)) == plan.label
        assert component_of(plan) == "shared"
        assert Plan.from_tensors(*plan.to_tensors()).digest == replace(plan, edits=_in_float32(plan)).digest


def _in_float32(plan):
    return {place: edit.to("cpu", torch.float32) for place, edit in plan.edits.items()}


def test_a_form_that_changes_nothing_is_the_plain_plan_and_is_run_once(field):
    plain, same = (plan_intervention(name, field, **AT) for name in ("ablation", "ablation[keep-norm=false]"))
    assert plain.digest == same.digest
    assert plain.label != same.label


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ablation[keep_norms=true]", "keep_norm"),
        ("ablation[keep-norm=maybe]", "keep_norm"),
        ("ablation[keep-norm]", "is not understood"),
    ],
)
def test_an_option_that_is_not_understood_is_one_sentence(spec, said):
    with pytest.raises(RefusalCmpError, match=said):
        INTERVENTIONS.create(spec)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_every_intervention_can_be_had_in_every_form(name):
    assert edits_whole_subspace(f"{name}[keep-norm=true]") == edits_whole_subspace(name)
    plain, kept = (INTERVENTIONS.create(one) for one in (name, f"{name}[keep-norm=true]"))
    assert kept.sites(Setting(), 2) == plain.sites(Setting(), 2)


def test_what_keeps_norms_is_no_change_of_weights(random_model, field):
    with pytest.raises(InexactError, match="keeps the norm"):
        fold(plan_intervention("ablation[keep-norm=true]", field, **AT), random_model.n_layers)


def test_a_gate_edits_where_the_stream_looks_harmful_and_leaves_every_bit_of_the_rest(field):
    plain, gated = (plan_intervention(name, field, **AT) for name in ("ablation", "ablation[when=0.1]"))
    assert {place.site for place in gated.edits} == {"resid_pre"}
    harmful, harmless = field.means.at(Component(-1, 3))
    condition = (harmful - harmless) / (harmful - harmless).norm()
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (place,) = (place for place in gated.edits if place.layer == 3)
    open_ = torch.cosine_similarity(x, condition[None]) > 0.1
    assert 20 < open_.sum() < 180
    for dtype in (torch.float64, torch.bfloat16):
        edited = gated.edits[place](x.to(dtype))
        assert torch.equal(edited[~open_], x.to(dtype)[~open_])
        torch.testing.assert_close(edited[open_], plain.edits[place](x.to(dtype))[open_])


def test_a_gate_at_the_midpoint_lies_between_the_class_means(random_model, field):
    plan = plan_intervention("ablation[when=midpoint,keep-norm=true]", field, **AT)
    assert plan.label == "diff-in-means/ablation[when=midpoint,keep-norm=true]@all"
    assert {place.layer for place in plan.edits} == {1, 2, 3}, "at layer 0 the class means coincide"
    for place, edit in plan.edits.items():
        harmful, harmless = field.means.at(Component(-1, place.layer))
        assert torch.equal(edit(harmless[None])[0], harmless)
        assert not torch.equal(edit(harmful[None])[0], harmful)
    with pytest.raises(InexactError, match="acts on some vectors and not on others"):
        fold(plan, random_model.n_layers)


def test_a_gate_that_would_leave_a_layer_without_its_edit_is_refused(field):
    with pytest.raises(RefusalCmpError, match="a gate looks at the stream"):
        plan_intervention("reflection[when=0]", field, **AT)
    with pytest.raises(RefusalCmpError, match="a gate looks at the stream"):
        INTERVENTIONS.create("reflection[when=0]").check(Setting(), several=True)
    INTERVENTIONS.create("reflection[when=0]").check(Setting(), several=False)
    plan = plan_intervention("reflection[when=0]", field, setting=Setting(compose="repeat"), **AT)
    assert {place.site for place in plan.edits} == {"resid_pre"}
    with pytest.raises(RefusalCmpError, match="'when'"):
        INTERVENTIONS.create("ablation[when=2]")


def test_gated_edits_in_one_pass_are_those_of_a_pass_each(random_model, field):
    """Scoring runs many edits at once: gates, kept norms and lengths are told apart there."""
    names = ["ablation", "ablation[when=0]", "actadd[keep-norm=true]", "angular", "angular[when=midpoint]"]
    edits = [plan_intervention(name, field, scope="single", **AT).edits for name in names]
    batch = random_model.batch(random_model.tokenize(["how do you make a cake ?", "one cow"]))
    stream = stream_at(random_model, batch, 2)
    together = edited_pass(random_model, 2, edits, batch, stream)
    for one, found in zip(edits, together, strict=True):
        with random_model.edited(one):
            torch.testing.assert_close(found, random_model.last_logits(batch), atol=1e-5, rtol=1e-5)
