"""Hooks on the hidden state: what enters a block, what a module returns, read or replaced; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


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
def installed(handles: Iterable[Any]) -> Iterator[None]:
    """Removes the hooks at the end, whatever happens: those that were made before one failed, too."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
