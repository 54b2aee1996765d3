"""Gaussian optimal transport: it moves one distribution onto another, and reads what it needs for that."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas

from refusal_cmp.api import class_covariances, extract, plan_intervention
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.interventions.transport import transport_map
from refusal_cmp.model.folding import InexactError, fold
from refusal_cmp.model.reading import collect
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting, Target
from refusal_cmp.statistics.shrinkage import covariance, shrunk
from refusal_cmp.subspace import ClassCovariances, Component, Subspace

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
AT = {"layer": 2, "position": -1}

shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.booleans())


def classes(seed: int, k: int, d: int = 9, oblique: bool = False, n: int = 40):
    """Samples of two Gaussians in d dimensions, and the target that knows their means and covariances along k rows."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(drawn(d, k)).Q.mT
    away = drawn(k, d)
    dual = basis + away - (away @ basis.mT) @ basis if oblique else None
    subspace = Subspace(basis, basis[0], 1.0, torch.ones(k), dual)
    harmful, harmless = (drawn(n, d) @ drawn(d, d) + 3 * drawn(d) for _ in range(2))
    spread = [covariance(x @ subspace.dual.mT) for x in (harmful, harmless)]
    return harmful, harmless, Target(0, subspace, harmful.mean(0), harmless.mean(0), 1.0, 1, *spread)


def moved(targets, x, **setting):
    edits = INTERVENTIONS.create("transport").edits(targets, None, Setting(**setting))
    return edits[Place(targets[0].layer, "resid_pre")](x)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_in_sample_the_harmful_have_the_mean_and_the_covariance_of_the_harmless(shape):
    seed, k, oblique = shape
    harmful, harmless, target = classes(seed, k, oblique=oblique)
    dual, landed = target.subspace.dual, moved([target], harmful)
    torch.testing.assert_close((landed @ dual.mT).mean(0), (harmless @ dual.mT).mean(0), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(covariance(landed @ dual.mT), covariance(harmless @ dual.mT), atol=1e-10, rtol=1e-10)
    basis = target.subspace.basis  # nothing changes but along the subspace
    torch.testing.assert_close((landed - harmful) @ basis.mT @ basis, landed - harmful, atol=1e-10, rtol=1e-10)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_the_map_is_the_symmetric_one_of_matrix_square_roots(shape):
    seed, k, _ = shape
    *_, target = classes(seed, k)
    source, goal = (one.numpy() for one in target.covariances)
    root = scipy.linalg.sqrtm(source).real
    inverse = scipy.linalg.inv(root)
    expected = torch.from_numpy(inverse @ scipy.linalg.sqrtm(root @ goal @ root).real @ inverse)
    found = transport_map(*target.covariances)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found, found.mT)
    assert torch.linalg.eigvalsh(found).min() > 0  # the gradient of a convex function, so of least effort


def test_of_one_direction_it_is_the_affine_map_of_means_and_standard_deviations():
    harmful, harmless, target = classes(3, 1)
    row = target.subspace.direction
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    z = (x @ row - (harmful @ row).mean()) / (harmful @ row).std()
    expected = x + ((harmless @ row).mean() + z * (harmless @ row).std() - x @ row)[:, None] * row
    torch.testing.assert_close(moved([target], x), expected)


def test_several_layers_go_the_way_together():
    """Layers with the same distributions: each moves the mean by its share."""
    harmful, _, target = classes(4, 2)
    targets = [replace(target, layer=layer) for layer in range(4)]
    quarter = moved(targets, harmful)
    torch.testing.assert_close(quarter, harmful + (moved([target], harmful) - harmful) / 4)
    torch.testing.assert_close(moved(targets, harmful, spread=False), moved([target], harmful))


def test_what_does_not_vary_is_moved_and_not_stretched():
    """As on entry to the first layer, where the last tokens of all prompts are the same."""
    *_, target = classes(5, 3)
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    same = replace(target, harmful_covariance=nothing, harmless_covariance=nothing)
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    basis = target.subspace.basis
    shift = (target.harmless_mean - target.harmful_mean) @ basis.mT @ basis
    torch.testing.assert_close(moved([same], x), x + shift)
    one = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(transport_map(one, 9 * one), torch.diag(torch.tensor([3.0, 1, 1], dtype=torch.float64)))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 8))
def test_covariances_are_shrunk_as_the_library_does(seed, n, k):
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.arange(1, k + 1)
    expected, _ = oas(x.numpy())
    found = shrunk(covariance(x), n)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-10, rtol=1e-10)
    assert torch.linalg.eigvalsh(found).min() > 0  # also where there are fewer samples than dimensions
    torch.testing.assert_close(shrunk(covariance(x[:, :1]), n), covariance(x[:, :1]))


@pytest.fixture(scope="module")
def field(random_model):
    return extract(random_model, HARMFUL, HARMLESS, "inlp", c=10.0, stop="0.55", max_k=3)


def test_covariances_are_of_the_prompts_that_the_means_are_of(random_model, field):
    found = class_covariances(random_model, HARMFUL, HARMLESS, field, **AT)
    activations = collect(random_model, HARMFUL, HARMLESS)
    at, rows = Component(-1, 2), field[Component(-1, 2)].dual
    assert {layer for _, _, layer in found.of} == set(range(random_model.n_layers))
    for layer in (1, 3):
        train, _ = activations.at(Component(-1, layer))
        both = [train.x[train.y], train.x[~train.y]]
        for one, covariances in zip(both, found.of[at, len(rows), layer], strict=True):
            expected, _ = oas((one @ rows.mT).numpy())
            torch.testing.assert_close(covariances, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    again = ClassCovariances.from_tensors(found.to_tensors())
    assert again.of.keys() == found.of.keys()
    assert all(torch.equal(a, b) for key in found.of for a, b in zip(found.of[key], again.of[key], strict=True))


def test_it_is_planned_along_the_selected_subspace_or_each_layer_s_own(random_model, field):
    for direction, scope in (("best", "single"), ("best", "all"), ("own", "all")):
        covariances = class_covariances(random_model, HARMFUL, HARMLESS, field, direction=direction, **AT)
        how = {"scope": scope, "direction": direction, **AT}
        plan = plan_intervention("transport", field, covariances=covariances, **how)
        assert all(edit.affine for edit in plan.edits.values())
        assert len(plan.edits) == plan.n_layers
        if direction == "best":
            with pytest.raises(RefusalCmpError, match="read them by class_covariances, and give them"):
                plan_intervention("transport", field, **how)
            with pytest.raises(RefusalCmpError, match="are not among those given"):
                plan_intervention("transport", field, covariances=covariances, **{**how, "position": -2})


def test_weights_can_do_it_on_entry_to_the_first_layer_alone(random_model, field):
    covariances = class_covariances(random_model, HARMFUL, HARMLESS, field, **AT)
    plan = plan_intervention("transport", field, scope="single", covariances=covariances, **AT)
    with pytest.raises(InexactError, match="earlier layers have already read"):
        fold(plan, random_model.n_layers)
