"""Identities of the one low-rank edit, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_cmp.edit import LowRankEdit, stack
from refusal_cmp.interventions import INTERVENTIONS, edits_whole_subspace
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting, Target
from refusal_cmp.subspace import Subspace

shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 5), st.integers(6, 24))


def make_target(seed: int, k: int, d: int, layer: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64)).Q.mT
    harmful, harmless = torch.randn(2, d, generator=generator, dtype=torch.float64)
    subspace = Subspace(basis, basis[0], 1.0, torch.ones(k))
    return Target(layer, subspace, harmful, harmless, unit_norm=3.0)


def edit_of(intervention: str, target: Target, strength: float | None = None, **setting: str) -> LowRankEdit:
    edits = INTERVENTIONS.create(intervention).edits([target], strength, Setting(**setting))
    return edits[Place(target.layer, "resid_pre")]


def vectors(seed: int, d: int) -> torch.Tensor:
    return torch.randn(3, 5, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def dense(edit: LowRankEdit, x: torch.Tensor) -> torch.Tensor:
    """The equation, one vector at a time."""
    rows = []
    for vector in x.reshape(-1, x.shape[-1]):
        coordinates = edit.V @ vector if edit.V is not None else None
        edited = vector.clone()
        if edit.A is not None:
            edited += sum(c * a for c, a in zip(coordinates, edit.A, strict=True))
        if edit.B is not None:
            t = torch.zeros(len(edit.B)) if edit.t is None else edit.t
            edited += sum(abs(c - at) * b for c, at, b in zip(coordinates, t, edit.B, strict=True))
        rows.append(edited if edit.b is None else edited + edit.b)
    return torch.stack(rows).reshape(x.shape)


@settings(deadline=None, max_examples=25)
@given(shapes, st.sampled_from(sorted(INTERVENTIONS)))
def test_edit_is_its_equation_and_leaves_its_input_alone(shape, intervention):
    seed, k, d = shape
    x = vectors(seed, d)
    before = x.clone()
    edit = edit_of(intervention, make_target(seed, k, d))
    torch.testing.assert_close(edit(x), dense(edit, x))
    assert torch.equal(x, before)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_projections_and_alterrep_applied_twice_are_applied_once(shape):
    seed, k, d = shape
    target, x = make_target(seed, k, d), vectors(seed, d)
    for intervention in ("ablation", "nullspace", "alterrep", "clamp", "affine"):
        edit = edit_of(intervention, target)
        torch.testing.assert_close(edit(edit(x)), edit(x))


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_reflection_projects_at_one_and_two_mirrors_are_none(shape):
    seed, k, d = shape
    target, x = make_target(seed, k, d), vectors(seed, d)
    torch.testing.assert_close(edit_of("reflection", target, 1.0)(x), edit_of("nullspace", target)(x))
    mirror = edit_of("reflection", target, 2.0)
    torch.testing.assert_close(mirror(mirror(x)), x)
    assert not torch.allclose(mirror(x), x)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_an_intervention_says_whether_it_edits_along_the_whole_subspace(name):
    target, x = make_target(0, 3, 8), vectors(0, 8)
    one = replace(target, subspace=target.subspace.leading(1))
    same = torch.allclose(edit_of(name, target)(x), edit_of(name, one)(x))
    assert same != edits_whole_subspace(name)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
@pytest.mark.parametrize("compose", ["once", "repeat"])
def test_an_intervention_says_at_which_sites_it_acts(name, compose):
    setting = Setting(sites=("attn_out", "mlp_out"), compose=compose)
    strength = next(iter(INTERVENTIONS.get(name).strengths or ()), None)
    targets = [make_target(1, 3, 8, layer) for layer in (4, 6)]
    places = INTERVENTIONS.create(name).edits(targets, strength, setting)
    said = INTERVENTIONS.create(name).sites(setting, 2)
    assert {(place.layer, place.site) for place in places} == {
        (layer, site) for layer, sites in zip((4, 6), said, strict=True) for site in sites
    }


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_where_vectors_land(shape):
    seed, k, d = shape
    target, x = make_target(seed, k, d), vectors(seed, d)
    basis, direction = target.subspace.basis, target.subspace.direction
    assert (edit_of("nullspace", target)(x) @ basis.mT).abs().max() < 1e-12
    assert (edit_of("ablation", target)(x) @ direction).abs().max() < 1e-12
    midpoint = basis @ (target.harmful_mean + target.harmless_mean) / 2
    for about, t in (("midpoint", midpoint), ("zero", torch.zeros(k, dtype=torch.float64))):
        for alpha in (0.5, 1.0, 2.0):
            landed = edit_of("alterrep", target, alpha, about=about)(x) @ basis.mT
            torch.testing.assert_close(landed, t - alpha * (x @ basis.mT - t).abs())
    for strength, mean in ((-1.0, target.harmless_mean), (1.0, target.harmful_mean)):
        landed = edit_of("clamp", target, strength)(x) @ direction
        torch.testing.assert_close(landed, (mean @ direction).expand_as(landed))
    shifted = edit_of("actadd", target, -1.0)(x) - x
    torch.testing.assert_close(shifted, (-3.0 * direction).expand_as(x))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_stacked_edits_equal_one_at_a_time(seed, ranks):
    """Different ranks and different terms in one stack, and a group without any edit."""
    d = 12
    names = sorted(INTERVENTIONS)
    edits: list[LowRankEdit | None] = [
        edit_of(names[(seed + i) % len(names)], make_target(seed + i, k, d)) for i, k in enumerate(ranks)
    ]
    edits.append(None)
    groups = [vectors(seed + i, d) for i in range(len(edits))]
    expected = torch.cat([x if edit is None else edit(x) for edit, x in zip(edits, groups, strict=True)])
    torch.testing.assert_close(stack(edits)(torch.cat(groups)), expected)


def test_half_precision_input_is_edited_in_float32():
    target = make_target(0, 2, 16)
    edit = edit_of("nullspace", target).to("cpu")
    x = vectors(0, 16).bfloat16()
    assert edit(x).dtype == torch.bfloat16
    torch.testing.assert_close(edit(x), edit(x.float()).bfloat16())


def test_terms_without_what_they_belong_to_are_a_mistake():
    with pytest.raises(ValueError, match="V comes with A"):
        LowRankEdit(V=torch.eye(2))
    with pytest.raises(ValueError, match="t comes with B"):
        LowRankEdit(V=torch.eye(2), A=torch.eye(2), t=torch.ones(2))
