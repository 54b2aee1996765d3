"""Plans: what they do to the whole stream, how scopes count, how labels read."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_cmp.api import class_covariances, extract, plan_intervention
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import grid_cells
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model.hooks import before, installed
from refusal_cmp.plan import Place, Plan, baseline, file_name, label_of
from refusal_cmp.planning import Chosen, Scope, Setting, make_plan
from refusal_cmp.subspace import Component

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
PROMPTS = ["how do you make a cake ?", "one cow"]
AT = {"layer": 2, "position": -1}
AT_2 = Component(-1, 2)


def plans_of(*args, **options):
    return [cell.plan() for cell in grid_cells(*args, **options)]


@pytest.fixture(scope="module")
def fields(random_model):
    return {
        "diff-in-means": extract(random_model, HARMFUL, HARMLESS, "diff-in-means"),
        "inlp": extract(random_model, HARMFUL, HARMLESS, "inlp", c=10.0, stop="0.55", max_k=4),
    }


@pytest.fixture(params=["diff-in-means", "inlp"])
def field(request, fields):
    return fields[request.param]


def last_stream(model, plan):
    """Output of the last block under the plan, float64."""
    seen = []
    handle = model.blocks[-1].module.register_forward_hook(lambda _, __, out: seen.append(out))
    batch = model.batch(model.tokenize(PROMPTS))
    with torch.inference_mode(), model.edited(plan), installed([handle]):
        logits = model.last_logits(batch)
    return seen[0], logits


def test_ablation_everywhere_leaves_nothing_along_the_direction(random_model, field):
    stream, _ = last_stream(random_model, plan_intervention("ablation", field, **AT))
    assert (stream @ field[Component(-1, 2)].direction).abs().max() < 1e-10


def test_nullspace_everywhere_leaves_nothing_in_the_subspace(random_model, field):
    stream, _ = last_stream(random_model, plan_intervention("nullspace", field, **AT))
    assert (stream @ field[Component(-1, 2)].basis.mT).abs().max() < 1e-10


@pytest.mark.parametrize("scope", ["single", "all"])
def test_reflection_at_one_is_nullspace_projection(random_model, field, scope):
    plans = [
        plan_intervention("nullspace", field, scope=scope, **AT),
        plan_intervention("reflection", field, scope=scope, strength=1, **AT),
    ]
    (_, one), (_, other) = (last_stream(random_model, plan) for plan in plans)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_reflection_once_mirrors_every_contribution_once(random_model, field):
    """At scope all the stream that leaves the last block is the mirror of the sum of all that was written."""
    plan = plan_intervention("reflection", field, **AT)
    written, handles = [], []
    for block in random_model.blocks:
        handles += [
            m.register_forward_hook(lambda _, __, out: written.append(out[0] if isinstance(out, tuple) else out))
            for m in (block.attn_out, block.mlp_out)
        ]
    entry = []
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    with torch.inference_mode(), installed([before(random_model.blocks[0].module, entry.append), *handles]):
        stream, _ = last_stream(random_model, plan)
    assert len(batch) == len(entry[0])
    total = entry[0] + sum(written)
    basis = field[Component(-1, 2)].basis
    torch.testing.assert_close(stream, total - 2 * (total @ basis.mT) @ basis, atol=1e-6, rtol=1e-6)


def test_reflection_repeated_and_once_coincide_at_single_only(field):
    repeat = Setting(compose="repeat")
    chosen = Chosen(field, Component(-1, 2), tuple(field))
    single, everywhere = Scope("single"), Scope("all")
    once = make_plan("reflection", chosen, single)
    assert once.digest == make_plan("reflection", chosen, single, setting=repeat).digest
    assert (
        make_plan("reflection", chosen, everywhere).digest
        != make_plan("reflection", chosen, everywhere, setting=repeat).digest
    )


def published_hooks(model, components, basis, alpha):
    """The published loop: three hooks for each component in scope, with the one subspace, whatever its layer has."""

    def mirrored(x):
        return x - alpha * (x @ basis.mT) @ basis

    def written(_, __, out):
        return (mirrored(out[0]), *out[1:]) if isinstance(out, tuple) else mirrored(out)

    handles = []
    for component in components:
        block = model.blocks[component.layer]
        handles.append(block.module.register_forward_pre_hook(lambda _, given: (mirrored(given[0]), *given[1:])))
        handles += [module.register_forward_hook(written) for module in (block.attn_out, block.mlp_out)]
    return handles


@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("scope", ["single", "top:40", "top:100"])
def test_reflection_by_component_is_one_hook_for_each_component(random_model, field, scope, alpha):
    chosen, scope = Chosen(field, Component(-1, 2), tuple(field)), Scope.parse(scope)
    plan = make_plan("reflection", chosen, scope, strength=alpha, setting=Setting(compose="component"))
    components = scope.components(chosen.selected, chosen.ranking, len(chosen.ranking))
    hooks = published_hooks(random_model, components, field[chosen.selected].basis, alpha)
    with installed(hooks):
        expected, _ = last_stream(random_model, {})
    found, _ = last_stream(random_model, plan)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_even_number_of_mirrors_by_component_is_none(field, n):
    ranking = tuple(Component(position, 2) for position in (-1, -2, -3)[:n])
    plan = make_plan(
        "reflection", Chosen(field, ranking[0], ranking), Scope("top"), setting=Setting(compose="component")
    )
    once = make_plan("reflection", Chosen(field, ranking[0], ranking), Scope("single"))
    assert plan.digest == (once.digest if n % 2 else baseline().digest)


def test_just_one_is_the_first_of_the_pool_under_the_selected_subspace(field):
    """As published: the layer of the first of the unfiltered ranking, the direction of the first of the filtered."""
    selected, first = Component(-1, 2), Component(-2, 3)
    chosen = Chosen(field, selected, (first, *(one for one in field if one != first)), "all")
    plan = make_plan("nullspace", chosen, Scope("top", 0.1))
    assert {place.layer for place in plan.edits} == {first.layer}
    assert all(edit.V is field[selected].basis for edit in plan.edits.values())
    assert plan.label == f"{field.method}/nullspace[pool=all]@top0.1"


@pytest.mark.parametrize("scope", ["single", "top:50", "all"])
@pytest.mark.parametrize("spread", [True, False])
def test_additions_at_the_selected_layer_are_the_same_at_every_scope(field, scope, spread):
    last, setting = Component(-1, 3), Setting(layers="selected", spread=spread)
    chosen = Chosen(field, last, tuple(one for one in field if one.layer < 3))
    plan = make_plan("actadd", chosen, Scope.parse(scope), strength=0.5, setting=setting)
    assert list(plan.edits) == [Place(3, "resid_pre")]
    torch.testing.assert_close(
        plan.edits[Place(3, "resid_pre")].b, 0.5 * field.means.distance(last) * field[last].direction
    )
    assert (plan.n_components, plan.n_layers) == (1, 1)
    assert "layers=selected" in plan.label


@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_clamp_everywhere_sets_the_final_projection(random_model, field, strength):
    plan = plan_intervention("clamp", field, strength=strength, **AT)
    stream, _ = last_stream(random_model, plan)
    direction = field[Component(-1, 2)].direction
    harmful, harmless = field.means.at(Component(-1, 3))
    p = (harmful if strength > 0 else harmless) @ direction
    projection = stream @ direction
    torch.testing.assert_close(projection, p.expand_as(projection), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("scope", ["single", "top:60", "all"])
def test_activation_addition_spreads_its_length_over_the_layers(field, scope):
    plan = plan_intervention("actadd", field, scope=scope, strength=2.0, **AT)
    layers = sorted(place.layer for place in plan.edits)
    total = sum(float(edit.b @ field[Component(-1, 2)].direction) for edit in plan.edits.values())
    norms = [field.means.distance(Component(-1, layer)) for layer in layers]
    assert total == pytest.approx(2.0 * sum(norms) / len(norms))
    assert {place.site for place in plan.edits} == {"resid_pre"}


def test_activation_addition_moves_the_mean_projection_by_its_length(random_model, fields):
    field = fields["diff-in-means"]
    plan = plan_intervention("actadd", field, scope="single", strength=1.0, **AT)
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    direction, seen = field[Component(-1, 2)].direction, []
    with torch.inference_mode():
        for edits in ({}, plan.edits):
            with (
                random_model.edited(edits),
                installed([before(random_model.blocks[2].module, lambda x: seen.append(x.clone()))]),
            ):
                random_model.last_logits(batch)
    moved = (seen[1] @ direction).mean() - (seen[0] @ direction).mean()
    assert float(moved) == pytest.approx(field.means.distance(Component(-1, 2)), rel=1e-5)


def test_affine_ablation_moves_the_subspace_to_the_harmless_mean(field):
    edit = plan_intervention("affine", field, scope="single", **AT).edits[Place(2, "resid_pre")]
    basis, (_, harmless) = field[Component(-1, 2)].basis, field.means.at(Component(-1, 2))
    x = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(edit(x) @ basis.mT, (basis @ harmless).expand(5, -1))


@pytest.mark.parametrize("selected", [Component(-1, 2), Component(-2, 3)])
def test_selected_norm_measures_additions_by_the_selected_difference_in_means(fields, selected):
    chosen = [Chosen(fields["diff-in-means"], selected, ()), Chosen(fields["inlp"], Component(-1, 3), ())]
    norm = {"strengths": {"actadd": (1.0,)}, "setting": Setting(norm="selected")}
    expected = fields["inlp"].means.distance(selected)
    for plan in plans_of(chosen, ["actadd"], [Scope("all")], **norm):
        assert [float(edit.b.norm()) * 4 for edit in plan.edits.values()] == pytest.approx([expected] * 4)
    (alone,) = plans_of(chosen[1:], ["actadd"], [Scope("single")], **norm)
    assert float(alone.edits[Place(3, "resid_pre")].b.norm()) == pytest.approx(
        fields["inlp"].means.distance(Component(-1, 3))
    )
    (alone,) = plans_of(chosen[1:], ["actadd"], [Scope("all")], **norm)
    assert len({round(float(edit.b.norm()), 9) for edit in alone.edits.values()}) == 1


def test_an_edit_that_cannot_be_placed_leaves_none_of_the_others(random_model):
    edit = LowRankEdit(b=torch.ones(32, dtype=torch.float64))
    plan = {Place(1, "resid_pre"): edit, Place(1, "mlp_out"): edit, Place(99, "resid_pre"): edit}

    def hooks():
        return [[*m._forward_hooks, *m._forward_pre_hooks] for m in random_model.model.modules()]

    before = hooks()
    with pytest.raises(IndexError), random_model.edited(plan):
        pass
    assert hooks() == before


@pytest.mark.parametrize("scope", ["single", "all"])
def test_alterrep_leaves_every_coordinate_of_every_token_on_the_harmless_side_of_the_midpoint(
    random_model, field, scope
):
    plan, basis = plan_intervention("alterrep", field, scope=scope, **AT), field[Component(-1, 2)].basis
    batch, entered = random_model.batch(random_model.tokenize(PROMPTS)), []
    layers = sorted(place.layer for place in plan.edits)
    watch = (before(random_model.blocks[layer].module, entered.append) for layer in layers)  # behind the edits
    with torch.inference_mode(), random_model.edited(plan), installed(watch):
        random_model.last_logits(batch)
    for layer, stream in zip(layers, entered, strict=True):
        harmful, harmless = field.means.at(Component(-1, layer))
        assert (stream @ basis.mT <= basis @ (harmful + harmless) / 2 + 1e-9).all()
    harmful, harmless = field.means.at(Component(-1, 2))
    assert (basis @ harmless < basis @ harmful).all()  # at the subspace's own layer it is the side of the harmless mean


@given(st.floats(0.01, 100), st.integers(1, 500))
def test_top_percentage_counts_at_least_one_and_at_most_all(percentage, pool):
    count = Scope("top", percentage).count(pool)
    assert 1 <= count <= pool
    assert count >= percentage * pool / 100


@pytest.mark.parametrize("text", ["top:0", "top:101", "top:-3", "top:nan", "top:x", "top", "top:", "some", "all:3"])
def test_scopes_that_do_not_exist_are_refused(text):
    with pytest.raises(RefusalCmpError):
        Scope.parse(text)


def test_a_layer_is_edited_once_with_its_best_component(field):
    ranking = (Component(-1, 2), Component(-2, 2), Component(-3, 1), Component(-1, 1))
    by_layer = Scope("top", 75).best_by_layer(ranking[:3], 4)
    assert by_layer == {1: Component(-3, 1), 2: Component(-1, 2)}
    plan = make_plan("nullspace", Chosen(field, ranking[0], ranking), Scope("top", 75))
    assert (plan.n_components, plan.n_layers) == (3, 2)


def test_grid_is_full_and_labels_differ(random_model, fields):
    read = [class_covariances(random_model, HARMFUL, HARMLESS, one, **AT) for one in fields.values()]
    pairs = zip(fields.values(), read, strict=True)
    chosen = [Chosen(one, Component(-1, 2), tuple(one), covariances=covariances) for one, covariances in pairs]
    scopes = [Scope.parse(text) for text in ("single", "top:50", "all")]
    plans = plans_of(chosen, sorted(INTERVENTIONS), scopes, strengths={"actadd": (-1, 1), "reflection": (1, 2)})
    labels = [plan.label for plan in plans]
    each = [2 if name == "reflection" else len(INTERVENTIONS.get(name).strengths or (None,)) for name in INTERVENTIONS]
    assert len(set(labels)) == len(labels) == 2 * 3 * sum(each)
    assert {"inlp/reflection:2@single", "diff-in-means/actadd:-1@single", "inlp/nullspace@top50"} <= set(labels)
    assert all(label_of(file_name(label)) == label for label in labels)
    digests = {plan.label: plan.digest for plan in plans}
    assert digests["diff-in-means/ablation@all"] == digests["diff-in-means/nullspace@all"]
    assert digests["inlp/reflection:1@single"] == digests["inlp/nullspace@single"]


def test_a_top_percentage_is_of_the_smallest_ranking(fields):
    rankings = [tuple(fields["diff-in-means"])[:8], tuple(fields["inlp"])[:4]]
    chosen = [Chosen(one, ranking[0], ranking) for one, ranking in zip(fields.values(), rankings, strict=True)]
    plans = plans_of(chosen, ["nullspace"], [Scope("top", 50)], strengths={})
    assert [plan.n_components for plan in plans] == [2, 2]


def test_what_differs_from_the_defaults_is_in_the_label(fields):
    own = plan_intervention("nullspace", fields["inlp"], direction="own", **AT)
    assert own.label == "inlp/nullspace[direction=own]@all"
    kept_first, best_first = (
        Chosen(fields["inlp"], AT_2, tuple(fields["inlp"]), pool) for pool in ("kept-first", "all")
    )
    assert make_plan("nullspace", kept_first, Scope("top", 50)).label == "inlp/nullspace@top50"
    assert make_plan("nullspace", best_first, Scope("top", 50)).label == "inlp/nullspace[pool=all]@top50"
    assert make_plan("nullspace", best_first, Scope("all")).label == "inlp/nullspace@all", "no order matters"
    setting = Setting(sites=("resid_pre",), compose="repeat", spread=False)
    assert (
        plan_intervention("reflection", fields["inlp"], setting=setting, **AT).label
        == "inlp/reflection[sites=resid-pre,compose=repeat]:2@all"
    )
    assert (
        plan_intervention("actadd", fields["inlp"], setting=setting, **AT).label == "inlp/actadd[spread=false]:-1@all"
    )
    published = plan_intervention("alterrep", fields["inlp"], setting=Setting(about="zero"), **AT)
    assert published.label == "inlp/alterrep[about=zero]:1@all"
    leading = fields["inlp"].leading("1")
    assert plan_intervention("ablation", leading, **AT).label == "inlp[k=1]/ablation@all"


def test_an_intervention_without_strengths_of_its_own_is_done_in_part(fields):
    whole, same, half = (plan_intervention("ablation", fields["inlp"], strength=s, **AT) for s in (None, 1.0, 0.5))
    assert (whole.label, same.label, half.label) == (
        "inlp/ablation@all",
        "inlp/ablation@all",
        "inlp/ablation:0.5@all",
    )
    assert (whole.strength, same.strength, half.strength) == (None, None, 0.5)
    assert whole.digest == same.digest != half.digest


def test_a_component_without_subspace_says_why(fields):
    with pytest.raises(RefusalCmpError, match="vanishes"):
        plan_intervention("ablation", fields["diff-in-means"], layer=0, position=-1)


def test_a_plan_survives_its_tensors_and_each_tensor_is_kept_once():
    V = torch.randn(2, 8)
    removal = LowRankEdit(V=V, A=-V)
    edits = {Place(layer, "resid_pre"): removal for layer in range(3)}
    edits[Place(11, "mlp_out")] = LowRankEdit(V=V, B=-V, t=V[:, 0], b=V[0])
    tensors, metadata = Plan("hand/edit", edits).to_tensors()
    again = Plan.from_tensors(tensors, metadata)
    assert len(tensors) == 4  # V, −V, its first column and its first row
    assert (again.label, again.digest) == ("hand/edit", Plan("hand/edit", edits).digest)
    assert again.edits[Place(0, "resid_pre")] is again.edits[Place(2, "resid_pre")]
    assert Plan.from_tensors(*Plan("baseline", {}).to_tensors()).edits == {}
