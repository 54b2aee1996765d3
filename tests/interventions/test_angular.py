"""Angular steering: in the plane of the direction and the harmless mean an angle is given, and nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting, Target
from refusal_cmp.subspace import Subspace

angles = st.floats(-360, 360)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_target(seed: int, d: int = 9, oblique: bool = False) -> Target:
    basis = torch.linalg.qr(drawn(seed, d, 2)).Q.mT
    away = drawn(seed + 1, 2, d)
    dual = basis + away - (away @ basis.mT) @ basis if oblique else None
    return Target(0, Subspace(basis, basis[0], 1.0, torch.ones(2), dual), *drawn(seed + 2, 2, d), 1.0)


def turned(target: Target, angle: float, x: torch.Tensor) -> torch.Tensor:
    return INTERVENTIONS.create("angular").edits([target], angle, Setting())[Place(0, "resid_pre")](x)


def in_plane(target: Target, x: torch.Tensor) -> torch.Tensor:
    """The coordinates along the direction and across it, towards the harmless mean."""
    direction, mean = target.subspace.direction, target.harmless_mean
    across = mean - (mean @ direction) * direction
    return torch.stack([x @ direction, x @ across / across.norm()], -1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), angles, st.booleans())
def test_norms_are_constant_and_the_angle_is_what_was_asked_for(seed, angle, oblique):
    target, x = a_target(seed, oblique=oblique), 7 * drawn(seed + 3, 6, 9)
    landed = turned(target, angle, x)
    torch.testing.assert_close(landed.norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=1e-12)
    length = in_plane(target, x).norm(dim=-1, keepdim=True)
    wanted = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
    torch.testing.assert_close(in_plane(target, landed), length * wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(turned(target, angle, landed), landed, atol=1e-10, rtol=1e-10)  # it is there already
    torch.testing.assert_close(turned(target, angle + 360, x), landed, atol=1e-10, rtol=1e-10)


def test_nothing_changes_outside_the_plane():
    target, x = a_target(1), drawn(5, 6, 9)
    plane = torch.linalg.qr(torch.stack([target.subspace.direction, target.harmless_mean], 1)).Q
    moved = turned(target, 30.0, x) - x
    torch.testing.assert_close(moved @ plane @ plane.mT, moved, atol=1e-12, rtol=1e-12)


def test_the_harmless_mean_is_left_alone_at_its_own_angle():
    target = a_target(2)
    along, across = in_plane(target, target.harmless_mean)
    angle = math.degrees(math.atan2(across, along))
    torch.testing.assert_close(turned(target, angle, target.harmless_mean[None])[0], target.harmless_mean)


def test_a_mean_along_the_direction_has_no_plane():
    target = a_target(3)
    with pytest.raises(NoSubspaceError, match="harmless mean across the direction vanishes"):
        turned(replace(target, harmless_mean=2 * target.subspace.direction), 90.0, drawn(1, 2, 9))
