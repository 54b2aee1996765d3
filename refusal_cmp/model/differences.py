"""Where and how the weights of two checkpoints of one model differ: Δ = W' − W of every weight.

    relative   |Δ|_F / |W|_F
    rank       singular values of Δ above what rounding W' can make: 4 s (√m + √n), for noise of standard
               deviation s in every element of an m × n matrix (Davidson & Szarek 2001, theorem II.13), where
               s = ε |W'|_F / √(12 m n) and ε is the precision of the numbers in W', not of their container
    energy     share of |Δ|²_F in the leading singular directions

Large matrices are decomposed by a randomised range finder with power iterations (Halko, Martinsson & Tropp 2011,
algorithm 4.4), which finds the `LEADING` first singular values: a rank of `LEADING` means that or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from refusal_cmp.model.chat_model import ChatModel
from refusal_cmp.model.hooks import installed

LEADING = 128
POWER = 2
ROUNDINGS = 4
"""Times the noise of one rounding: weights that were merged, scaled and merged again were rounded more than once."""
SEED = 0
PROBE = "Name a colour."
Side = str
"""`writes` or `reads`: what a matrix does to the residual stream; empty where it does neither, or is no matrix."""


class Weight(NamedTuple):
    """A weight's place: the same in two checkpoints, whatever their classes are wrapped in."""

    layer: int | None
    module: str
    """`self_attn.o_proj.weight` in a block; `embedding`, `head`, or its whole name outside."""


@dataclass(frozen=True)
class Difference:
    """How one weight differs."""

    weight: Weight
    shape: tuple[int, ...]
    before: float
    """|W|_F"""
    change: float
    """|Δ|_F"""
    rank: int | None = None
    """None of what is no matrix."""
    energy: tuple[float, ...] = ()
    """Shares of |Δ|²_F, cumulated over the leading singular directions; nothing where nothing differs."""
    side: Side = ""
    axis: Float[Tensor, " d"] | None = None
    """The leading singular vector on the side of the residual stream: left of what writes, right of what reads."""


def weights_of(model: ChatModel) -> dict[Weight, Tensor]:
    """Every weight of a model by its place; the head also where it is tied to the embedding."""
    found = {
        Weight(layer, name): tensor
        for layer, block in enumerate(model.blocks)
        for name, tensor in block.module.named_parameters()
    }
    inside = {id(tensor) for tensor in found.values()}
    embedding, head = (get() for get in (model.model.get_input_embeddings, model.model.get_output_embeddings))
    ends = {"embedding": embedding.weight} | ({} if head is None else {"head": head.weight})
    inside |= {id(tensor) for tensor in ends.values()}
    others = {name: tensor for name, tensor in model.model.named_parameters() if id(tensor) not in inside}
    return {
        **{Weight(None, name): tensor.detach() for name, tensor in (ends | others).items()},
        **{place: tensor.detach() for place, tensor in found.items()},
    }


def differences(before: Mapping[Weight, Tensor], model: ChatModel) -> Iterator[Difference]:
    """Each weight of a model against that in its place before, outside the blocks first; one that is absent is zero."""
    sides, weights = _sides(model), weights_of(model)
    for place in dict.fromkeys([*weights, *before]):
        after = weights[place] if place in weights else torch.zeros_like(before[place])
        old = before[place].to(after.device) if place in before else torch.zeros_like(after)
        yield _difference(place, old, after, *sides.get(place, ("", False)))


def _difference(place: Weight, before: Tensor, after: Tensor, side: Side, transposed: bool) -> Difference:
    old, new = before.double(), after.double()
    delta = new - old
    found = Difference(place, tuple(after.shape), float(old.norm()), float(delta.norm()), side=side)
    if after.dim() != 2:
        return found
    if found.change == 0 or not math.isfinite(found.change):
        return Difference(place, found.shape, found.before, found.change, rank=0, side=side)
    left, values, right = leading(delta.mT if transposed else delta)
    m, n = after.shape
    noise = _precision(after) * float(new.norm()) / math.sqrt(12 * m * n) * (math.sqrt(m) + math.sqrt(n))
    axis = {"writes": left[:, 0], "reads": right[0]}.get(side)
    return Difference(
        place,
        found.shape,
        found.before,
        found.change,
        rank=int((values > ROUNDINGS * noise).sum()),
        energy=tuple((values.square().cumsum(0) / found.change**2).tolist()),
        side=side,
        axis=None if axis is None else axis.cpu(),
    )


def leading(x: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m q"], Float[Tensor, " q"], Float[Tensor, "q n"]]:
    """The leading singular vectors and values, largest first; all of a small matrix."""
    if min(x.shape) <= 2 * LEADING:
        return tuple(torch.linalg.svd(x, full_matrices=False))
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(x.shape[1], LEADING + 8, dtype=x.dtype, generator=generator).to(x.device)
    basis = torch.linalg.qr(x @ start).Q
    for _ in range(POWER):
        basis = torch.linalg.qr(x @ torch.linalg.qr(x.mT @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.mT @ x, full_matrices=False)
    return (basis @ left)[:, :LEADING], values[:LEADING], right[:LEADING]


def _precision(x: Tensor) -> float:
    """ε of the coarsest format that holds all these numbers: a file in bfloat16 may be loaded as float32."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(x.to(dtype).to(x.dtype), x):
            return torch.finfo(dtype).eps
    return torch.finfo(x.dtype).eps


def _sides(model: ChatModel) -> dict[Weight, tuple[Side, bool]]:
    """What each matrix does to the stream, and whether it is stored transposed, as inputs by outputs.

    What writes at a site is the last linear map before it; others of the stream's width read it, in one probe pass.
    """
    d, order = model.d_model, []
    linear = {
        (layer, name): module
        for layer, block in enumerate(model.blocks)
        for name, module in block.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    sites = {site for block in model.blocks for site in (block.attn_out, block.mlp_out)}

    def note(module: nn.Module, *_: Any) -> None:
        order.append(module)

    with installed(module.register_forward_hook(note) for module in {*linear.values(), *sites}):
        model.last_logits(model.batch(model.tokenize([PROBE])))
    writers, last = set(), None
    for module in order:
        last = module if isinstance(module, nn.Linear | Conv1D) else last
        if module in sites and last is not None:
            writers.add(last)
    found: dict[Weight, tuple[Side, bool]] = {
        Weight(None, "embedding"): ("writes", True),  # a row for each token is what it writes
        Weight(None, "head"): ("reads", False),
    }
    for (layer, name), module in linear.items():
        outputs, inputs = reversed(module.weight.shape) if isinstance(module, Conv1D) else module.weight.shape
        side = "writes" if module in writers and outputs == d else "reads" if inputs == d else ""
        found[Weight(layer, f"{name}.weight")] = side, isinstance(module, Conv1D)
    return found
