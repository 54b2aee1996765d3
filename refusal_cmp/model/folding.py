"""Folds a plan into a model's weights, for the plans of which that is exact.

The residual stream is a sum: what the embedding writes, and what attention and MLP of every layer write. A
linear edit x ↦ T x + b on entry to layer l can move into the weights that wrote x if it does nothing new to
any of them: T M = M, where M is what the plan does to a contribution when it is written. Then

    embedding          E ← E Tᵀ           T: the edit on entry to the first layer
    writer of a site   W ← M W, β ← M β   M: the edit at the site
    offsets            added to the bias of the MLP of the layer before; of the first layer, to the embedding

which covers projections at all sites of all layers, reflection composed once, and additions. Arditi et al. 2024
(arXiv:2406.11717, section 4) orthogonalise weights in this way against one direction.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from refusal_cmp.config import SITES
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.model import ChatModel
from refusal_cmp.model.hooks import before, first, installed
from refusal_cmp.plan import Place, Plan

SAME = 1e-5
"""Relative size below which a term is rounding."""
PROBE = "Name a colour."
_WHERE = {"prompt": "of the prompt", "generated": "that were generated"}


class InexactError(Exception):
    """A plan that weights cannot do exactly; the message is why."""


@dataclass(frozen=True)
class Folding:
    """What a plan is as a change of weights."""

    embedding: LowRankEdit
    """The linear map of what the embedding writes."""
    writers: Mapping[Place, LowRankEdit]
    """By `attn_out` and `mlp_out` of a layer: the linear map of what is written there, and its offset."""
    shifts: Mapping[int, Float[Tensor, " d"]]
    """By layer: what is added to the stream on entry, beside the linear maps."""


@dataclass(frozen=True)
class _Writer:
    """A module whose weights write to the stream, and what its output is multiplied by before it enters."""

    module: nn.Module
    scale: float


def fold(plan: Plan, n_layers: int) -> Folding:
    """The plan as a change of weights; the message of `InexactError` says why there is none."""
    edits = {place: edit.to("cpu", torch.float64) for place, edit in plan.edits.items()}
    some = next((term for edit in edits.values() for term in edit.tensors().values()), None)
    if some is None:
        raise InexactError("it edits nothing")
    if plan.tokens != "all":
        raise InexactError(f"it acts on tokens {_WHERE[plan.tokens]} alone, and weights are the same for all")
    offset = torch.zeros(some.shape[-1], dtype=torch.float64)  # what the plan has added to the stream so far
    written: list[LowRankEdit] = []  # the distinct linear maps of what is in the stream
    embedding, shifts = LowRankEdit(), {}
    for layer in range(n_layers):
        at_entry, *at_writers = (edits.get(Place(layer, site), LowRankEdit()) for site in SITES)
        for edit in (at_entry, *at_writers):
            if not edit.affine:
                raise InexactError(f"at layer {layer} it {_beyond_linear(edit)}, which no linear map does")
        if not all(_keeps(at_entry, earlier) for earlier in written):
            raise InexactError(
                f"on entry to layer {layer} it changes what earlier layers have already read unchanged, and weights "
                "decide only what is written"
            )
        if layer == 0:
            embedding = _linear(at_entry)
        moved = at_entry(offset)
        if not torch.equal(moved, offset):
            shifts[layer] = moved - offset
        offset = moved + sum(edit.b for edit in at_writers if edit.b is not None)
        for edit in (at_entry, *at_writers) if layer == 0 else at_writers:
            if not any(_equal(_linear(edit), other) for other in written):
                written.append(_linear(edit))
    return Folding(embedding, {place: edit for place, edit in edits.items() if place.site != "resid_pre"}, shifts)


def folded_weights(model: ChatModel, folding: Folding) -> tuple[Any, dict[str, Tensor]]:
    """The configuration and the state dict of a folded model, on the CPU in the model's own precision.

    The embedding is untied from the head, which reads the stream and stays as it is; biases are added where they
    are needed and the configuration has a switch for them.
    """
    source = model.model
    if getattr(source.config, "quantization_config", None) is not None:
        raise InexactError("its weights are quantised")
    names = {module: name for name, module in source.named_modules()}
    tables, writers = _find_writers(model)
    config = copy.deepcopy(source.config)
    for one in {id(part): part for part in (config, config.get_text_config())}.values():
        one.tie_word_embeddings = False
    if any(tensor.is_meta for tensor in source.state_dict().values()):
        raise InexactError("its weights do not fit in memory")
    state = {name: tensor.detach().cpu().clone() for name, tensor in source.state_dict().items()}

    for table in tables:
        key = f"{names[table.module]}.weight"
        state[key] = _rows(folding.embedding, state[key])
    for place, edit in folding.writers.items():
        name, module = names[writers[place].module], writers[place].module
        weight, bias = f"{name}.weight", f"{name}.bias"
        state[weight] = _columns(_linear(edit), state[weight], isinstance(module, Conv1D))
        if bias in state:
            state[bias] = _rows(_linear(edit), state[bias])
        if edit.b is not None:
            _add_bias(model, config, state, name, edit.b / writers[place].scale)
    for layer, shift in folding.shifts.items():
        if layer == 0:
            key = f"{names[tables[0].module]}.weight"
            state[key] = (state[key].double() + shift / tables[0].scale).to(state[key].dtype)
        else:
            writer = writers[Place(layer - 1, "mlp_out")]
            _add_bias(model, config, state, names[writer.module], shift / writer.scale)
    return config, state


def _beyond_linear(edit: LowRankEdit) -> str:
    if edit.c is not None:
        return "acts on some vectors and not on others"
    if edit.keep is not None:
        return "keeps the norm of what it edits"
    return "reads absolute values" if edit.B is not None else "reads lengths"


def _linear(edit: LowRankEdit) -> LowRankEdit:
    return LowRankEdit(V=edit.V, A=edit.A)


def _keeps(edit: LowRankEdit, earlier: LowRankEdit) -> bool:
    """Whether T M = M: the edit's linear map T does nothing to what the map M has been applied to.

    T = I + Aᵀ V, so it is whether V M = V + (V A'ᵀ) V' vanishes.
    """
    if edit.V is None:
        return True
    read = edit.V if earlier.V is None or earlier.A is None else edit.V + (edit.V @ earlier.A.mT) @ earlier.V
    return bool(read.norm() <= SAME * edit.V.norm())


def _equal(one: LowRankEdit, other: LowRankEdit) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _rows(edit: LowRankEdit, rows: Tensor) -> Tensor:
    """M applied to each row."""
    return edit(rows.double()).to(rows.dtype)


def _columns(edit: LowRankEdit, weight: Tensor, transposed: bool) -> Tensor:
    """M W for a weight of shape (out, in), or (in, out) if it is transposed."""
    return _rows(edit, weight) if transposed else _rows(edit, weight.mT).mT.contiguous()


def _add_bias(model: ChatModel, config: Any, state: dict[str, Tensor], name: str, bias: Tensor) -> None:
    """Add to the bias of the linear module of this name; where there is none, give the architecture biases."""
    key = f"{name}.bias"
    if key not in state:
        text = config.get_text_config()
        if getattr(text, "mlp_bias", None) is not False:
            raise InexactError(
                f"it adds a constant, for which {name.split('.')[-1]} would need a bias, and the configuration of "
                f"{type(model.model).__name__} has no mlp_bias to switch on"
            )
        text.mlp_bias = True
        with torch.device("meta"):
            shapes = type(model.model)(config).state_dict()
        for missing in shapes.keys() - state.keys():
            state[missing] = torch.zeros(shapes[missing].shape, dtype=model.model.dtype)
    state[key] = (state[key].double() + bias).to(state[key].dtype)


def _find_writers(model: ChatModel) -> tuple[list[_Writer], dict[Place, _Writer]]:
    """The modules whose weights are what enters the stream, from one probe pass.

    They are the embeddings that add up to the stream on entry to the first block, and behind each site the linear
    module whose output is the site itself.
    """
    sites = {
        Place(layer, site): getattr(block, site)
        for layer, block in enumerate(model.blocks)
        for site in ("attn_out", "mlp_out")
    }
    inside = {place: [m for m in site.modules() if isinstance(m, nn.Linear | Conv1D)] for place, site in sites.items()}
    embeddings = [module for module in model.model.modules() if isinstance(module, nn.Embedding)]
    outputs: dict[nn.Module, Tensor] = {}
    entry: list[Tensor] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = first(output).double().cpu()

    watched = {*embeddings, *sites.values(), *(module for modules in inside.values() for module in modules)}
    handles = [module.register_forward_hook(record) for module in watched]
    handles.append(before(model.blocks[0].module, lambda stream: entry.append(stream.double().cpu())))
    batch = model.batch(model.tokenize([PROBE]))
    with torch.inference_mode(), installed(handles):
        model.last_logits(batch)

    writers = {}
    for place, site in sites.items():
        block = model.blocks[place.layer]
        if block.also or block.carry != 1:
            raise InexactError(f"layer {place.layer} does more than add what attention and MLP write")
        matching = [module for module in inside[place] if module in outputs and _close(outputs[module], outputs[site])]
        if not matching:
            raise InexactError(
                f"what layer {place.layer} adds to the stream at {place.site} comes out of a {type(site).__name__} and "
                "not of one linear map: it is normalised on its way, or mixed from experts"
            )
        writers[place] = _Writer(matching[-1], block.scale)
    return _tables(model, [module for module in embeddings if module in outputs], outputs, batch.ids, entry[0]), writers


def _tables(
    model: ChatModel, embeddings: list[nn.Embedding], outputs: Mapping[nn.Module, Tensor], ids: Tensor, entry: Tensor
) -> list[_Writer]:
    """The embeddings that add up to the stream, that of the tokens first, with the scale from weights to stream."""
    tokens = model.model.get_input_embeddings()
    used = [tokens, *(m for m in embeddings if m is not tokens and outputs[m].shape[-1] == entry.shape[-1])]
    total = torch.stack([outputs[module].expand(entry.shape) for module in used]).sum(0)
    scale = float((total * entry).sum() / (total * total).sum())
    if not _close(scale * total, entry):
        raise InexactError("what enters the first layer is not a sum of embeddings: it is normalised on its way")
    rows = tokens.weight.detach()[ids].double().cpu()
    of_tokens = float((rows * outputs[tokens]).sum() / (rows * rows).sum())  # Gemma-3 scales inside the module
    return [_Writer(module, scale * of_tokens) for module in used]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and bool((a.reshape(b.shape) - b).norm() <= 1e-3 * b.norm())
