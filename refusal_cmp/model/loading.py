"""Loads a model and its tokenizer: from the hub or a folder, whole or quantised, on one device or over several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from refusal_cmp.config import EMBEDDED
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import Repo, commit_of, explained
from refusal_cmp.model.foreign import reason
from refusal_cmp.model.source import ModelSource

FULL = 0.8
"""Share of a GPU's free memory that weights may take; the rest is for activations."""
QUANTISED_SIZE = {"none": 1.0, "8bit": 0.6, "4bit": 0.4}
"""Size beside the unquantised 16-bit weights: embeddings and the head are not quantised."""


def load_pretrained(source: ModelSource, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer; see `ChatModel.load`."""
    _check_device(device)
    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    precision = getattr(torch, ("bfloat16" if on_gpu else "float32") if source.dtype == "auto" else source.dtype)
    options: dict[str, Any] = {"dtype": precision}
    if source.quantization != "none":
        options["quantization_config"] = _bitsandbytes(source.quantization, precision)
    tokenizer, config, _ = _described(source)
    with _loading(source, "weights"):
        if device != "auto" or not on_gpu:
            options["device_map"] = {"": "cpu" if device == "auto" else device}
        else:
            size = _size(config, precision, trust_remote_code=source.trust_remote_code)
            options["device_map"] = _placement(size * QUANTISED_SIZE[source.quantization])
        model, found = auto_class(config).from_pretrained(
            source.path, **source.hub, **options, ignore_mismatched_sizes=True, output_loading_info=True
        )
    _check_complete(source, model, found)
    return model, tokenizer


def pinned(source: ModelSource) -> ModelSource:
    """The source at the commit that its branch or tag stands for now; one in a folder as it is."""
    if Path(source.path).is_dir():
        return source
    return replace(source, revision=commit_of(_repo(source)))


def _repo(source: ModelSource) -> Repo:
    instead = f"give a local folder, or nothing for the embedded {EMBEDDED}"
    return Repo(source.path, source.revision, f"model {source.name!r}", instead)


def load_chat(source: ModelSource) -> tuple[Any, Any]:
    """The tokenizer and the generation configuration, without the weights; see `Chat.load`."""
    tokenizer, _, generation_config = _described(pinned(source))
    return tokenizer, generation_config


def _described(source: ModelSource) -> tuple[Any, Any, Any]:
    """All but the weights: the tokenizer, the configuration and the generation configuration."""
    from transformers import AutoConfig

    with _loading(source, "configuration"):
        if Path(source.path).is_dir():  # a hub that cannot be reached is asked once, and says so
            _check_whole(source)
            _mapping(source, "config.json")
        config = AutoConfig.from_pretrained(source.path, **source.hub)
    with _loading(source, "tokenizer"):
        _mapping(source, "tokenizer_config.json")
        tokenizer = _tokenizer(source)
    with _loading(source, "generation configuration"):
        generation_config = _generation_config(source, config)
    return tokenizer, config, generation_config


def _tokenizer(source: ModelSource) -> Any:
    """The tokenizer, with the chat template that replaces its own.

    transformers' own even where mistral-common is there, whose tokenizer reads no control token in a rendered prompt.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, **source.hub, mistral_format=False)
    if source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    return tokenizer


def _generation_config(source: ModelSource, config: Any) -> Any:
    """The one that the model came with, or else what its configuration makes of it."""
    from transformers import GenerationConfig

    if _mapping(source, "generation_config.json") is None:
        return GenerationConfig.from_model_config(config)
    return GenerationConfig.from_pretrained(source.path, revision=source.revision)


def _mapping(source: ModelSource, name: str) -> dict[str, Any] | None:
    """What a JSON file of the model holds; None where there is no such file, ValueError where it holds no mapping."""
    from transformers.utils import cached_file

    file = cached_file(source.path, name, revision=source.revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__} where a mapping is expected")
    return content


def _check_whole(source: ModelSource) -> None:
    """Adapters are refused: transformers would put one on another model than the one that its folder describes."""
    adapter = _mapping(source, "adapter_config.json")
    if adapter is not None:
        raise RefusalCmpError(
            f"{source.name!r} is an adapter of {adapter.get('base_model_name_or_path')!r}, as its adapter_config.json "
            "says, and not a whole model; merge it into that by peft's merge_and_unload, save the result with its "
            "tokenizer, and give its folder."
        )


def _check_complete(source: ModelSource, model: Any, found: Mapping[str, Any]) -> None:
    """No weight is a random number that transformers has put where the files have none, or one of another shape."""
    weights = {name for name, _ in model.named_parameters()}
    absent = sorted(weights & set(found["missing_keys"]))
    if absent:
        raise RefusalCmpError(
            f"Cannot load model {source.name!r}: {len(absent)} of its weights are not in its files, such as "
            f"{absent[0]}; {_advice(source)}."
        )
    for name, in_file, by_config in found["mismatched_keys"]:
        raise RefusalCmpError(
            f"Cannot load model {source.name!r}: the weight {name} is {tuple(in_file)} in its files and "
            f"{tuple(by_config)} by its configuration; {_advice(source)}."
        )


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


@contextmanager
def _loading(source: ModelSource, part: str) -> Iterator[None]:
    """One sentence for whatever goes wrong inside, where files that came with the model are read, and code is run."""
    try:
        yield
    except RefusalCmpError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise RefusalCmpError(
                f"Model {source.name!r} brings Python code of its own, which is not run unasked; read that code, and "
                "say so if you trust it.",
                trust_remote_code="",
            ) from error
        raise explained(error, _repo(source)) or RefusalCmpError(
            f"Cannot load model {source.name!r}: its {part} cannot be read ({reason(error)}); {_advice(source)}."
        ) from error


def _advice(source: ModelSource) -> str:
    if Path(source.path).is_dir():
        return "mend that folder, download it again, or give another"
    repo = _repo(source)
    again = f"delete {repo.cache} to download it again, " if repo.cache.is_dir() else ""
    return f"{again}give another Hugging Face id, a local folder, or nothing for the embedded {EMBEDDED}"
