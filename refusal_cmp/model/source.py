"""Where a model comes from and how it is read: everything that decides its weights, its tokens and its prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

from refusal_cmp.config import DATE, EMBEDDED, EMBEDDED_GUARD, SMALL


@dataclass(frozen=True)
class ModelSource:
    """A Hugging Face id, a local folder or GGUF file, or the embedded model, with how it is to be loaded.

    The id or folder may be an adapter's; it is merged into its base.
    """

    name: str = EMBEDDED
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    quantization: str = "none"
    """`none`, or `8bit` or `4bit` (nf4) by bitsandbytes."""
    chat_template: str | None = None
    """A Jinja template that replaces the tokenizer's own."""
    system: str | None = None
    """A system prompt put before every instruction."""
    date: str = DATE
    """The day that chat templates are told when they ask for today's."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may be run."""

    @property
    def path(self) -> str:
        """Where it is: an id, a folder or a file."""
        return model_path(self.name)


def clock(date: str) -> dict[str, Callable[[str], str]]:
    """What replaces the clock where a chat template is rendered: midnight of that day, whenever it is asked."""
    return {"strftime_now": datetime.fromisoformat(date).strftime}


def model_path(name: str) -> str:
    """Where a model is: the package's own folder for `tiny-refuser`, `smol-refuser` and `tiny-guard`."""
    return str(files("refusal_cmp") / "assets" / name) if name in (EMBEDDED, SMALL, EMBEDDED_GUARD) else name
