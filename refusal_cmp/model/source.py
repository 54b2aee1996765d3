"""Where a model comes from and how it is read: everything that decides its weights, its tokens and its prompts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from refusal_cmp.config import EMBEDDED, EMBEDDED_GUARD


@dataclass(frozen=True)
class ModelSource:
    """A Hugging Face id, a local folder, or the embedded model, with how it is to be loaded."""

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
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may be run."""

    @property
    def path(self) -> str:
        """What transformers and vLLM are asked for."""
        return model_path(self.name)

    @property
    def hub(self) -> dict[str, Any]:
        """What `from_pretrained` is told of it."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def model_path(name: str) -> str:
    """What transformers is asked for: the package's own folder for `tiny-refuser` and `tiny-guard`."""
    return str(files("refusal_cmp") / "assets" / name) if name in (EMBEDDED, EMBEDDED_GUARD) else name
