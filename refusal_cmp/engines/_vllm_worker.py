"""What runs inside vLLM's workers: finds the sites of vLLM's decoder layers, proves them, and edits there.

Most of vLLM's layers hand on (hidden_states, residual) and leave the addition to the next norm; the residual
stream is then their sum. Others hand on the stream alone, some of them beside a residual that nobody reads.
So nothing is taken for granted. A first probe pass finds, layer by layer, what adds up:

    entry of layer l + 1 = exit of layer l = entry of layer l + s · (attn_out + mlp_out)

A second one ablates a random direction û at every site, after which no layer's exit may have a component
along û, and the logits must have changed. Whatever does not pass is refused.

The engine speaks to this class by collective RPC. Edits come as the bytes of a safetensors file, answers are
strings, so that nothing is ever pickled.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.model.blocks import ATTENTION_NAMES, MLP_NAMES
from refusal_cmp.model.hooks import after, first
from refusal_cmp.plan import Place, Plan

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
COARSE_ROUNDING = 2**-7
"""For 16-bit models. What is lost in an addition, relative to the stream."""
SUM, ALONE = 0, 1
"""Readings of what layers hand on: the residual stream is the sum of hidden_states and residual, or the first."""
LEFT_OVER = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE_LEFT_OVER = 0.1
"""Share of a direction that may be left after its ablation, of what is there without."""


@dataclass(frozen=True)
class LayerSites:
    """The two modules of a decoder layer that write to the stream, and the scale of what they write."""

    layer: nn.Module
    attn_out: nn.Module
    mlp_out: nn.Module
    scale: float


@dataclass
class Record:
    """What one decoder layer did in the probe pass; float64 on the CPU."""

    entries: list[Tensor] = field(default_factory=list)
    """What the layer takes in both readings: the sum of hidden_states and residual, and hidden_states alone."""
    exits: list[Tensor] = field(default_factory=list)
    """What the layer returns in both readings: the sum of its tensors, and the first alone."""
    children: dict[str, Tensor] = field(default_factory=dict)


class UnprovenError(Exception):
    """The architecture's sites cannot be found or do not do what they should; the message is the reason."""


class PlanWorker:
    """Mixed into vLLM's worker class (`worker_extension_cls`); the public methods are its RPCs."""

    def refusal_cmp_begin(self: Any) -> str:
        """Find the decoder layers, and record the next forward pass; '' or why there are none."""

        def begin() -> None:
            n_layers = self.model_config.hf_text_config.num_hidden_layers
            self._refusal_cmp = Editor(self.get_model(), n_layers)
            self._refusal_cmp.record()

        return _reason(begin)

    def refusal_cmp_find(self: Any) -> str:
        """Find the sites from what was recorded, and record the next pass under a test edit; '' or why not."""
        return _reason(self._refusal_cmp.find)

    def refusal_cmp_prove(self: Any) -> str:
        """Check what was recorded under the test edit, and remove it; '' or why the sites are not proven."""
        return _reason(self._refusal_cmp.prove)

    def refusal_cmp_install(self: Any, tensors: bytes, metadata: dict[str, str]) -> None:
        """Install a plan, as `Plan.to_tensors` gives it, in the place of the one before."""
        self._refusal_cmp.install(Plan.from_tensors(load(tensors), metadata).edits)

    def refusal_cmp_non_finite(self: Any) -> str:
        """Whether any logits held a NaN or an infinity since `refusal_cmp_clear`: 'yes' or ''."""
        return "yes" if self._refusal_cmp.non_finite else ""

    def refusal_cmp_clear(self: Any) -> None:
        """Forget that logits were not finite, and the keys and values: attention multiplies even masked ones."""
        self._refusal_cmp.non_finite.zero_()
        for cache in self.model_runner.kv_caches:
            cache.zero_()


class Editor:
    """Hooks on the decoder layers of one vLLM model."""

    def __init__(self, model: nn.Module, n_layers: int) -> None:
        self.model = model
        self.layers = layers = _decoder_layers(model, n_layers)
        self.sites: list[LayerSites] = []
        self._reading = SUM
        some = next(layers.parameters())
        self.device, self.dtype = some.device, _dtype(layers)
        self._edits: list[Any] = []
        self._recording: list[Any] = []
        self._records: list[Record] = []
        self._logits: list[Tensor] = []
        self._plain: list[Tensor] = []
        self.non_finite = torch.zeros((), dtype=torch.bool, device=self.device)
        self._watch_logits()

    def record(self) -> None:
        """Record the next forward pass: streams, children's outputs and logits."""
        self._records = [Record() for _ in self.layers]
        self._logits = []
        for layer, record in zip(self.layers, self._records, strict=True):
            self._recording += [
                _on_entry(layer, partial(_record_entry, record)),
                layer.register_forward_hook(partial(_record_exit, record)),
                *(
                    child.register_forward_hook(partial(_record_child, record, name))
                    for name, child in layer.named_children()
                ),
            ]

    def find(self) -> None:
        """The sites, from the pass that was recorded; then the test edit, recorded as well."""
        records, logits = self._recorded()
        for reading in (SUM, ALONE):
            try:
                self.sites = _sites(self.layers, records, reading, self._rounding)
            except UnprovenError:
                if reading == ALONE:
                    raise
            else:
                self._reading = reading
                break
        self._direction = _random_direction(records[0].exits[0].shape[-1])
        self._plain = [*(record.exits[self._reading] @ self._direction for record in records), logits]
        row = self._direction[None]
        ablation = LowRankEdit(V=row, A=-row)
        self.install(
            {
                Place(layer, site): ablation
                for layer in range(len(self.layers))
                for site in ("resid_pre", "attn_out", "mlp_out")
            }
        )
        self.record()

    def prove(self) -> None:
        """The test edit left nothing along its direction in any layer's exit, and it changed the logits."""
        records, logits = self._recorded()
        self.install({})
        *plain, plain_logits = self._plain
        self._plain = []
        most = LEFT_OVER.get(self.dtype, COARSE_LEFT_OVER)
        for index, (record, before) in enumerate(zip(records, plain, strict=True)):
            left = float((record.exits[self._reading] @ self._direction).norm() / before.norm())
            if not left <= most:
                raise UnprovenError(
                    f"an edit does not reach the residual stream: {left:.1%} of an ablated direction is left after "
                    f"layer {index} ({type(self.layers[index]).__name__})"
                )
        if logits.shape == plain_logits.shape and torch.equal(logits, plain_logits):
            raise UnprovenError("an edit of the residual stream does not change the logits")

    def install(self, edits: dict[Place, LowRankEdit]) -> None:
        """The hooks of these edits in the place of those before."""
        for handle in self._edits:
            handle.remove()
        self._edits = [self._hook(place, edit) for place, edit in edits.items()]

    def _hook(self, place: Place, edit: LowRankEdit) -> Any:
        site = self.sites[place.layer]
        edit = edit.to(self.device, torch.promote_types(self.dtype, torch.float32))
        if place.site == "resid_pre":
            return _on_entry(site.layer, partial(_edited_entry, edit, self._reading))
        module = site.attn_out if place.site == "attn_out" else site.mlp_out
        if site.scale == 1:
            return after(module, edit)
        return after(module, lambda x: edit(x * site.scale) / site.scale)

    def _watch_logits(self) -> None:
        """Notes logits that are not finite, without waiting for the device, and keeps those of a probe pass."""
        compute: Any = self.model.compute_logits

        def watched(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if logits is not None:  # ranks that hold no logits
                self.non_finite |= ~logits.isfinite().all()
                if self._recording:
                    self._logits.append(logits.double().cpu())
            return logits

        self.model.compute_logits = watched  # type: ignore[assignment]

    def _recorded(self) -> tuple[list[Record], Tensor]:
        for handle in self._recording:
            handle.remove()
        self._recording = []
        if not all(record.entries and record.exits for record in self._records):
            raise UnprovenError("its decoder layers run without their hooks (compiled or captured as a graph)")
        return self._records, torch.cat(self._logits) if self._logits else torch.empty(0)

    @property
    def _rounding(self) -> float:
        return ROUNDING.get(self.dtype, COARSE_ROUNDING)


def _reason(work: Callable[[], None]) -> str:
    try:
        work()
    except UnprovenError as error:
        return str(error)
    return ""


def _random_direction(width: int) -> Tensor:
    """A unit direction, float64, the same in every worker."""
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return direction / direction.norm()


def _decoder_layers(model: nn.Module, n: int) -> nn.ModuleList:
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    found = [(name.count("."), name, m) for name, m in lists if "vision" not in name]
    if not found:
        raise UnprovenError(f"{type(model).__name__} has no list of {n} decoder layers")
    return min(found, key=lambda one: one[:2])[2]


def _dtype(layers: nn.Module) -> torch.dtype:
    """What the layers compute in: quantised weights have integer types beside it."""
    return next(p.dtype for p in layers.parameters() if p.is_floating_point())


def _on_entry(layer: nn.Module, change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None] | None]) -> Any:
    """A hook that sees, and may replace, the hidden_states and the residual that a decoder layer takes."""
    names = list(inspect.signature(layer.forward).parameters)
    if "hidden_states" not in names:
        raise UnprovenError(f"{type(layer).__name__} takes no hidden_states, but {', '.join(names)}")

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        changed = change(given["hidden_states"], given.get("residual"))
        if changed is None:
            return None
        given["hidden_states"], residual = changed
        if residual is not None:
            given["residual"] = residual
        return (), given

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _edited_entry(
    edit: LowRankEdit, reading: int, hidden: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The edited stream, with zeros for a residual that is still to be added."""
    if reading == ALONE or residual is None:
        return edit(hidden), residual
    return edit(hidden + residual), torch.zeros_like(residual)


def _exact(hidden: Tensor) -> Tensor:
    """Rows of the stream, float64 on the CPU: a copy, as vLLM's kernels work in place."""
    return hidden.detach().double().cpu().reshape(-1, hidden.shape[-1])


def _record_entry(record: Record, hidden: Tensor, residual: Tensor | None) -> None:
    if not record.entries:
        alone = _exact(hidden)
        record.entries = [alone if residual is None else alone + _exact(residual), alone]


def _record_exit(record: Record, _: nn.Module, __: Any, output: Any) -> None:
    if not record.exits:
        tensors = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]
        rows = [_exact(one) for one in tensors if one.shape == tensors[0].shape]
        record.exits = [torch.stack(rows).sum(0), rows[0]]


def _record_child(record: Record, name: str, _: nn.Module, __: Any, output: Any) -> None:
    hidden = first(output)
    if not record.entries or name in record.children or not isinstance(hidden, Tensor):
        return
    if hidden.numel() == record.entries[0].numel():
        record.children[name] = _exact(hidden)


def _sites(layers: nn.ModuleList, records: list[Record], reading: int, rounding: float) -> list[LayerSites]:
    """The sites of all layers, in one reading of what the layers take and return."""
    for now, then in itertools.pairwise(records):
        left, entered = now.exits[reading], then.entries[reading]
        if not float((left - entered).norm()) <= rounding * float(entered.norm()):
            raise UnprovenError("what a decoder layer returns is not what the next one takes")
    return [
        _site(index, layer, record, reading, rounding)
        for index, (layer, record) in enumerate(zip(layers, records, strict=True))
    ]


def _site(index: int, layer: nn.Module, record: Record, reading: int, rounding: float) -> LayerSites:
    """The two children whose outputs, times a scale, are what the layer adds to the stream."""
    leaving = record.exits[reading]
    added = leaving - record.entries[reading]
    allowed = rounding * float(leaving.norm())
    fitting = []
    for pair in itertools.combinations(record.children, 2):
        written = record.children[pair[0]] + record.children[pair[1]]
        scale = float((written * added).sum() / (written * written).sum().clamp(min=1e-300))
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        error = float((added - scale * written).norm())
        if error <= allowed and error <= 0.1 * float(added.norm()):
            fitting.append((-_named(pair), error, pair, scale))
    if not fitting:
        raise UnprovenError(
            f"in layer {index} ({type(layer).__name__}) no two modules' outputs add up to what the layer adds to the "
            f"residual stream; looked at {', '.join(record.children) or 'no module of the stream’s width'}"
        )
    _, _, (attention, mlp), scale = min(fitting)
    return LayerSites(layer, layer.get_submodule(attention), layer.get_submodule(mlp), scale)


def _named(pair: tuple[str, str]) -> int:
    attention, mlp = (name.lower() for name in pair)
    return any(word in attention for word in ATTENTION_NAMES) + any(word in mlp for word in MLP_NAMES)
