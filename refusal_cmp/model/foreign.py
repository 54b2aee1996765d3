"""What comes with a model: its files, its code, its template. Their errors are a reason, and their time has a limit."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from types import FrameType
from typing import Any

import torch
from jinja2 import TemplateError

from refusal_cmp.errors import RefusalCmpError

INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache")
"""What a forward pass is given; whether it keeps only the last logits is left to the model."""


def reason(error: BaseException) -> str:
    """What an error says first, for the middle of a sentence; its kind too where words alone would not tell."""
    words = ""
    for line in str(error).splitlines():
        words = f"{words} {line.strip()}".strip()
        if words and not words.endswith(":"):
            break
    if words and isinstance(error, OSError | ValueError | RuntimeError | ImportError | TemplateError):
        return words.rstrip(".,:")
    return f"{type(error).__name__}: {words}".rstrip(".,: ")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError inside the block once it has worked for so long, even where it never gives way.

    On the main thread a signal counts the process's own time, so that a machine that is busy or asleep ends nothing;
    on others, and where there are no such signals, a second thread counts the clock's.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        with _clock(seconds):
            yield
        return
    before = signal.signal(signal.SIGVTALRM, _time_is_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)  # again: jinja's optimiser swallows the first error
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)


def _time_is_up(_: int, __: FrameType | None) -> None:
    raise TimeoutError


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
    clock = threading.Timer(seconds, interrupt, (thread, ctypes.py_object(TimeoutError)))
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        clock.join()
        interrupt(thread, None)  # what has been raised for this thread and has not reached it yet


def check_code(model: Any, name: str) -> None:
    """RefusalCmpError where code that comes with a model does not take what ours is given, or keeps no cache."""
    if type(model).__module__.startswith("transformers."):
        return
    taken = signature(model.forward).parameters
    open_to_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in taken.values())
    lacking = [] if open_to_all else [one for one in INPUTS if one not in taken]
    told = f"The code that comes with {name}"
    if lacking:
        raise RefusalCmpError(
            f"{told} takes no {', '.join(lacking)} in a forward pass; give a newer version of the model."
        )
    try:
        with torch.inference_mode():
            out = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=True)
        kept = hasattr(out.past_key_values, "layers") and hasattr(out, "logits")
    except Exception as error:
        raise RefusalCmpError(
            f"{told} does not run ({reason(error)}); give a version that this transformers can run."
        ) from error
    if not kept:
        raise RefusalCmpError(
            f"{told} returns no cache of keys and values as transformers has them; give a newer version of the model."
        )
