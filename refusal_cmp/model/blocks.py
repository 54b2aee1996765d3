"""Finds the decoder blocks of a model and, in each, the modules whose outputs enter the residual stream.

Nothing here knows an architecture. The sites are *what adds up*: one short probe pass records the input and the
output of each block and of every module in it, and the modules w₁, w₂ (, w₃) with

    block output = c · (block input + s · (w₁ + w₂ (+ w₃)))

are `attn_out` and `mlp_out`. With a sandwich norm (Gemma-2/3, OLMo-2) they are the two norms; where attention and
MLP add the stream themselves (Bloom) they are the projections inside; a third is what the block adds beside the MLP
(the shared expert of Granite-MoE). s is the scale of what is added (Granite) and c that of the whole (Gemma-4);
both are 1 in most models and are only fitted where 1 does not do. Parallel attention adds up as well.

"Adds up" means to the rounding of every single element, so that the answer is as sure in bfloat16 as in float64,
whatever the size of the stream beside that of what is added.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.foreign import reason
from refusal_cmp.model.hooks import first, hidden_input, installed

PROBE_TOKENS = 8
MOST_OFF, USUALLY_OFF = 2.0, 0.25
"""How far an element of a sum that adds up may be off, and all of them in the root mean square.

The unit is the rounding of the element's terms together. True sums are off by at most 0.6 and 0.15 in the
architecture matrix, in float32, bfloat16 and float16.
"""
LEAST_CARRY = 0.05
"""A block that keeps less of its input is none: the "sum" is then a module that returns the whole stream."""

ATTENTION_NAMES = ("attn", "attention")
MLP_NAMES = ("mlp", "moe", "ffn", "feed_forward", "feedforward")


@dataclass(frozen=True)
class Block:
    """A decoder block and the modules in it that write to the residual stream."""

    module: nn.Module
    attn_out: nn.Module
    mlp_out: nn.Module
    scale: float
    """What the modules' outputs are multiplied by before they are added: s."""
    returns_tuple: bool
    also: tuple[nn.Module, ...] = ()
    """What the block adds beside the MLP by a module of its own; part of the site `mlp_out`."""
    carry: float = 1.0
    """What the stream is multiplied by at the end of the block: c."""
    names: tuple[str, ...] = ()
    """The writers inside the block: attention's, the MLP's, what is added beside it."""

    def writers(self, site: str) -> tuple[nn.Module, ...]:
        """The modules whose outputs, added up, are what enters the stream at `attn_out` or `mlp_out`."""
        return (self.attn_out,) if site == "attn_out" else (self.mlp_out, *self.also)


class _Seen(NamedTuple):
    """One module's output of the stream's size."""

    name: str
    output: Float[Tensor, "1 s d"]


@dataclass
class _Record:
    """What one block did in the probe pass."""

    entry: Float[Tensor, "1 s d"] | None = None
    exit: Float[Tensor, "1 s d"] | None = None
    runs: int = 0
    returns_tuple: bool = False
    seen: list[_Seen] = field(default_factory=list)
    """In order of completion."""


class _Sum(NamedTuple):
    """Modules that add up; the smaller the error, the better."""

    error: float
    """Root mean square, in units of rounding."""
    names: tuple[str, ...]
    carry: float
    scale: float


def find_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The decoder blocks of a causal language model, each with its sites; raises RefusalCmpError if none fit."""
    lists = _block_lists(model)
    records = _probe(model, [block for blocks in lists.values() for block in blocks])
    run = {name: blocks for name, blocks in lists.items() if all(records[block].runs for block in blocks)}
    if not run:
        raise RefusalCmpError(
            f"No forward pass of {type(model).__name__} on text runs all blocks of {' or '.join(lists)}; refusal-cmp "
            "works on decoder-only transformers."
        )
    modules = run[min(run, key=lambda name: name.count("."))]
    in_order = [records[block] for block in modules]
    _check_finite(model, in_order)
    _check_chain(model, in_order)
    return tuple(_sites(index, *pair) for index, pair in enumerate(zip(modules, in_order, strict=True)))


def input_device(model: nn.Module) -> torch.device:
    """Where a model's inputs go: the device of its embeddings, or the one that accelerate runs them on."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    placed = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return embeddings.weight.device if placed is None else torch.device(placed)


def _block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Module lists as long as the model has blocks; a multimodal model may have one for images as well."""
    n_layers = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    found = {name: m for name, m in lists.items() if len(m) == n_layers}
    if not found:
        seen = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
        raise RefusalCmpError(
            f"{type(model).__name__} has no list of {n_layers} decoder blocks (module lists found: {seen}); "
            "refusal-cmp works on decoder-only transformers."
        )
    return found


def _probe(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[nn.Module, _Record]:
    """What every block does to a few tokens from all over the vocabulary; its ends are special tokens."""
    records = {block: _Record() for block in blocks}
    handles = []
    for block, record in records.items():
        handles.append(block.register_forward_pre_hook(partial(_record_entry, record), with_kwargs=True))
        handles.append(block.register_forward_hook(partial(_record_exit, record)))
        for name, module in block.named_modules():
            if name:
                handles.append(module.register_forward_hook(partial(_record_output, record, name)))
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    ids = torch.linspace(0, vocabulary - 1, PROBE_TOKENS + 2)[1:-1].long()[None]
    try:
        with torch.inference_mode(), installed(handles):
            model(input_ids=ids.to(input_device(model)), use_cache=False)
    except Exception as error:  # of the code that comes with a model too
        raise RefusalCmpError(
            f"{type(model).__name__} does not run on text alone ({reason(error)}); refusal-cmp works on decoder-only "
            "transformers."
        ) from error
    return records


def _record_entry(record: _Record, _: nn.Module, args: Any, kwargs: Any) -> None:
    record.runs += 1
    record.entry = hidden_input(args, kwargs).clone()


def _record_exit(record: _Record, _: nn.Module, __: Any, output: Any) -> None:
    hidden = first(output)
    record.exit = hidden.clone() if isinstance(hidden, Tensor) else None
    record.returns_tuple = isinstance(output, tuple)


def _record_output(record: _Record, name: str, _: nn.Module, __: Any, output: Any) -> None:
    hidden = first(output)
    if record.entry is not None and isinstance(hidden, Tensor) and hidden.numel() == record.entry.numel():
        record.seen.append(_Seen(name, hidden.clone().reshape(record.entry.shape)))


def _check_finite(model: nn.Module, records: Sequence[_Record]) -> None:
    """The stream is a number everywhere: nothing adds up to what is none."""
    for index, record in enumerate(records):
        for stream, where in ((record.entry, "enters"), (record.exit, "leaves")):
            if stream is None or bool(stream.isfinite().all()):
                continue
            told = f"What {where} block {index} of {type(model).__name__} is not finite in {str(stream.dtype)[6:]}"
            if stream.dtype == torch.float16:
                raise RefusalCmpError(
                    f"{told}, which ends at {torch.finfo(stream.dtype).max:.0f}; load the model in bfloat16.",
                    dtype="bfloat16",
                )
            raise RefusalCmpError(
                f"{told}, so weights before it are broken; download the model again, or give another."
            )


def _check_chain(model: nn.Module, records: Sequence[_Record]) -> None:
    """Every block runs once, on a stream (batch, token, d), which is the output of the block before."""
    for index, record in enumerate(records):
        if record.entry is None or record.exit is None or record.runs > 1:
            raise RefusalCmpError(
                f"Block {index} of {type(model).__name__} does not take the residual stream once in a forward pass and "
                "return it, alone or first in a tuple; this architecture is not supported."
            )
        shapes = tuple(record.entry.shape), tuple(record.exit.shape)
        if shapes[0] != shapes[1] or shapes[0][:-1] != (1, PROBE_TOKENS):
            raise RefusalCmpError(
                f"Block {index} of {type(model).__name__} turns {shapes[0]} into {shapes[1]} where one residual stream "
                f"would be (1, {PROBE_TOKENS}, width) before and after; this architecture is not supported."
            )
    for index, (block, following) in enumerate(itertools.pairwise(records)):
        if not torch.equal(block.exit.cpu(), following.entry.cpu()):  # type: ignore[union-attr]
            raise RefusalCmpError(
                f"What enters block {index + 1} of {type(model).__name__} is not what block {index} returns: something "
                "outside the blocks changes the residual stream; this architecture is not supported."
            )


def _sites(index: int, module: nn.Module, record: _Record) -> Block:
    writers = _writers(record.seen)
    found = _search(record, writers)
    if found is None:
        raise RefusalCmpError(
            f"In block {index} ({type(module).__name__}) no two modules' outputs add up to what the block adds to the "
            "residual stream, nor do three (looked at "
            f"{', '.join(writers) or 'no module of the stream’s width'}); this architecture is not supported."
        )
    names = _roles(found.names)
    attention, mlp, *also = (module.get_submodule(name) for name in names)
    return Block(module, attention, mlp, found.scale, record.returns_tuple, tuple(also), carry=found.carry, names=names)


def _writers(seen: Sequence[_Seen]) -> dict[str, Tensor]:
    """Outputs by module, in order of completion, of modules that ran once.

    Of modules with the same output, as a projection, the attention that ends in it and a dropout behind, only the
    outermost and then the first is one.
    """
    runs = [one.name for one in seen]
    distinct: list[_Seen] = []
    for one in sorted((one for one in seen if runs.count(one.name) == 1), key=lambda one: one.name.count(".")):
        if not any(torch.equal(one.output, other.output) for other in distinct):
            distinct.append(one)
    distinct.sort(key=lambda one: runs.index(one.name))
    return {one.name: one.output.double().cpu() for one in distinct}


def _search(record: _Record, writers: Mapping[str, Tensor]) -> _Sum | None:
    """The modules that add up under the simplest equation; of several, those that add up best."""
    unit = max(torch.finfo(one.dtype).eps for one in (record.entry, record.exit))  # type: ignore[union-attr]
    ends = record.entry.double().cpu(), record.exit.double().cpu()  # type: ignore[union-attr]
    children = [name for name in writers if "." not in name]
    for factors in (_no_factor, _scale, _carry_and_scale):
        for names, size in ((children, 2), (list(writers), 2), (children, 3)):
            sums = (
                _fit(chosen, ends, [writers[name] for name in chosen], unit, factors)
                for chosen in itertools.combinations(names, size)
            )
            best = min((one for one in sums if one is not None), default=None)
            if best is not None:
                return best
    return None


_Factors = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[float, float]]


def _fit(
    names: tuple[str, ...], ends: tuple[Tensor, Tensor], written: Sequence[Tensor], unit: float, factors: _Factors
) -> _Sum | None:
    """Whether exit = c · (entry + s · Σ written) to rounding; the factors say how c and s are found."""
    entry, exit_ = ends
    added = torch.stack(list(written)).sum(0)
    size = entry.abs() + exit_.abs() + sum(one.abs() for one in written)
    carry, scale = factors(entry, exit_, added, 1 / size.clamp(min=1e-300))
    if not (carry >= LEAST_CARRY and 0 < abs(scale) < float("inf")):
        return None
    off = (exit_ - carry * (entry + scale * added)).abs() / (unit * size.clamp(min=1e-300))
    usual = float(off.square().mean().sqrt())
    return _Sum(usual, names, carry, scale) if float(off.max()) <= MOST_OFF and usual <= USUALLY_OFF else None


def _no_factor(*_: Tensor) -> tuple[float, float]:
    return 1.0, 1.0


def _scale(entry: Tensor, exit_: Tensor, added: Tensor, weight: Tensor) -> tuple[float, float]:
    """c = 1, and s by least squares, each element weighted by its precision."""
    x, y = added * weight, (exit_ - entry) * weight
    return 1.0, float((x * y).sum() / (x * x).sum().clamp(min=1e-300))


def _carry_and_scale(entry: Tensor, exit_: Tensor, added: Tensor, weight: Tensor) -> tuple[float, float]:
    """c and s by least squares, each element weighted by its precision."""
    x = torch.stack([(entry * weight).flatten(), (added * weight).flatten()], dim=1)
    carry, scaled = torch.linalg.lstsq(x, (exit_ * weight).flatten()).solution.tolist()
    return carry, scaled / carry if carry else 0.0


def _roles(names: tuple[str, ...]) -> tuple[str, ...]:
    """Attention's writer, the MLP's and the rest: by their names, or else in order of completion."""
    attention = next((name for name in names if _is_called(name, ATTENTION_NAMES)), names[0])
    rest = [name for name in names if name != attention]
    mlp = next((name for name in rest if _is_called(name, MLP_NAMES)), rest[0])
    return (attention, mlp, *(name for name in rest if name != mlp))


def _is_called(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)
