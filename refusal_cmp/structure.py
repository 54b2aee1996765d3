"""Finds the decoder blocks of a model and, in each, the modules whose outputs enter the residual stream.

Nothing here knows an architecture by name. The sites are *what adds up*: one short probe pass records the
input, the output and every child's output of each block, and the pair of children (a, m) with

    block output = block input + s · (a + m)

is `attn_out` and `mlp_out`. With a sandwich norm (Gemma-2/3, OLMo-2) that pair is the two norms' outputs;
where the architecture scales what it adds (Granite), s is that scale. Parallel attention adds up as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal_cmp.errors import RefusalCmpError

PROBE_TOKENS = 8
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
COARSE_TOLERANCE = 3e-2
"""For 16-bit and quantised models, whose additions round."""

ATTENTION_NAMES = ("attn", "attention")
MLP_NAMES = ("mlp", "moe", "ffn", "feed_forward", "feedforward")


@dataclass(frozen=True)
class Block:
    """A decoder block and the two modules in it that write to the residual stream."""

    module: nn.Module
    attn_out: nn.Module
    mlp_out: nn.Module
    scale: float
    """What the modules' outputs are multiplied by before they are added."""
    returns_tuple: bool


@dataclass
class _Record:
    """What one block did in the probe pass."""

    entry: Tensor | None = None
    exit: Tensor | None = None
    returns_tuple: bool = False
    children: dict[str, Tensor] = field(default_factory=dict)
    """Children's outputs of the stream's shape, in order of execution."""


def find_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The decoder blocks of a causal language model, each with its sites; raises RefusalCmpError if none fit."""
    modules = _block_list(model)
    records = _probe(model, modules)
    return tuple(_sites(index, *pair) for index, pair in enumerate(zip(modules, records, strict=True)))


def first(output: Any) -> Any:
    """The hidden state of a module's output: the tensor itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, hidden: Tensor) -> Any:
    """The module's output with its hidden state replaced."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state that a block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with the hidden state replaced."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def before(block: nn.Module, change: Callable[[Tensor], Tensor | None], *, prepend: bool = False) -> Any:
    """A hook that sees, and may replace, the hidden state on entry to a block."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        changed = change(hidden_input(args, kwargs))
        return None if changed is None else with_hidden_input(args, kwargs, changed)

    return block.register_forward_pre_hook(hook, with_kwargs=True, prepend=prepend)


def after(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook that sees, and may replace, the hidden state that a module returns."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        changed = change(first(output))
        return None if changed is None else with_first(output, changed)

    return module.register_forward_hook(hook)


@contextmanager
def installed(*handles: Any) -> Iterator[None]:
    """Removes the hooks at the end, whatever happens."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _block_list(model: nn.Module) -> nn.ModuleList:
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    found = {name: m for name, m in lists.items() if len(m) == config.num_hidden_layers and "vision" not in name}
    if not found:
        seen = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
        raise RefusalCmpError(
            f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder blocks (module lists found: "
            f"{seen}); refusal-cmp works on decoder-only transformers."
        )
    return min(found.items(), key=lambda item: item[0].count("."))[1]


def _probe(model: nn.Module, blocks: nn.ModuleList) -> list[_Record]:
    records = [_Record() for _ in blocks]
    handles = []
    for block, record in zip(blocks, records, strict=True):
        handles.append(before(block, partial(_record_entry, record)))
        handles.append(block.register_forward_hook(partial(_record_exit, record)))
        for name, child in block.named_children():
            handles.append(child.register_forward_hook(partial(_record_child, record, name)))
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    ids = torch.linspace(0, vocabulary - 1, PROBE_TOKENS).long()[None]
    with torch.inference_mode(), installed(*handles):
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    return records


def _record_entry(record: _Record, hidden: Tensor) -> None:
    record.entry = hidden.double().cpu()


def _record_exit(record: _Record, _: nn.Module, __: Any, output: Any) -> None:
    record.exit = first(output).double().cpu()
    record.returns_tuple = isinstance(output, tuple)


def _record_child(record: _Record, name: str, _: nn.Module, __: Any, output: Any) -> None:
    hidden = first(output)
    if record.entry is not None and isinstance(hidden, Tensor) and hidden.numel() == record.entry.numel():
        record.children[name] = hidden.double().cpu().reshape(record.entry.shape)


def _sites(index: int, module: nn.Module, record: _Record) -> Block:
    if record.entry is None or record.exit is None:
        raise RefusalCmpError(f"Block {index} was not run by a forward pass of the model; its sites are unknown.")
    added = record.exit - record.entry
    tolerance = TOLERANCE.get(next(module.parameters()).dtype, COARSE_TOLERANCE)
    fitting = []
    for pair in itertools.combinations(record.children, 2):
        scale, error = _fit(record.children[pair[0]] + record.children[pair[1]], added)
        if error <= tolerance:
            fitting.append((-_named(pair), error, pair, scale))
    if not fitting:
        raise RefusalCmpError(
            f"In block {index} ({type(module).__name__}) no two modules' outputs add up to what the block adds to the "
            f"residual stream; looked at {', '.join(record.children) or 'no module of the stream’s width'}. "
            "This architecture is not supported."
        )
    _, _, (attention, mlp), scale = min(fitting)
    return Block(module, module.get_submodule(attention), module.get_submodule(mlp), scale, record.returns_tuple)


def _fit(written: Float[Tensor, ...], added: Float[Tensor, ...]) -> tuple[float, float]:
    """The scale s with s · written ≈ added, and the relative error that is left."""
    scale = float((written * added).sum() / (written * written).sum().clamp(min=1e-300))
    if abs(scale - 1) < 1e-3:
        scale = 1.0
    error = (added - scale * written).norm() / added.norm().clamp(min=1e-300)
    return scale, float(error)


def _named(pair: tuple[str, str]) -> int:
    """How many of the pair are called what they are; decides between a module and a dropout behind it."""
    attention, mlp = (name.lower() for name in pair)
    return any(word in attention for word in ATTENTION_NAMES) + any(word in mlp for word in MLP_NAMES)
