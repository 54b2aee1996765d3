"""A model's matrix products on a CPU, by oneDNN where torch's own choice leaves half of the processor idle.

For float32 torch calls the Intel Math Kernel Library, which on processors of other makers does not use their 512-bit
vectors: oneDNN, which torch has as well and takes for 16-bit numbers, does. On an AMD EPYC of 2024 a product of the
shapes of small models takes 0.4 of the time; both add up in float32. Small products stay with torch: a call of oneDNN
costs some microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LEAST = 2**20
"""Multiplications from which on a product is faster by oneDNN."""


class _Linear(nn.Linear):
    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return _product(x, self.weight, self.bias) if _worth(x, self.weight) else super().forward(x)


class _Conv1D(Conv1D):
    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return _product(x, self.weight.mT, self.bias) if _worth(x, self.weight) else super().forward(x)


FAST = {nn.Linear: _Linear, Conv1D: _Conv1D}


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model compute by oneDNN, on processors and in precisions where that is faster.

    Weights stay where they are and may change; passes that gradients are wanted of are torch's own.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        return
    for module in model.modules():
        if type(module) in FAST and "forward" not in vars(module) and _plain(dict(module.named_parameters())):
            module.__class__ = FAST[type(module)]


def _plain(parameters: Mapping[str, Tensor]) -> bool:
    """Whether a layer has a weight of its own that is as it was made: compressed ones have others, or none."""
    weight = parameters.get("weight")
    return weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32


def _worth(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return x.dtype == weight.dtype == torch.float32 and x.numel() // x.shape[-1] * weight.numel() >= LEAST


def _product(x: Tensor, weight: Float[Tensor, "o i"], bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
