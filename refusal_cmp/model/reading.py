"""Reads a model prompt by prompt: residual streams for extraction, and any value that a prompt has.

The pass for extraction ends on entry to the last block: nothing behind it is read, so neither that block nor the
logits are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_cmp.activations import MIN_PROMPTS, Activations, Needs, dev_split, numbered
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.chat_model import Batch, ChatModel
from refusal_cmp.model.hooks import before, installed
from refusal_cmp.progress import Progress, silent
from refusal_cmp.statistics.shrinkage import covariance, shrunk
from refusal_cmp.subspace import Along, ClassCovariances, Component


def collect(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    needs: Needs = "activations",
    dev_share: float = 0.2,
    seed: int = 42,
    positions: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    categories: Mapping[str, str] | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Activations:
    """Activations of both classes with a stratified dev split, drawn with `seed`, from one set of forward passes.

    A prompt that is repeated counts once: copies in both parts of the split would make the evidence worthless.

    Parameters
    ----------
    positions
        Where they are read; by default at the post-instruction tokens. Every rendered prompt has to reach so far back.
    categories
        What prompts are about, by prompt; for methods that look at that.

    Raises
    ------
    RefusalCmpError
        If there are fewer than 10 different prompts of a kind, a prompt is of both kinds, or activations are
        not finite.
    """
    harmful, harmless = _distinct(harmful, harmless)
    prompts = [*harmful, *harmless]
    labels = torch.arange(len(prompts)) < len(harmful)
    dev = dev_split(labels, dev_share, seed)
    group = None if categories is None else numbered([categories.get(prompt, "") for prompt in prompts])
    positions = positions or model.positions
    first = -min(positions)
    index = [first + position for position in positions]
    if first > len(model.positions):
        _check_reach(model, prompts, first)
    activations = Activations(
        positions, model.n_layers, model.d_model, labels, dev, needs=needs, group=group, folder=folder
    )
    with progress("reading activations", len(prompts)) as advance:

        def read(rows: list[int], batch: Batch) -> None:
            read_all: dict[int, Tensor] = {}  # added only when complete: a batch may run out of memory on the way
            read_streams(model, batch, lambda layer, x: read_all.update({layer: x[:, index]}), first)
            for layer, x in read_all.items():
                activations.add(rows, layer, x)
            activations.done(rows)
            advance(len(rows))

        kept = 4 * len(positions) * model.n_layers * model.d_model
        model.over_batches(prompts, batch_size, read, kept)
    return activations


def _distinct(harmful: Sequence[str], harmless: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each prompt once, in order, after checking that there are enough and none is of both kinds."""
    both = set(harmful) & set(harmless)
    if both:
        raise RefusalCmpError(
            f"{len(both)} prompts are harmful and harmless at once, such as {min(both)!r}; remove them from one set."
        )
    kinds = list(dict.fromkeys(harmful)), list(dict.fromkeys(harmless))
    if min(map(len, kinds)) < MIN_PROMPTS:
        raise RefusalCmpError(
            f"Extraction needs at least {MIN_PROMPTS} different prompts of each kind, and there are {len(kinds[0])} "
            f"harmful and {len(kinds[1])} harmless ones; give more."
        )
    return kinds


def _check_reach(model: ChatModel, prompts: Sequence[str], n: int) -> None:
    """RefusalCmpError where a rendered prompt has fewer than n tokens."""
    lengths = {prompt: len(ids) for prompt, ids in zip(prompts, model.tokenize(prompts), strict=True)}
    shortest = min(lengths, key=lambda prompt: lengths[prompt])
    if lengths[shortest] < n:
        raise RefusalCmpError(
            f"A method reads position -{n}, and the prompt {shortest!r} has {lengths[shortest]} tokens with its "
            "template; leave that prompt out."
        )


def class_covariances(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    along: Mapping[Along, Float[Tensor, "k d"]],
    *,
    dev_share: float = 0.2,
    seed: int = 42,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> ClassCovariances:
    """Covariances of the coordinates that rows read, over the prompts that the class means of `collect` are of.

    They are shrunk (`refusal_cmp.statistics.shrinkage`), as there may be no more prompts than directions.

    Parameters
    ----------
    along
        The rows, by the component and the layer that they read at.
    """
    kinds = _distinct(harmful, harmless)
    prompts = [*kinds[0], *kinds[1]]
    labels = torch.arange(len(prompts)) < len(kinds[0])
    train = ~dev_split(labels, dev_share, seed)
    found = {key: torch.zeros(len(prompts), len(rows), dtype=torch.float64) for key, rows in along.items()}
    at_layer = {layer: [key for key in along if key[2] == layer] for *_, layer in along}
    reach = max((-component.position for component, *_ in along), default=1)
    with progress("reading covariances", len(prompts)) as advance:

        def read(indices: list[int], batch: Batch) -> None:
            def keep(layer: int, x: Float[Tensor, "b p d"]) -> None:
                for key in at_layer.get(layer, ()):
                    found[key][indices] = x[:, key[0].position].double().cpu() @ along[key].mT

            read_streams(model, batch, keep, reach)
            advance(len(indices))

        model.over_batches(prompts, batch_size, read)

    def of_class(x: Float[Tensor, "n k"], rows: Bool[Tensor, " n"]) -> Float[Tensor, "k k"]:
        return shrunk(covariance(x[rows]), int(rows.sum()))

    return ClassCovariances(
        {key: (of_class(x, labels & train), of_class(x, ~labels & train)) for key, x in found.items()}
    )


class _EnoughReadError(Exception):
    """Ends a forward pass from within: everything that was wanted has been read."""


def read_streams(
    model: ChatModel, batch: Batch, read: Callable[[int, Float[Tensor, "b p d"]], None], n_positions: int
) -> None:
    """Give `read` each layer and its `resid_pre` at the last positions, and stop on entry to the last block."""
    last = model.n_layers - 1

    def on_entry(layer: int, stream: Float[Tensor, "b s d"]) -> None:
        read(layer, batch.last(stream, n_positions))
        if layer == last:
            raise _EnoughReadError

    handles = [before(block.module, partial(on_entry, layer)) for layer, block in enumerate(model.blocks)]
    with torch.inference_mode(), installed(handles), suppress(_EnoughReadError):
        model.last_logits(batch)


def stream_at(model: ChatModel, batch: Batch, layer: int) -> Float[Tensor, "b s d"]:
    """The whole residual stream of the batch's rows on entry to one layer, where the pass ends."""
    found: list[Tensor] = []

    def on_entry(stream: Float[Tensor, "b s d"]) -> None:
        found.append(stream)
        raise _EnoughReadError

    handles = [before(model.blocks[layer].module, on_entry)]
    with torch.inference_mode(), installed(handles), suppress(_EnoughReadError):
        model.last_logits(batch)
    return found[0]


def last_streams(model: ChatModel, batch: Batch, layers: Sequence[int]) -> Float[Tensor, "n l d"]:
    """The residual stream on entry to each of some layers at every prompt's last token; the last one ends the pass.

    It is what the blocks before have left there: edits of the layer's own `resid_pre` act after it is read.
    """
    found: dict[int, Tensor] = {}

    def on_entry(layer: int, stream: Float[Tensor, "b s d"]) -> None:
        found[layer] = batch.last(stream)[:, 0]
        if layer == max(layers):
            raise _EnoughReadError

    handles = [before(model.blocks[layer].module, partial(on_entry, layer), prepend=True) for layer in layers]
    with torch.inference_mode(), installed(handles), suppress(_EnoughReadError):
        model.last_logits(batch)
    return torch.stack([found[layer].to(model.device) for layer in layers], dim=1)


def streams_at(
    model: ChatModel, batch: Batch, components: Sequence[Component]
) -> tuple[Float[Tensor, "b c d"], Float[Tensor, "b vocab"]]:
    """The residual stream on entry to each component's block, at its position, and the logits of the same pass.

    The streams are float64. Edits in force act before they are read.
    """
    seen: dict[int, Tensor] = {}
    layers = {component.layer for component in components}
    with installed(before(model.blocks[layer].module, partial(seen.__setitem__, layer)) for layer in layers):
        logits = model.last_logits(batch)
    found = [batch.last(seen[one.layer], -one.position)[:, 0].double() for one in components]
    return torch.stack(found, dim=1), logits
