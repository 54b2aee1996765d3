"""Interventions done in part: x + s (e(x) − x), by the strength of those that have none of their own, or by `share`."""

from __future__ import annotations

import pytest
import torch

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS, Setting
from refusal_cmp.planning import Target
from refusal_cmp.subspace import Subspace

D = 8


def targets(n: int = 2) -> list[Target]:
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, 3, generator=draw, dtype=torch.float64))[0].mT
    means = torch.randn(2, D, generator=draw, dtype=torch.float64)
    spread = torch.diag(torch.linspace(1, 2, 3, dtype=torch.float64))
    subspace = Subspace(basis, basis[0], 1.0, torch.ones(3, dtype=torch.float64))
    return [Target(layer, subspace, *means, 2.0, 1, spread, 0.5 * spread) for layer in range(n)]


def in_part(name: str, share: float, **options):
    """An intervention's edits, with a share of it done."""
    if INTERVENTIONS.get(name).strengths is None:
        return INTERVENTIONS.create(name, **options).formed(targets(), share, Setting())
    return INTERVENTIONS.create(name, share=share, **options).formed(targets(), None, Setting())


@pytest.mark.parametrize("share", [0.25, 0.7])
@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_a_share_moves_a_vector_that_share_of_the_way(name, share):
    whole = INTERVENTIONS.create(name).formed(targets(), None, Setting())
    x = 3 * torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part = in_part(name, share)
    assert set(part) == set(whole)
    for place, edit in part.items():
        torch.testing.assert_close(edit(x), x + share * (whole[place](x) - x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_all_of_it_is_what_it_is_without_a_share_to_the_last_bit(name):
    whole = INTERVENTIONS.create(name).formed(targets(), None, Setting())
    for place, edit in in_part(name, 1.0).items():
        assert edit.tensors().keys() == whole[place].tensors().keys()
        assert all(torch.equal(term, whole[place].tensors()[which]) for which, term in edit.tensors().items())


def test_a_part_has_the_other_forms_too():
    """What keeps norms keeps them, and a gate is where it was."""
    x = 3 * torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for edit in in_part("clamp", 0.4, keep_norm=True).values():
        torch.testing.assert_close(edit(x).norm(dim=-1), x.norm(dim=-1))
    gates = [one["clamp"] for one in ({"clamp": in_part("clamp", share, when=0.1)} for share in (0.4, 1.0))]
    assert all(torch.equal(gates[0][place].c, gates[1][place].c) for place in gates[0])


def test_a_share_of_what_has_a_strength_as_its_share_is_refused():
    with pytest.raises(RefusalCmpError, match="write it behind a colon"):
        INTERVENTIONS.create("ablation[share=0.5]")
