"""Every registered method with every registered intervention, third parties' too: what holds for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save, save_file

from refusal_cmp.activations import Activations, Labelled, dev_split, numbered
from refusal_cmp.edit import stack
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.methods import EXTRACTORS, Extractor, ModelMethod
from refusal_cmp.plan import Plan
from refusal_cmp.planning import Chosen, Scope, make_plan
from refusal_cmp.subspace import ClassCovariances, Component, SubspaceField

D, AT, COINCIDE = 16, Component(-1, 2), 0
"""Width, the component that plans are made of, and the layer where all activations are one."""
METHODS = sorted(name for name in EXTRACTORS if not issubclass(EXTRACTORS.get(name), ModelMethod))
"""All that activations are enough for: those that see the model are tested with one."""
WITHOUT_LABELS = {"shuffled"}
"""Controls that do not know which class is which, so that their rows point either way."""


@cache
def activations() -> Activations:
    """Of 26 harmful prompts of three categories and 22 harmless ones; float32 has rounded what coincides."""
    harmful = torch.arange(48) < 26
    groups = numbered([("fraud", "theft", "spying")[i % 3] for i in range(26)] + ["cooking"] * 22)
    found = Activations((-2, -1), 3, D, harmful, dev_split(harmful, 0.25, 0), group=groups)
    generator = torch.Generator().manual_seed(0)
    for layer in range(3):
        x = torch.randn(48, 2, D, generator=generator)
        if layer == COINCIDE:
            x = x[:1] * (1 + 1e-7 * torch.randn(48, 2, D, generator=generator))
        else:
            x = x * torch.linspace(0.3, 1.5, D) + torch.randn(D, generator=generator)
            x[harmful, :, 0] += 4
            x[groups == 1, :, 1] += 2
        found.add(range(48), layer, x)
    found.done(range(48))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Any]:
    """A method by name, with what it cannot do without."""
    path = tmp_path_factory.mktemp("given") / "direction.safetensors"
    save_file({"basis": torch.eye(2, D)}, path, {"position": str(AT.position), "layer": str(AT.layer)})
    options = {"given": {"path": path}}

    def make(name: str) -> Any:
        parameters = inspect.signature(EXTRACTORS.get(name)).parameters.values()
        needed = {one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
        if needed - set(options.get(name, {})):
            pytest.skip(f"{name} cannot do without {', '.join(sorted(needed))}")
        return EXTRACTORS.create(name, **options.get(name, {}))

    return make


@pytest.fixture(scope="module")
def field(made) -> Callable[[str], SubspaceField]:
    """What a method finds; each is fitted once."""
    return cache(lambda name: made(name).fit_field(activations(), name))


@pytest.fixture(scope="module")
def plans(field) -> Callable[[str, str], list[Plan]]:
    """A method's subspace with an intervention at all layers, at every default strength."""

    @cache
    def make(method: str, intervention: str) -> list[Plan]:
        strengths = INTERVENTIONS.get(intervention).strengths or (None,)
        return [at_all_layers(field(method), intervention, strength) for strength in strengths]

    return make


def at_all_layers(found: SubspaceField, intervention: str, strength: float | None) -> Plan:
    spread = ClassCovariances({(AT, found[AT].k, layer): (variances(found[AT].k, 1.5), variances(found[AT].k, 0.5))
                               for layer in range(3)})  # fmt: skip
    return make_plan(intervention, Chosen(found, AT, tuple(found), covariances=spread), Scope("all"), strength=strength)


def variances(k: int, size: float) -> torch.Tensor:
    return size * torch.diag(torch.linspace(1, 2, k, dtype=torch.float64))


def vectors(n: int) -> torch.Tensor:
    return 3 * torch.randn(n, 4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_subspaces_are_sound(field, name):
    assert AT in field(name).subspaces
    for component, found in field(name).subspaces.items():
        k = found.k
        assert 1 <= k <= D
        for tensor, shape in ((found.basis, (k, D)), (found.dual, (k, D)), (found.direction, (D,))):
            assert (tensor.shape, tensor.dtype) == (shape, torch.float64)
            assert tensor.isfinite().all()
        eye = torch.eye(k, dtype=torch.float64)
        torch.testing.assert_close(found.basis @ found.basis.mT, eye, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.dual @ found.basis.mT, eye, atol=1e-9, rtol=0)
        assert float(found.direction.norm()) == pytest.approx(1)
        assert float(found.reading @ found.direction) == pytest.approx(1)
        known = found.evidence[~found.evidence.isnan()]
        assert found.evidence.shape == (k,)
        assert ((known >= 0) & (known <= 1)).all()
        if name not in WITHOUT_LABELS:
            harmful, harmless = field(name).means.at(component)
            assert (found.basis @ (harmful - harmless) > -1e-6 * harmful.norm()).all()
            assert found.direction @ (harmful - harmless) > 0
            assert found.norm > 0


@pytest.mark.parametrize("name", METHODS)
def test_two_fits_give_the_same_bytes_and_a_file_the_same_subspaces(field, made, name):
    tensors, metadata = field(name).to_tensors()
    again, _ = made(name).fit_field(activations(), name).to_tensors()
    assert save(tensors) == save(again)
    read = SubspaceField.from_tensors(load(save(tensors)), metadata, field(name).means)
    assert dict(read.missing) == dict(field(name).missing)
    for component, found in field(name).subspaces.items():
        torch.testing.assert_close(read[component].basis, found.basis, atol=1e-6, rtol=0)
        torch.testing.assert_close(read[component].reading, found.reading, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_where_all_activations_are_one_there_is_a_reason_and_no_subspace(field, name):
    if not issubclass(EXTRACTORS.get(name), Extractor):
        pytest.skip(f"{name} does not fit anything")
    for position in (-2, -1):
        reason = field(name).missing[Component(position, COINCIDE)]
        assert reason[0].islower() or reason[0] == "δ"
        assert not reason.endswith(".")


def test_no_method_is_given_a_nan():
    for broken in (torch.nan, torch.inf):
        x = torch.randn(20, D)
        x[3, 2] = broken
        with pytest.raises(RefusalCmpError, match=r"1 of 20 activations hold a NaN or an infinity; leave them out\."):
            Labelled(x, torch.arange(20) < 10)


@pytest.mark.parametrize("intervention", sorted(INTERVENTIONS))
@pytest.mark.parametrize("method", METHODS)
def test_edits_are_finite_and_stacked_as_one_at_a_time(plans, method, intervention):
    for plan in plans(method, intervention):
        assert plan.edits
        edits = [*plan.edits.values(), None]
        for edit in plan.edits.values():
            assert all(term.isfinite().all() for term in edit.tensors().values())
        x = vectors(len(edits))
        alone = torch.cat([one if edit is None else edit(one) for edit, one in zip(edits, x.split(1), strict=True)])
        assert alone.isfinite().all()
        torch.testing.assert_close(stack(edits)(x), alone, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("intervention", sorted(INTERVENTIONS))
@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_what_its_file_says(plans, method, intervention):
    for plan in plans(method, intervention):
        tensors, metadata = plan.to_tensors()
        read = Plan.from_tensors(load(save(tensors)), metadata)
        assert (read.label, set(read.edits)) == (plan.label, set(plan.edits))
        for place, edit in plan.edits.items():
            assert set(read.edits[place].tensors()) == set(edit.tensors())
            for name, term in edit.tensors().items():
                assert torch.equal(read.edits[place].tensors()[name], term.float())
        again = Plan.from_tensors(*read.to_tensors())
        assert again.digest == read.digest


@pytest.mark.parametrize("intervention", sorted(INTERVENTIONS))
@pytest.mark.parametrize("method", METHODS)
def test_an_intervention_changes_nothing_at_its_neutral_strength_alone(field, plans, method, intervention):
    """And one that changes nothing at 0 says that 0 is its neutral strength."""
    neutral = INTERVENTIONS.get(intervention).neutral
    x, plan = vectors(1), at_all_layers(field(method), intervention, 0.0 if neutral is None else neutral)
    same = all(torch.equal(edit(x), x) for edit in plan.edits.values())
    assert same == (neutral is not None)
    for plan in plans(method, intervention):
        if plan.strength != neutral:
            assert not all(torch.equal(edit(x), x) for edit in plan.edits.values())
