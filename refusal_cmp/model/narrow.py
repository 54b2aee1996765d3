"""In the last block, what is computed of a token for itself is computed where its logits are wanted: no other is read.

That is the MLP, and attention's queries and the projection of its output. Keys and values of all tokens are needed.
What is written to the other tokens is zero instead, which edits may change and nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from refusal_cmp.model.blocks import ATTENTION_NAMES, MLP_NAMES, Block
from refusal_cmp.model.hooks import after, first, with_first

WORTH = 0.75
"""Of a pass's tokens at most so many may be wanted: moving rows costs as well."""
QUERY_NAMES = ("q_proj", "q_b_proj", "query", "wq")
OUTPUT_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""Attention's, in the families of transformers."""
CAPTURES = "transformers.utils.output_capturing"
"""Whose hooks stay on a model once it was asked for hidden states, and do nothing in passes that do not ask."""
EDITS = after.__module__
"""Whose hooks are those of edits, which change unread tokens to no effect."""


def narrow_modules(block: Block) -> list[tuple[nn.Module, ...]]:
    """What may be the modules that compute each token of the block for itself: the most first.

    The MLP is the module that writes to the stream, or, before a norm that does, the one so named. That a token is what
    it is without the others has to be seen in a pass.
    """
    children = dict(block.module.named_children())
    named = [module for name, module in children.items() if any(word in name for word in MLP_NAMES)]
    mlps = [one for one in (block.mlp_out, *named) if one in children.values() and _has_matrix(one)]
    if block.also or not mlps:
        return []
    attentions = [module for name, module in children.items() if any(word in name for word in ATTENTION_NAMES)]
    inside = [pair for one in attentions for pair in one.named_children() if _has_matrix(pair[1])]
    around = [module for name, module in inside if name in (*QUERY_NAMES, *OUTPUT_NAMES)]
    return [(mlps[0], *around), (mlps[0],)] if around else [(mlps[0],)]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _is_watched(block: nn.Module) -> bool:
    """Whether anybody looks at what leaves a block, or anybody but an edit at what goes on inside it."""
    inside = (one for one in block.modules() if one is not block)
    seen = [hook for one in inside for hooks in (one._forward_pre_hooks, one._forward_hooks) for hook in hooks.values()]
    return _has_hooks(block) or any(_origin(hook) not in (CAPTURES, EDITS) for hook in seen)


def _has_hooks(module: nn.Module) -> bool:
    return any(_origin(hook) != CAPTURES for hook in module._forward_hooks.values())


def _origin(hook: Any) -> str:
    return getattr(hook, "__module__", "")


def narrowed(block: nn.Module, modules: Iterable[nn.Module], at: Int[Tensor, " m"], tokens: int) -> Iterator[Any]:
    """Hooks that have modules of a block compute some of the tokens of a pass; none where that is not worth it.

    Nor are there any where somebody looks at what the block makes of tokens, or where an edit acts inside a module.

    Parameters
    ----------
    at
        Which of the pass's tokens, rows one after the other.
    """
    if len(at) > WORTH * tokens or torch.is_grad_enabled() or _is_watched(block):
        return
    for module in modules:
        if not any(_has_hooks(one) for one in module.modules() if one is not module):
            yield from _narrowed(module, at, tokens)


def _narrowed(module: nn.Module, at: Int[Tensor, " m"], tokens: int) -> Iterator[Any]:
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
