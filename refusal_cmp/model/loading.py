"""Loads a model and its tokenizer: from the hub or a folder, whole or quantised, on one device or over several."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from refusal_cmp.config import EMBEDDED
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.source import ModelSource

FULL = 0.8
"""Share of a GPU's free memory that weights may take; the rest is for activations."""
QUANTISED_SIZE = {"none": 1.0, "8bit": 0.6, "4bit": 0.4}
"""Size beside the unquantised 16-bit weights: embeddings and the head are not quantised."""


def load_pretrained(source: ModelSource, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer; see `ChatModel.load`."""
    from transformers import AutoConfig

    _check_device(device)
    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    precision = getattr(torch, ("bfloat16" if on_gpu else "float32") if source.dtype == "auto" else source.dtype)
    options: dict[str, Any] = {"dtype": precision}
    if source.quantization != "none":
        options["quantization_config"] = _bitsandbytes(source.quantization, precision)
    try:
        tokenizer = _tokenizer(source)
        config = AutoConfig.from_pretrained(source.path, **source.hub)
        if device != "auto" or not on_gpu:
            options["device_map"] = {"": "cpu" if device == "auto" else device}
        else:
            size = _size(config, precision, trust_remote_code=source.trust_remote_code)
            options["device_map"] = _placement(size * QUANTISED_SIZE[source.quantization])
        model = auto_class(config).from_pretrained(source.path, **source.hub, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise _explained(source.name, error) from error
    return model, tokenizer


def load_chat(source: ModelSource) -> tuple[Any, Any]:
    """The tokenizer and the generation configuration, without the weights; see `Chat.load`."""
    from transformers import AutoConfig, GenerationConfig

    try:
        tokenizer = _tokenizer(source)
        config = AutoConfig.from_pretrained(source.path, **source.hub)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise _explained(source.name, error) from error
    try:
        return tokenizer, GenerationConfig.from_pretrained(source.path, revision=source.revision)
    except OSError:  # the model came without one
        return tokenizer, GenerationConfig.from_model_config(config)


def _tokenizer(source: ModelSource) -> Any:
    """The tokenizer, with the chat template that replaces its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, **source.hub)
    if source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    return tokenizer


def auto_class(config: Any) -> Any:
    """What loads a configuration: a causal language model, or else the multimodal model that one is a part of."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if multimodal and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _check_device(device: str) -> None:
    there = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        there.append("cuda")
    if device not in there:
        raise RefusalCmpError(f"There is no device {device!r} here; give one of {', '.join(there)}.", device="")


def _size(config: Any, precision: torch.dtype, *, trust_remote_code: bool) -> int:
    """Bytes of a model's weights in a precision, from its configuration alone."""
    with torch.device("meta"):
        empty = auto_class(config).from_config(config, dtype=precision, trust_remote_code=trust_remote_code)
    return sum(one.numel() * one.element_size() for one in empty.parameters())


def _placement(size: float) -> Any:
    """The first GPU if the weights fit there, and otherwise all devices, as accelerate shares them out."""
    return {"": 0} if size <= FULL * torch.cuda.mem_get_info(0)[0] else "auto"


def _bitsandbytes(quantization: str, precision: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise RefusalCmpError(
            f"Quantization to {quantization} needs the package bitsandbytes, which is not installed; install it, or do "
            "without.",
            quantization="none",
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=precision)


def _explained(name: str, error: Exception) -> RefusalCmpError:
    if "trust_remote_code" in str(error):
        return RefusalCmpError(
            f"Model {name!r} brings Python code of its own, which is not run unasked; read that code, and say so if "
            "you trust it.",
            trust_remote_code="",
        )
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return RefusalCmpError(
        f"Cannot load model {name!r} ({reason}); give a Hugging Face id that can be reached, a local folder, or "
        f"nothing for the embedded {EMBEDDED}."
    )
