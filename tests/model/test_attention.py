"""Heads that share keys and values are grouped by torch on a CPU: the same bits as with copies, and gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations import sdpa_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from refusal_cmp.model import attention
from refusal_cmp.model.attention import group_heads


@pytest.fixture
def module():
    """An attention layer of six query heads to two key heads, as far as transformers looks at one."""
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    return module


def tensors(queries: int, keys: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 6, queries, 16), (3, 2, keys, 16), (3, 2, keys, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def masked(queries: int, keys: int) -> torch.Tensor:
    """What padded rows see: each its own last keys, in order."""
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    own = torch.eye(queries, keys, dtype=torch.bool)
    return torch.stack([seen & (torch.arange(keys) >= row) | own for row in range(3)])[:, None]


def both_ways(monkeypatch, work):
    """With copies, as transformers has it, and without."""
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", attention._known)
    copies = work()
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *_: pytest.fail("keys or values are copied"))
    group_heads()
    return copies, work()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (23, 23), (5, 40)])
def test_it_gives_the_same_bits_as_copies(monkeypatch, module, queries, keys, mask, dtype):
    q, k, v = tensors(queries, keys, dtype)
    seen = masked(queries, keys) if mask else None

    def work():
        with torch.inference_mode():
            return sdpa_attention.sdpa_attention_forward(module, q, k, v, seen)[0]

    copies, grouped = both_ways(monkeypatch, work)
    assert torch.equal(copies, grouped)


def test_gradients_are_those_of_copies(monkeypatch, module):
    given = tensors(9, 9)

    def work():
        out, _ = sdpa_attention.sdpa_attention_forward(module, *given, masked(9, 9))
        return torch.autograd.grad(out.square().sum(), given)

    for copies, grouped in zip(*both_ways(monkeypatch, work), strict=True):
        torch.testing.assert_close(copies, grouped, rtol=1e-4, atol=1e-5)


def test_what_torch_does_not_group_is_copied_as_ever(monkeypatch, module):
    q, k, v = tensors(4, 4)
    wide = torch.cat([v, v], -1)
    expected = sdpa_attention.sdpa_attention_forward(module, q, k, wide, masked(4, 4))[0]
    group_heads()
    assert torch.equal(sdpa_attention.sdpa_attention_forward(module, q, k, wide, masked(4, 4))[0], expected)
    assert not sdpa_attention.use_gqa_in_sdpa(masked(4, 4), k, wide)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_step_of_generation_on_a_gpu_copies_nothing(monkeypatch, module, kind):
    q, k, v = tensors(1, 40)
    seen = masked(1, 40)
    if kind == "float":
        seen = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", attention._known)
    expected = sdpa_attention.sdpa_attention_forward(module, q, k, v, seen, scaling=0.3)[0]
    group_heads()
    monkeypatch.setattr(attention, "_groups", lambda *_: False)  # as on a GPU, where torch groups none under a mask
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *_: pytest.fail("keys or values are copied"))
    found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, seen, scaling=0.3, dropout=0.0)
    assert found.shape == expected.shape == (3, 1, 6, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
