"""Matrix products on a CPU by oneDNN: the same numbers, of the weights as they are now."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from refusal_cmp.model import linear
from refusal_cmp.model.linear import prepacked, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def wide_vectors(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.fixture
def by_onednn(monkeypatch):
    """How often a product was oneDNN's."""
    calls = []
    product = linear._product
    monkeypatch.setattr(linear, "_product", lambda *args: calls.append(1) or product(*args))
    return calls


@pytest.fixture(params=["linear", "without a bias", "Conv1D"])
def both(request):
    torch.manual_seed(0)
    layer = Conv1D(96, 144) if request.param == "Conv1D" else nn.Linear(144, 96, bias=request.param == "linear")
    fast = copy.deepcopy(layer)
    use_onednn(nn.Sequential(fast))
    return layer, fast


def inputs(n: int) -> torch.Tensor:
    return torch.randn(3, n, 144, generator=torch.Generator().manual_seed(1))


def test_it_gives_the_same_numbers_and_is_the_same_module_to_others(both, by_onednn):
    layer, fast = both
    for x in (inputs(50), inputs(50).transpose(0, 1), torch.cat([inputs(50)] * 2, -1)[..., ::2], inputs(0)):
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), layer(x.contiguous()), rtol=1e-5, atol=1e-5)
    assert len(by_onednn) == 3
    assert isinstance(fast, type(layer))
    assert fast.state_dict().keys() == layer.state_dict().keys()


def test_small_products_and_other_precisions_are_torchs_own(both, by_onednn):
    layer, fast = both
    with torch.inference_mode():
        assert torch.equal(fast(inputs(2)), layer(inputs(2)))
        x = inputs(50).bfloat16()
        assert torch.equal(copy.deepcopy(fast).bfloat16()(x), copy.deepcopy(layer).bfloat16()(x))
    assert not by_onednn


def test_weights_may_change(both, by_onednn):
    layer, fast = both
    for one in (layer, fast):
        one.weight.data.mul_(2)
        with torch.no_grad():
            one.weight[3] += 1
    with torch.inference_mode():
        torch.testing.assert_close(fast(inputs(50)), layer(inputs(50)), rtol=1e-5, atol=1e-5)
    assert by_onednn


def test_weights_that_are_put_in_order_once_give_the_same_numbers(both, by_onednn):
    _, fast = both
    with torch.inference_mode():
        expected = [fast(inputs(n)) for n in (50, 50, 90)]
        with prepacked(), prepacked():
            found = [fast(inputs(n)) for n in (50, 50, 90)]
            assert list(linear._packs) == [id(fast)]
    assert linear._packs is None
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[0], found[1])
    assert len(by_onednn) == 6


def test_a_product_does_not_depend_on_those_before_it(monkeypatch, by_onednn):
    """That of one token alone is another one where weights are in another order."""
    monkeypatch.setattr(linear, "LEAST", 1)
    fast = nn.Linear(160, 8192)
    use_onednn(nn.Sequential(fast))
    x = torch.randn(1, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        with prepacked():
            first = fast(x)
        with prepacked():
            fast(inputs(1)[..., :1].expand(3, 1, 160))
            assert torch.equal(fast(x), first)
    assert len(by_onednn) == 3


def test_a_large_model_is_not_held_twice(monkeypatch, by_onednn):
    monkeypatch.setattr(linear, "PACKED_BYTES", 2 * 4 * 144 * 96 - 1)
    fast = nn.Sequential(nn.Linear(144, 96), nn.Linear(96, 144))
    use_onednn(fast)
    with torch.inference_mode(), prepacked():
        fast(inputs(50))
        assert not linear._packs
    assert by_onednn


def test_what_is_put_in_order_is_forgotten_though_the_work_fails(both):
    layer, fast = both

    @prepacked()
    def fail():
        for _ in range(3):
            fast(inputs(50))
        raise LookupError("no such prompt")

    with torch.inference_mode():
        with pytest.raises(LookupError, match="no such prompt"):
            fail()
        for one in (layer, fast):
            one.weight.data.mul_(3)
        with prepacked():
            torch.testing.assert_close(fast(inputs(50)), layer(inputs(50)), rtol=1e-5, atol=1e-5)


def test_gradients_are_torchs_own(both, by_onednn):
    layer, fast = both
    x = inputs(50)
    for one in (layer, fast):
        one(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, fast.weight.grad)
    for one in (layer, fast):
        one.requires_grad_(False)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(x).sum().backward()
    fast(y).sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert not by_onednn


def test_without_wide_vectors_nothing_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layer = nn.Linear(144, 96)
    use_onednn(layer)
    assert type(layer) is nn.Linear


def test_only_plain_float32_layers_on_the_cpu_are_taken():
    class Mine(nn.Linear):
        pass

    packed, wrapped = nn.Linear(4, 4), nn.Linear(4, 4)
    del packed.weight
    wrapped.forward = lambda x: x
    layers = [Mine(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4, device="meta"), packed, wrapped]
    use_onednn(nn.Sequential(*layers))
    assert [type(layer) for layer in layers] == [Mine, *[nn.Linear] * 4]
