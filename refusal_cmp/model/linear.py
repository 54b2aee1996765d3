"""A model's matrix products on a CPU, by oneDNN where torch's own choice leaves half of the processor idle.

For float32 torch calls the Intel Math Kernel Library, which on processors of other makers does not use their 512-bit
vectors: oneDNN, which torch has as well and takes for 16-bit numbers, does. On an AMD EPYC of 2024 a product of the
shapes of small models takes 0.4 of the time; both add up in float32. Small products stay with torch: a call of oneDNN
costs some microseconds.

oneDNN puts weights in an order of its own first, which takes a third of the product where few tokens are read. Inside
`prepacked` a layer keeps them so. Every product there is made of them: what a product gives may not depend on what was
done before it, and for a single token the order decides the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LEAST = 2**20
"""Multiplications from which on a product is faster by oneDNN."""
PACKED_BYTES = 2**31
"""What weights may take a second time: a model of half a billion parameters."""


_packs: dict[int, Tensor] | None = None
"""The weights of layers in oneDNN's order, by the layer's id, while they are kept."""


@contextmanager
def prepacked() -> Iterator[None]:
    """Inside the block, in which no weight may change, the weights of a small model are put in order once.

    It is small if they take no more than `PACKED_BYTES`.
    """
    global _packs
    if _packs is not None:
        yield
        return
    _packs = {}
    try:
        yield
    finally:
        _packs = None


class _Linear(nn.Linear):
    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return _product(self, x, self.weight, self.bias) if _worth(x, self.weight) else super().forward(x)


class _Conv1D(Conv1D):
    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return _product(self, x, self.weight.mT, self.bias) if _worth(x, self.weight) else super().forward(x)


FAST = {nn.Linear: _Linear, Conv1D: _Conv1D}


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model compute by oneDNN, on processors and in precisions where that is faster.

    Weights stay where they are and may change; passes that gradients are wanted of are torch's own.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        return
    layers = [
        module
        for module in model.modules()
        if type(module) in FAST and "forward" not in vars(module) and _plain(dict(module.named_parameters()))
    ]
    is_small = sum(int(layer.get_parameter("weight").nbytes) for layer in layers) <= PACKED_BYTES
    for layer in layers:
        layer.__class__ = FAST[type(layer)]
        vars(layer)["may_be_packed"] = is_small


def _plain(parameters: Mapping[str, Tensor]) -> bool:
    """Whether a layer has a weight of its own that is as it was made: compressed ones have others, or none."""
    weight = parameters.get("weight")
    return weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32


def _worth(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return x.dtype == weight.dtype == torch.float32 and x.numel() // x.shape[-1] * weight.numel() >= LEAST


def _product(layer: nn.Module, x: Tensor, weight: Float[Tensor, "o i"], bias: Tensor | None) -> Tensor:
    if _packs is not None and layer.may_be_packed:
        if id(layer) not in _packs:
            _packs[id(layer)] = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        weight = _packs[id(layer)]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
