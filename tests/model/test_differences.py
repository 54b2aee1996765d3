"""What differs between two checkpoints is found: where, of what rank, along which direction; rounding is no rank."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from refusal_cmp.model import ChatModel
from refusal_cmp.model.differences import LEADING, Weight, differences, leading, weights_of


@pytest.fixture(scope="module")
def other(random_model):
    """A copy of the random model, to be changed, and the weights before."""
    copied = ChatModel(copy.deepcopy(random_model.model), random_model.tokenizer, "other")
    return copied, weights_of(random_model)


def found(other, place, delta):
    """The differences by place, once the weight at a place is another."""
    model, before = other
    weight = weights_of(model)[place]
    with torch.no_grad():
        weight += delta
        try:
            return {one.weight: one for one in differences(before, model)}
        finally:
            weight.copy_(before[place])


def low_rank(shape, values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator)).Q for n in shape
    )
    return left, torch.tensor(values, dtype=torch.float64), right


def test_a_change_of_what_writes_is_found_with_its_rank_its_energy_and_its_direction(other):
    place = Weight(1, "self_attn.o_proj.weight")
    left, values, right = low_rank((32, 32), [2.0, 1.0, 0.5])
    of = found(other, place, left * values @ right.mT)
    one = of.pop(place)
    assert (one.rank, one.side) == (3, "writes")
    assert one.change == pytest.approx(float(values.norm()))
    assert one.energy[:3] == pytest.approx((values**2).cumsum(0).div((values**2).sum()).tolist())
    assert abs(float(one.axis @ left[:, 0])) == pytest.approx(1)
    assert all(rest.change == 0 and not rest.rank for rest in of.values())


def test_a_direction_taken_from_the_embedding_is_found_on_its_side_of_the_stream(other):
    direction = torch.nn.functional.normalize(torch.arange(1.0, 33, dtype=torch.float64), dim=0)
    embedding = other[1][Weight(None, "embedding")]
    one = found(other, Weight(None, "embedding"), -torch.outer(embedding @ direction, direction))
    one = one[Weight(None, "embedding")]
    assert (one.rank, one.side) == (1, "writes")
    assert abs(float(one.axis @ direction)) == pytest.approx(1)


def test_what_reads_the_stream_and_what_writes_to_it_are_told_apart_though_both_are_square(other):
    sides = {one.weight.module: one.side for one in differences(other[1], other[0]) if one.weight.layer == 2}
    writes = {name for name, side in sides.items() if side == "writes"}
    reads = {name.split(".")[1] for name, side in sides.items() if side == "reads"}
    assert writes == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert reads == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}


def test_a_weight_that_one_of_the_two_has_not_is_zero_there(other):
    model, before = other
    place = Weight(0, "mlp.down_proj.weight")
    fewer = {name: tensor for name, tensor in before.items() if name != place}
    one = {one.weight: one for one in differences(fewer, model)}[place]
    assert one.before == 0
    assert one.change == pytest.approx(float(before[place].norm()))
    more = {**before, Weight(0, "mlp.down_proj.bias"): torch.ones(32, dtype=torch.float64)}
    assert {one.weight: one.change for one in differences(more, model)}[Weight(0, "mlp.down_proj.bias")] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [0, 2])
def test_rounding_of_the_file_is_no_rank(dtype, rank):
    from refusal_cmp.model.differences import _difference

    torch.manual_seed(1)
    before = torch.randn(200, 160)
    left, values, right = low_rank((200, 160), [20.0, 10.0][:rank], seed=2)
    after = (before + (left * values @ right.mT).float()).to(dtype).float()  # read from a file of lower precision
    one = _difference(Weight(0, "any"), before, after, "", False)
    assert one.change > 0
    assert one.rank == rank


def test_the_leading_directions_of_a_large_matrix_are_those_of_the_whole_decomposition():
    left, values, right = low_rank((300, 280), [9.0, 5.0, 5.0, 1.0, 0.01])
    torch.manual_seed(3)
    x = left * values @ right.mT + 1e-7 * torch.randn(300, 280, dtype=torch.float64)
    assert min(x.shape) > 2 * LEADING
    u, s, vt = leading(x)
    exact = np.linalg.svd(x.numpy(), compute_uv=False)[:LEADING]
    np.testing.assert_allclose(s[:5], exact[:5], rtol=1e-9)
    assert abs(float(u[:, 0] @ left[:, 0])) == pytest.approx(1, abs=1e-9)
    assert abs(float(vt[0] @ right[:, 0])) == pytest.approx(1, abs=1e-9)
