"""In the last block the MLP is computed for those tokens alone whose logits are wanted: no other token reads it.

Attention is not narrowed: it writes keys and values of all tokens. What the MLP writes to other tokens is zero instead,
which edits of `mlp_out` may change and nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from refusal_cmp.model.blocks import MLP_NAMES, Block
from refusal_cmp.model.hooks import first, with_first

WORTH = 0.75
"""Of a pass's tokens at most so many may be wanted: moving rows costs as well."""
CAPTURES = "transformers.utils.output_capturing"
"""Whose hooks stay on a model once it was asked for hidden states, and do nothing in passes that do not ask."""


def narrow_module(block: Block) -> nn.Module | None:
    """What may be the block's MLP: the module that writes to the stream, or, before a norm that does, the one so named.

    That a token of it is what it is without the others has to be seen in a pass.
    """
    named = [module for name, module in block.module.named_children() if any(word in name for word in MLP_NAMES)]
    children = set(block.module.children())
    found = (one for one in (block.mlp_out, *named) if one in children and _has_matrix(one))
    return None if block.also else next(found, None)


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def is_watched(module: nn.Module) -> bool:
    """Whether somebody looks at what the module gives, or changes it."""
    return any(getattr(hook, "__module__", "") != CAPTURES for hook in module._forward_hooks.values())


def narrowed(module: nn.Module, at: Int[Tensor, " m"], tokens: int) -> Iterator[Any]:
    """Hooks that have a module compute some of the tokens of a pass; none where that is not worth it.

    Nor are there any where something watches what is inside the module.

    Parameters
    ----------
    at
        Which of the pass's tokens, rows one after the other.
    """
    inside = (one for one in module.modules() if one is not module)
    if len(at) > WORTH * tokens or torch.is_grad_enabled() or any(map(is_watched, inside)):
        return
    shape: list[torch.Size] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> Any:
        shape.clear()
        if not args or not isinstance(args[0], Tensor) or args[0].numel() != tokens * args[0].shape[-1]:
            return None
        x = args[0]
        shape.append(x.shape)
        some = x.reshape(-1, x.shape[-1])[at.to(x.device)]
        return (some if x.ndim == 2 else some[None], *args[1:])

    def put(_: nn.Module, __: Any, output: Any) -> Any:
        if not shape:
            return None
        some = first(output)
        whole = some.new_zeros(tokens, some.shape[-1])
        whole[at.to(some.device)] = some.reshape(-1, some.shape[-1])
        return with_first(output, whole.view(*shape[0][:-1], -1))

    yield module.register_forward_pre_hook(take)
    yield module.register_forward_hook(put, prepend=True)  # edits see all tokens
