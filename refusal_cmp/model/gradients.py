"""How a value of the logits changes with what stands at the places where edits act: one pass forward and one back.

No weight has a gradient, and nothing before the first place is kept, so that the pass back costs as much as the one
forward. Prompts do not share rows here: what one row holds of several has one gradient for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.batching import PASS_ROWS, Batch, RowBudget
from refusal_cmp.model.chat_model import ChatModel
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.model.packing import Pack
from refusal_cmp.plan import Place


class Slope(NamedTuple):
    """What stands at a place in the unedited pass, and the gradient there of each prompt's value."""

    place: Place
    x: Float[Tensor, "n s d"]
    """As edits see it; zero at padding."""
    gradient: Float[Tensor, "n s d"]


def over_slopes(
    model: ChatModel,
    instructions: Sequence[str],
    value: Callable[[Float[Tensor, "n vocab"]], Float[Tensor, " n"]],
    places: Collection[Place],
    work: Callable[[list[int], Float[Tensor, " n"], list[Slope]], None],
    batch_size: int | None = None,
) -> None:
    """Do the work on the slopes of one batch after the other, of fewer prompts whenever memory runs out.

    Parameters
    ----------
    value
        Of the last position's logits.
    work
        Given the prompts' indices, their values, and a slope for each module that writes at a place.
    """

    def row(some: Sequence[Pack]) -> int:
        return model.n_layers * model.row_bytes(some[-1].tokens)  # a graph keeps what each block makes

    def on_batch(rows: list[int], batch: Batch) -> None:
        work(rows, *slopes(model, batch, value, places))

    budget = RowBudget(model.device, batch_size or PASS_ROWS)
    model.over_packs(model.tokenize(instructions), budget, row, on_batch, shared=False)


def slopes(
    model: ChatModel,
    batch: Batch,
    value: Callable[[Float[Tensor, "n vocab"]], Float[Tensor, " n"]],
    places: Collection[Place],
) -> tuple[Float[Tensor, " n"], list[Slope]]:
    """The value of each prompt of a batch whose rows hold one each, and its slopes, in the order of the blocks."""
    seen: list[tuple[Place, float, Tensor]] = []

    def hook(place: Place, scale: float) -> Callable[[Tensor], Tensor]:
        def see(x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()  # the graph begins at the first place
            seen.append((place, scale, x))
            return x

        return see

    with torch.enable_grad(), _fixed_weights(model), installed(_hooks(model, places, hook)):
        values = value(model.forward(1, **batch.inputs, use_cache=False).logits[:, -1])
        if not values.requires_grad:
            raise RefusalCmpError(
                f"The logits of {model.name} have no gradient, which attribution needs; leave it out, or load the "
                "model without quantization.",
                ranking_rules="",
                rank_key="",
            )
        gradients = torch.autograd.grad(values.sum(), [x for _, _, x in seen])
    real = batch.mask[..., None]
    return values.detach(), [
        Slope(place, *(torch.where(real.to(one.device), one, 0) for one in (x.detach() * scale, gradient / scale)))
        for (place, scale, x), gradient in zip(seen, gradients, strict=True)
    ]


def _hooks(model: ChatModel, places: Collection[Place], hook: Callable[[Place, float], Any]) -> Iterator[Any]:
    """A hook on each module that writes at a place; where several add up, each has the gradient of the sum."""
    for place in sorted(places):
        block = model.blocks[place.layer]
        if place.site == "resid_pre":
            yield before(block.module, hook(place, 1.0))
        else:
            for module in block.writers(place.site):
                yield after(module, hook(place, block.scale))


@contextmanager
def _fixed_weights(model: ChatModel) -> Iterator[None]:
    """Inside the block no weight has a gradient."""
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
