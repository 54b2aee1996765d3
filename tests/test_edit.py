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


def make_target(seed: int, k: int, d: int, layer: int = 0, oblique: bool = False) -> Target:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64)).Q.mT
    harmful, harmless = torch.randn(2, d, generator=generator, dtype=torch.float64)
    dual = None
    if oblique:
        away = torch.randn(k, d, generator=generator, dtype=torch.float64) / d**0.5
        dual = basis + away - (away @ basis.mT) @ basis
    subspace = Subspace(basis, basis[0], 1.0, torch.ones(k), dual)
    spread = torch.randn(2, k, 3 * k, generator=generator, dtype=torch.float64)
    return Target(layer, subspace, harmful, harmless, 3.0, 1, *(spread @ spread.mT))


def edit_of(intervention: str, target: Target, strength: float | None = None, **setting: str) -> LowRankEdit:
    edits = INTERVENTIONS.create(intervention).edits([target], strength, Setting(**setting))
    return edits[Place(target.layer, "resid_pre")]


def vectors(seed: int, d: int) -> torch.Tensor:
    return torch.randn(3, 5, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def any_edit(seed: int, k: int, d: int, terms: str) -> LowRankEdit:
    """An edit with the terms of these names, at random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"V": (k, d), "A": (k, d), "B": (k, d), "t": (k,), "r": (d,), "b": (d,), "c": (d,), "u": (), "k": ()}
    made = {name: torch.randn(shapes[name], generator=generator, dtype=torch.float64) for name in terms}
    if "c" in made:
        made["c"], made["tau"] = made["c"] / made["c"].norm(), made.pop("u") * 0 + 0.05
    if "k" in made:
        made["keep"] = made.pop("k") * 0 + 1
    return LowRankEdit(**made)


TERMS = ["", "b", "VA", "VAB", "VBt", "Vr", "VABtrb", "VAcu", "bcu", "VAk", "VABtrbcuk"]
"""Kinds of edits by their terms; u is the gate's threshold and k the flag that keeps the norm."""


def dense(edit: LowRankEdit, x: torch.Tensor) -> torch.Tensor:
    """The equation, one vector at a time."""
    rows = []
    for vector in x.reshape(-1, x.shape[-1]):
        if edit.c is not None and not edit.c @ vector / vector.norm() > edit.tau:
            rows.append(vector)
            continue
        coordinates = edit.V @ vector if edit.V is not None else None
        edited = vector.clone()
        if edit.A is not None:
            edited += sum(c * a for c, a in zip(coordinates, edit.A, strict=True))
        if edit.B is not None:
            t = torch.zeros(len(edit.B)) if edit.t is None else edit.t
            edited += sum(abs(c - at) * b for c, at, b in zip(coordinates, t, edit.B, strict=True))
        if edit.r is not None:
            edited += coordinates.norm() * edit.r
        if edit.b is not None:
            edited += edit.b
        rows.append(edited if edit.keep is None else edited / edited.norm() * vector.norm())
    return torch.stack(rows).reshape(x.shape)


@settings(deadline=None, max_examples=50)
@given(shapes, st.sampled_from([*sorted(INTERVENTIONS), *TERMS]), st.booleans())
def test_edit_is_its_equation_and_leaves_its_input_alone(shape, kind, oblique):
    seed, k, d = shape
    x = vectors(seed, d)
    before = x.clone()
    edit = any_edit(seed, k, d, kind) if kind in TERMS else edit_of(kind, make_target(seed, k, d, oblique=oblique))
    torch.testing.assert_close(edit(x), dense(edit, x))
    assert torch.equal(x, before)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_oblique_projections_read_by_the_dual_and_write_along_the_basis(shape):
    """P² = P; nothing is left along the dual, and nothing but the span of the basis is changed."""
    seed, k, d = shape
    target, x = make_target(seed, k, d, oblique=True), vectors(seed, d)
    basis, dual = target.subspace.basis, target.subspace.dual
    for name, read, written in (("nullspace", dual, basis), ("ablation", dual[:1], basis[:1])):
        removed = x - edit_of(name, target)(x)
        P = written.mT @ read
        torch.testing.assert_close(P @ P, P)
        torch.testing.assert_close(removed, x @ P.mT)
        assert ((x - removed) @ read.mT).abs().max() < 1e-12
        assert (removed - removed @ written.mT @ written).abs().max() < 1e-12
    towards_harmless = edit_of("affine", target)(x) @ dual.mT
    torch.testing.assert_close(towards_harmless, (dual @ target.harmless_mean).expand_as(towards_harmless))


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_a_dual_that_is_the_basis_changes_no_bit(name):
    target, x = make_target(3, 2, 9), vectors(3, 9)
    same = replace(target, subspace=replace(target.subspace, oblique=target.subspace.basis.clone()))
    assert torch.equal(edit_of(name, same)(x), edit_of(name, target)(x)) or name in ("ablation", "clamp")
    torch.testing.assert_close(edit_of(name, same)(x), edit_of(name, target)(x), rtol=1e-14, atol=1e-14)


def test_the_direction_is_read_by_the_row_of_the_dual_that_it_is_told_by():
    subspace = make_target(5, 3, 10, oblique=True).subspace
    assert torch.allclose(subspace.reading, subspace.dual[0])
    mixed = replace(subspace, direction=subspace.basis.sum(0) / 3**0.5)
    assert abs(float(mixed.reading @ mixed.direction) - 1) < 1e-12
    assert torch.equal(make_target(5, 3, 10).subspace.reading, make_target(5, 3, 10).subspace.direction)


def test_a_dual_that_does_not_fit_its_basis_is_a_mistake():
    subspace = make_target(5, 2, 10, oblique=True).subspace
    with pytest.raises(ValueError, match="shape of the basis"):
        replace(subspace, oblique=subspace.dual[:1])
    with pytest.raises(ValueError, match="have to be the identity, and are off by 1"):
        replace(subspace, oblique=2 * subspace.dual)
    assert torch.equal(subspace.leading(1).dual, subspace.dual[:1])


@settings(deadline=None, max_examples=25)
@given(shapes, st.booleans())
def test_projections_and_alterrep_applied_twice_are_applied_once(shape, oblique):
    seed, k, d = shape
    target, x = make_target(seed, k, d, oblique=oblique), vectors(seed, d)
    for intervention in ("ablation", "nullspace", "alterrep", "clamp", "affine"):
        edit = edit_of(intervention, target)
        torch.testing.assert_close(edit(edit(x)), edit(x))


@settings(deadline=None, max_examples=25)
@given(shapes, st.booleans())
def test_reflection_projects_at_one_and_two_mirrors_are_none(shape, oblique):
    seed, k, d = shape
    target, x = make_target(seed, k, d, oblique=oblique), vectors(seed, d)
    torch.testing.assert_close(edit_of("reflection", target, 1.0)(x), edit_of("nullspace", target)(x))
    mirror = edit_of("reflection", target, 2.0)
    torch.testing.assert_close(mirror(mirror(x)), x)
    assert not torch.allclose(mirror(x), x)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_an_intervention_says_whether_it_edits_along_the_whole_subspace(name):
    target, x = make_target(0, 3, 8), vectors(0, 8)
    one = replace(
        target,
        subspace=target.subspace.leading(1),
        harmful_covariance=target.harmful_covariance[:1, :1],
        harmless_covariance=target.harmless_covariance[:1, :1],
    )
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
@given(shapes, st.booleans())
def test_where_vectors_land(shape, oblique):
    seed, k, d = shape
    target, x = make_target(seed, k, d, oblique=oblique), vectors(seed, d)
    basis, direction = target.subspace.dual, target.subspace.reading
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
    torch.testing.assert_close(shifted, (-3.0 * target.subspace.direction).expand_as(x))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_stacked_edits_equal_one_at_a_time(seed, ranks):
    """Different ranks and different terms in one stack, and a group without any edit."""
    d = 12
    kinds = [*sorted(INTERVENTIONS), *TERMS]
    drawn = [kinds[(seed + 7 * i) % len(kinds)] for i in range(len(ranks))]
    edits: list[LowRankEdit | None] = [
        any_edit(seed + i, k, d, kind) if kind in TERMS else edit_of(kind, make_target(seed + i, k, d))
        for i, (kind, k) in enumerate(zip(drawn, ranks, strict=True))
    ]
    edits.append(None)
    groups = [vectors(seed + i, d) for i in range(len(edits))]
    expected = torch.cat([x if edit is None else edit(x) for edit, x in zip(edits, groups, strict=True)])
    torch.testing.assert_close(stack(edits)(torch.cat(groups)), expected)


def test_an_edit_that_does_nothing_may_come_first():
    x, edit = vectors(0, 6), any_edit(0, 2, 6, "VA")
    stacked = stack([LowRankEdit(), edit])(torch.cat([x, x]))
    torch.testing.assert_close(stacked, torch.cat([x, edit(x)]))


def test_half_precision_input_is_edited_in_float32():
    target = make_target(0, 2, 16)
    edit = edit_of("nullspace", target).to("cpu")
    x = vectors(0, 16).bfloat16()
    assert edit(x).dtype == torch.bfloat16
    torch.testing.assert_close(edit(x), edit(x.float()).bfloat16())


def test_terms_without_what_they_belong_to_are_a_mistake():
    with pytest.raises(ValueError, match="V comes with A"):
        LowRankEdit(V=torch.eye(2))
    with pytest.raises(ValueError, match="a gate has a direction"):
        LowRankEdit(b=torch.ones(2), c=torch.ones(2))
    with pytest.raises(ValueError, match="t comes with B"):
        LowRankEdit(V=torch.eye(2), A=torch.eye(2), t=torch.ones(2))
