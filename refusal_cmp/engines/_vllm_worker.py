"""What runs inside vLLM's workers: finds the sites of vLLM's decoder layers, edits there, and proves that it does.

Most of vLLM's layers hand on (hidden_states, residual) and leave the addition to the next norm; the residual
stream is then their sum. Others hand on the stream alone, some of them beside a residual that nobody reads.
So nothing is taken for granted. As soon as the model is loaded, before anything is compiled, one eager pass in which
every module of a layer returns noise finds, layer by layer, what adds up:

    entry of layer l + 1 = exit of layer l = entry of layer l + s · (attn_out + mlp_out)

Hooks at these sites call the operator of `refusal_cmp.engines._vllm_operator`, and stay; what is compiled and captured
after that holds them. Once vLLM is ready, a random direction û is ablated at every site in the passes that count, as
they will be run: no layer's exit may then have a component along û, and the logits must have changed. Whatever
does not pass is refused.

The engine speaks to this class by collective RPC. Edits come as the bytes of a safetensors file, answers are
strings, so that nothing is ever pickled.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from refusal_cmp.config import SITES
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines._vllm_operator import OF, SEEN, Edits
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.blocks import ATTENTION_NAMES, MLP_NAMES
from refusal_cmp.model.hooks import after, first, with_first
from refusal_cmp.plan import Place, Plan

WORKERS = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "cuda": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}
"""The worker class that vLLM takes by itself, by kind of device."""
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
    attn_out: str
    mlp_out: str
    scale: float


@dataclass
class Record:
    """What one decoder layer did in the pass that finds its sites; float64 on the CPU."""

    entries: list[Tensor] = field(default_factory=list)
    """What the layer takes in both readings: the sum of hidden_states and residual, and hidden_states alone."""
    exits: list[Tensor] = field(default_factory=list)
    """What the layer returns in both readings: the sum of its tensors, and the first alone."""
    children: dict[str, Tensor] = field(default_factory=dict)
    """The noise that each of its modules returned."""


class UnprovenError(Exception):
    """The architecture's sites cannot be found or do not do what they should; the message is the reason."""


class PlanWorker:
    """Mixed into vLLM's worker class; the public methods are its RPCs. See `EditedWorker`."""

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        """Load the model, find the sites, and put the hooks there, before anything is traced or captured."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._refusal_cmp = None
        self._refusal_cmp_reason = _reason(self._refusal_cmp_hook)

    def _refusal_cmp_hook(self: Any) -> None:
        config = self.vllm_config
        self._refusal_cmp = editor = Editor(
            self.get_model(),
            self.model_config.hf_text_config.num_hidden_layers,
            self._refusal_cmp_pass,
            captured=_captures(self.model_config.enforce_eager, self.device),
        )
        OF[id(config.compilation_config.static_forward_context)] = editor.edits
        self._refusal_cmp_order(editor)
        # A graph of another model, or of this one with other sites or without ours, is not taken from vLLM's cache.
        config.additional_config = {**config.additional_config, "refusal_cmp": editor.digest}

    def _refusal_cmp_order(self: Any, editor: Editor) -> None:
        """Have the operator told before every pass whose tokens it reads, where the order of requests is known."""
        runner = self.model_runner
        prepare: Any = getattr(runner, "_prepare_inputs", None)  # vLLM's second model runner has none
        self._refusal_cmp_mixes = prepare is not None and not editor.edits.captured
        if not self._refusal_cmp_mixes:
            return

        def ordered(scheduled: Any, n_tokens: Any, *args: Any, **kwargs: Any) -> Any:
            editor.edits.order([slot_of(one) for one in runner.input_batch.req_ids], n_tokens)
            return prepare(scheduled, n_tokens, *args, **kwargs)

        runner._prepare_inputs = ordered

    def refusal_cmp_mixes(self: Any) -> str:
        """Whether several plans may share a pass: 'yes' or ''."""
        return "yes" if self._refusal_cmp_mixes else ""

    def _refusal_cmp_pass(self: Any) -> None:
        """One eager pass without a cache, as those by which vLLM measures its memory."""
        from vllm.config import set_current_vllm_config
        from vllm.forward_context import set_forward_context

        ids = torch.linspace(0, self.model_config.get_vocab_size() - 1, SEEN, device=self.device).long()
        positions = torch.arange(SEEN, device=self.device)
        if getattr(self.model_runner, "uses_mrope", False):
            positions = positions.expand(3, -1)
        with (
            torch.inference_mode(),
            set_current_vllm_config(self.vllm_config),
            set_forward_context(None, self.vllm_config, num_tokens=SEEN, skip_compiled=True),
        ):
            self.get_model()(input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None)

    def refusal_cmp_found(self: Any) -> str:
        """'' if the sites were found when the model was loaded, or why not."""
        return self._refusal_cmp_reason

    def refusal_cmp_watch(self: Any) -> None:
        """Keep what the next passes do without an edit."""
        self._refusal_cmp.watch()

    def refusal_cmp_test(self: Any) -> str:
        """Keep what was seen, and install the test edit for the next passes; '' or why nothing was seen."""
        return _reason(self._refusal_cmp.test)

    def refusal_cmp_prove(self: Any) -> str:
        """Check what was seen under the test edit, and remove it; '' or why the sites are not proven."""
        return _reason(self._refusal_cmp.prove)

    def refusal_cmp_install(self: Any, tensors: list[bytes], metadata: list[dict[str, str]]) -> str:
        """Install a plan in each slot, as `Plan.to_tensors` gives it, in the place of those before; '' or why not."""
        plans = [Plan.from_tensors(load(one), facts) for one, facts in zip(tensors, metadata, strict=True)]
        return self._refusal_cmp.install(*(plan.edits for plan in plans))

    def refusal_cmp_non_finite(self: Any) -> str:
        """Whether any logits held a NaN or an infinity since `refusal_cmp_clear`: 'yes' or ''."""
        return "yes" if self._refusal_cmp.non_finite else ""

    def refusal_cmp_clear(self: Any) -> None:
        """Forget that logits were not finite, and the keys and values: attention multiplies even masked ones."""
        self._refusal_cmp.non_finite.zero_()
        for cache_of_layer in self.model_runner.kv_caches:
            cache_of_layer.zero_()


def _captures(eager: bool, device: torch.device) -> bool:
    """Whether passes are captured as CUDA graphs: on a CPU none are."""
    return not eager and device.type != "cpu"


def worker_class() -> str:
    """Where vLLM's worker class for this machine is; RefusalCmpError where plans are not known to get into one."""
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    if kind not in WORKERS:
        raise RefusalCmpError(
            f"Plans get into the workers of vLLM for {' and '.join(WORKERS)}, and the installed one is for {kind}; do "
            "without it.",
            engine="hf",
        )
    return WORKERS[kind]


@cache
def _edited_worker() -> type[Any]:
    module, _, name = worker_class().rpartition(".")
    return type("EditedWorker", (PlanWorker, getattr(import_module(module), name)), {})


def __getattr__(name: str) -> Any:
    """`EditedWorker`, vLLM's worker class for this machine with `PlanWorker` before it: made where vLLM asks for it."""
    if name == "EditedWorker":
        return _edited_worker()
    raise AttributeError(name)


class Editor:
    """Permanent hooks at the sites of one vLLM model, and the proof that they act.

    Parameters
    ----------
    run
        One eager pass through the model.
    captured
        Whether passes are captured as CUDA graphs.
    """

    def __init__(self, model: nn.Module, n_layers: int, run: Callable[[], None], *, captured: bool) -> None:
        self.model = model
        self.layers = layers = _decoder_layers(model, n_layers)
        some = next(layers.parameters())
        self.device, self.dtype = some.device, _dtype(layers)
        self._reading, self.sites, width = _found(layers, run, ROUNDING.get(self.dtype, COARSE_ROUNDING))
        last = len(layers) * len(SITES)
        self.edits = Edits(
            last + 1,
            [*range(0, last + 1, len(SITES))],
            width,
            self.device,
            self.dtype,
            scales={
                _number(Place(layer, site)): found.scale for layer, found in enumerate(self.sites) for site in SITES[1:]
            },
            captured=captured,
        )
        self._direction = _random_direction(width)
        self._plain: list[Tensor] = []
        self._logits: list[Tensor] = []
        self.non_finite = torch.zeros((), dtype=torch.bool, device=self.device)
        for layer, found in enumerate(self.sites):
            _on_entry(found.layer, partial(_edited_entry, self._reading, _number(Place(layer, "resid_pre"))))
            attention, mlp = map(found.layer.get_submodule, (found.attn_out, found.mlp_out))
            after(attention, partial(_edited_output, _number(Place(layer, "attn_out"))))
            after(mlp, partial(_edited_output, _number(Place(layer, "mlp_out"))))
        layers[-1].register_forward_hook(partial(_seen_exit, self._reading, last))
        self._watch_logits()

    @property
    def digest(self) -> str:
        """A hash of where the hooks are: what a compiled graph depends on."""
        where = [(type(one.layer).__name__, one.attn_out, one.mlp_out) for one in self.sites]
        return sha256(repr((self._reading, where)).encode()).hexdigest()[:16]

    def install(self, *plans: Mapping[Place, LowRankEdit]) -> str:
        """The edits of these plans in the place of those before; '' or why they cannot be installed here."""
        numbered = [{_number(place): edit for place, edit in edits.items()} for edits in plans]
        reason = self.edits.refused(*numbered)
        if not reason:
            self.edits.install(*numbered)
        return reason

    def watch(self) -> None:
        """Keep the streams and the logits of the passes that follow."""
        self._logits = []
        self.edits.seen.zero_()
        self.edits.watching = True

    def test(self) -> None:
        """Keep what was seen; then ablate a direction at every site, and watch again."""
        components, logits = self._watched()
        if bool((components == 0).all(dim=-1).any()):
            raise UnprovenError("its decoder layers run without their hooks")
        self._plain = [components, logits]
        row = self._direction[None]
        ablation = LowRankEdit(V=row, A=-row)
        self.install({Place(layer, site): ablation for layer in range(len(self.layers)) for site in SITES})
        self.watch()

    def prove(self) -> None:
        """The test edit left nothing along its direction in any layer's exit, and it changed the logits."""
        components, logits = self._watched()
        self.install({})
        self.edits.watching = False
        plain, plain_logits = self._plain
        self._plain, self._logits = [], []
        most = LEFT_OVER.get(self.dtype, COARSE_LEFT_OVER)
        for index, (after_edit, before) in enumerate(zip(components, plain, strict=True)):
            left = float(after_edit.norm() / before.norm())
            if not left <= most:
                raise UnprovenError(
                    f"an edit does not reach the residual stream: {left:.1%} of an ablated direction is left after "
                    f"layer {index} ({type(self.layers[index]).__name__})"
                )
        if logits.numel() and logits.shape == plain_logits.shape and torch.equal(logits, plain_logits):
            raise UnprovenError("an edit of the residual stream does not change the logits")

    def _watched(self) -> tuple[Tensor, Tensor]:
        """The components along the test direction of the stream after each layer, (l, n), and the logits."""
        components = self.edits.seen[1:].double().cpu() @ self._direction
        return components, torch.cat(self._logits) if self._logits else torch.empty(0)

    def _watch_logits(self) -> None:
        """Notes logits that are not finite, without waiting for the device, and keeps those of a probe."""
        compute: Any = self.model.compute_logits

        def watched(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if logits is not None:  # ranks that hold no logits
                self.non_finite |= ~logits.isfinite().all()
                if self.edits.watching:
                    self._logits.append(logits.double().cpu())
            return logits

        self.model.compute_logits = watched  # type: ignore[assignment]


def _reason(work: Callable[[], None]) -> str:
    try:
        work()
    except UnprovenError as error:
        return str(error)
    return ""


def slot_of(request: str) -> int:
    """The slot of a request, which its name begins with, `2.17`; a probe is in the first."""
    slot = re.match(r"(\d+)\.", request)
    return int(slot[1]) if slot else 0


def _number(place: Place) -> int:
    """What the operator calls a place."""
    return place.layer * len(SITES) + SITES.index(place.site)


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


def _edited_entry(reading: int, site: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What enters a layer, edited: its sum with what is still to be added, where that is the stream."""
    if reading == ALONE or residual is None:
        return torch.ops.refusal_cmp.edit(hidden, site), residual
    return torch.ops.refusal_cmp.edit_sum(hidden, residual, site)


def _edited_output(site: int, hidden: Tensor) -> Tensor:
    """What a module writes, edited."""
    return torch.ops.refusal_cmp.edit(hidden, site)


def _seen_exit(reading: int, site: int, _: nn.Module, __: Any, output: Any) -> Any:
    """What the last layer returns, as it is: the operator sees it there."""
    if reading == SUM and isinstance(output, tuple) and len(_alike(output)) > 1:
        hidden, residual, *rest = output
        return (*torch.ops.refusal_cmp.edit_sum(hidden, residual, site), *rest)
    return with_first(output, torch.ops.refusal_cmp.edit(first(output), site))


def _alike(output: Any) -> list[Tensor]:
    """The tensors that a layer returns, of the first one's shape."""
    tensors = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]
    return [one for one in tensors if one.shape == tensors[0].shape]


def _exact(hidden: Tensor) -> Tensor:
    """Rows of the stream, float64 on the CPU: a copy, as vLLM's kernels work in place."""
    return hidden.detach().double().cpu().reshape(-1, hidden.shape[-1])


def _record_entry(record: Record, hidden: Tensor, residual: Tensor | None) -> None:
    if not record.entries:
        alone = _exact(hidden)
        record.entries = [alone if residual is None else alone + _exact(residual), alone]


def _record_exit(record: Record, _: nn.Module, __: Any, output: Any) -> None:
    if not record.exits:
        rows = [_exact(one) for one in _alike(output)]
        record.exits = [torch.stack(rows).sum(0), rows[0]]


def _record_noise(record: Record, name: str, generator: torch.Generator, _: nn.Module, __: Any, output: Any) -> Any:
    """Noise in the place of what a module returns: without a cache attention returns what happens to be in memory."""
    hidden = first(output)
    if not record.entries or name in record.children or not isinstance(hidden, Tensor):
        return None
    if hidden.numel() != record.entries[0].numel():
        return None
    noise = torch.randn(hidden.shape, generator=generator).to(hidden)
    record.children[name] = _exact(noise)
    return with_first(output, noise)


def _found(layers: nn.ModuleList, run: Callable[[], None], rounding: float) -> tuple[int, list[LayerSites], int]:
    """The reading of what layers hand on in which all adds up, the sites of all layers, and d."""
    records = [Record() for _ in layers]
    generator = torch.Generator().manual_seed(0)  # the same noise in every worker
    handles = []
    try:
        for layer, record in zip(layers, records, strict=True):
            handles += [
                _on_entry(layer, partial(_record_entry, record)),
                layer.register_forward_hook(partial(_record_exit, record)),
                *(
                    child.register_forward_hook(partial(_record_noise, record, name, generator))
                    for name, child in layer.named_children()
                ),
            ]
        run()
    except UnprovenError:
        raise
    except Exception as error:  # of any architecture's own code
        raise UnprovenError(f"a pass without a cache fails in it ({type(error).__name__}: {error})") from error
    finally:
        for handle in handles:
            handle.remove()
    if not all(record.entries and record.exits for record in records):
        raise UnprovenError("its decoder layers run without their hooks")
    width = records[0].entries[0].shape[-1]
    try:
        return SUM, _sites(layers, records, SUM, rounding), width
    except UnprovenError:
        return ALONE, _sites(layers, records, ALONE, rounding), width


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
    return LayerSites(layer, attention, mlp, scale)


def _named(pair: tuple[str, str]) -> int:
    attention, mlp = (name.lower() for name in pair)
    return any(word in attention for word in ATTENTION_NAMES) + any(word in mlp for word in MLP_NAMES)
