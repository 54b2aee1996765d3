"""What transformers leaves to do of a model in a GGUF file: plain weights, and the positions as they were scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refusal_cmp.errors import RefusalCmpError

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What all Llama-3.x have in common; the file holds what comes of it, and not these."""


def unpacking() -> Any:
    """The setting by which transformers makes plain weights of packed ones, also where it has kernels for those."""
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def whole(model: Any) -> None:
    """Take out the note that the weights are packed, which would be saved with a model that is not."""
    model.hf_quantizer = None
    for name in ("quantization_config", "_pre_quantization_dtype"):
        for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
            if hasattr(config, name):
                delattr(config, name)
    for name in ("is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)


def read_rope(file: str, config: Any) -> None:
    """Set the scaled frequencies of positions, which transformers does not read from a GGUF file.

    llama.cpp keeps Llama-3's as a tensor of the factors by which they are divided.

    Raises
    ------
    RefusalCmpError
        If they are scaled in another way.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(file)
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    of_text = config.get_text_config()
    if (of_text.rope_parameters or {}).get("rope_type", "default") != "default":
        return
    factors = [name for name in tensors if name.startswith("rope_f")]
    if not factors and scaling == "none":
        return
    if factors == ["rope_freqs.weight"] and scaling == "none":
        found = _tensor(file, factors[0])
        parameters = {**of_text.rope_parameters, **LLAMA3, "factor": float(found.max())}
        if np.allclose(_factors(of_text, parameters), found, rtol=1e-3):
            of_text.rope_parameters = parameters
            return
    raise RefusalCmpError(
        f"The GGUF file {file} scales its positions ({', '.join(factors) or scaling}) in a way that transformers does "
        "not read, so that the model would compute something else; give its folder or Hugging Face id."
    )


def _factors(config: Any, parameters: dict[str, Any]) -> np.ndarray:
    """What Llama-3's scaling divides the frequencies by."""
    from copy import copy

    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = copy(config)
    scaled.rope_parameters = parameters
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    size = 2 * len(frequencies)
    plain = parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    return (plain / frequencies).numpy()


def _tensor(file: str, name: str) -> np.ndarray:
    from gguf import GGUFReader

    return next(np.array(one.data) for one in GGUFReader(file).tensors if one.name == name)
