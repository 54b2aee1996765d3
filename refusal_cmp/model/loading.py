"""Loads a model and its tokenizer, whatever their files are, whole or quantised, on one device or over several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from refusal_cmp.config import EMBEDDED
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import explained
from refusal_cmp.model.adapters import check_mergeable, merged
from refusal_cmp.model.attention import group_heads
from refusal_cmp.model.files import ADAPTER, CONFIG, ModelFiles, check_pickles, commit, mapping, model_files, repo
from refusal_cmp.model.foreign import reason
from refusal_cmp.model.gguf_file import read_rope, unpacking, whole
from refusal_cmp.model.identity import content
from refusal_cmp.model.linear import use_onednn
from refusal_cmp.model.source import ModelSource
from refusal_cmp.progress import Progress, silent

FULL = 0.8
"""Share of a GPU's free memory that weights may take; the rest is for activations."""
QUANTISED_SIZE = {"none": 1.0, "8bit": 0.6, "4bit": 0.4}
"""Size beside the unquantised 16-bit weights: embeddings and the head are not quantised."""
TOKENIZER = "tokenizer_config.json"
UNQUANTISED = "give the model from before it was quantised, or a GGUF file of it"


def load_pretrained(source: ModelSource, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer; see `ChatModel.load`."""
    _check_device(device)
    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    precision = getattr(torch, ("bfloat16" if on_gpu else "float32") if source.dtype == "auto" else source.dtype)
    options: dict[str, Any] = {"dtype": precision}
    tokenizer, config, generation_config = described(source)
    files = files_of(source)
    _check_quantised(source, files, config)
    if source.quantization != "none":
        options["quantization_config"] = _bitsandbytes(source.quantization, precision)
    if files.gguf:
        options["quantization_config"] = unpacking()
    method = quantised_by(config)
    part = f"weights, which are quantised by {method}," if method else "weights"
    unread = f"install what is missing, or {UNQUANTISED}" if method else None
    with _loading(source, _of_base(files, part), unread, files=files):
        if device != "auto" or not on_gpu:
            options["device_map"] = {"": "cpu" if device == "auto" else device}
        else:
            size = _size(config, precision, trust_remote_code=source.trust_remote_code)
            options["device_map"] = _placement(size * QUANTISED_SIZE[source.quantization])
        model, found = auto_class(config).from_pretrained(
            **files.of_base,
            **options,
            config=config,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=None if files.gguf else True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_complete(source, model, found, with_buffers=method is not None)
    if files.gguf:
        whole(model)
    if files.adapter:
        with _loading(source, "adapter"):
            model = merged(model, files)
    model.generation_config = generation_config
    use_onednn(model)
    group_heads()
    return model, tokenizer


def pinned(source: ModelSource) -> ModelSource:
    """The source at the commit that its branch or tag stands for now; one in a folder as it is."""
    return replace(source, revision=commit(source.path, source.revision, source.name) or source.revision)


def content_of(source: ModelSource, progress: Progress = silent) -> str | None:
    """A hash of a model's files; None for a whole model on the hub."""
    files = files_of(source)
    with _loading(source, "configuration"):
        return content(files, progress)


def load_chat(source: ModelSource) -> tuple[Any, Any]:
    """The tokenizer and the generation configuration, without the weights; see `Chat.load`."""
    tokenizer, _, generation_config = described(pinned(source))
    return tokenizer, generation_config


def described(source: ModelSource) -> tuple[Any, Any, Any]:
    """All but the weights: the tokenizer, the configuration and the generation configuration."""
    from transformers import AutoConfig

    files = files_of(source)  # a hub that cannot be reached is asked once, and says so
    with _loading(source, _of_base(files, "configuration"), files=files):
        if not files.gguf:
            mapping(files.base, CONFIG, files.revision)
        check_pickles(files, source.name)
        config = AutoConfig.from_pretrained(**files.of_base, trust_remote_code=source.trust_remote_code)
        if files.gguf:
            read_rope(files.gguf, config)
    if files.adapter:
        with _loading(source, "adapter"):
            check_mergeable(files)
    with _loading(source, "tokenizer"):
        tokenizer = _tokenizer(source, files, config)
    with _loading(source, "generation configuration"):
        generation_config = _generation_config(files, config)
    return tokenizer, config, generation_config


def files_of(source: ModelSource) -> ModelFiles:
    """What a model is loaded from; see `model_files`."""
    with _loading(source, "configuration"):
        return model_files(source)


def _tokenizer(source: ModelSource, files: ModelFiles, config: Any) -> Any:
    """The tokenizer: an adapter's own if it has one, and its base's otherwise; and so is the chat template.

    transformers' own even where mistral-common is there, whose tokenizer reads no control token in a rendered prompt.
    """
    from transformers import AutoTokenizer
    from transformers.utils import CHAT_TEMPLATE_FILE, cached_file

    def read(**where: Any) -> Any:
        return AutoTokenizer.from_pretrained(**where, trust_remote_code=source.trust_remote_code, mistral_format=False)

    for path, revision in files.places:
        mapping(path, TOKENIZER, revision)
    if files.adapter is None:
        tokenizer = read(**files.of_base)
    else:
        adapter = {"pretrained_model_name_or_path": files.adapter, "revision": files.adapter_revision}
        own = read(**adapter, config=config) if mapping(files.adapter, TOKENIZER, files.adapter_revision) else None
        tokenizer = own or read(**files.of_base)
        file = cached_file(
            files.adapter,
            CHAT_TEMPLATE_FILE,
            revision=files.adapter_revision,
            _raise_exceptions_for_missing_entries=False,
        )
        if own is None and file:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        if not tokenizer.chat_template:
            tokenizer.chat_template = read(**files.of_base).chat_template
    if source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    return tokenizer


def _generation_config(files: ModelFiles, config: Any) -> Any:
    """The one that the model came with, or else what its configuration makes of it."""
    from transformers import GenerationConfig

    for path, revision in files.places:
        if mapping(path, "generation_config.json", revision) is not None:
            return GenerationConfig.from_pretrained(path, revision=revision)
    return GenerationConfig.from_model_config(config)


def _check_quantised(source: ModelSource, files: ModelFiles, config: Any) -> None:
    """Weights that are quantised already are not quantised again, and nothing is merged into them."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = quantised_by(config)
    if method is None:
        by_us = source.quantization != "none"
        if by_us and (files.adapter or files.gguf):
            what = "an adapter is merged into whole weights" if files.adapter else "a GGUF file is unpacked"
            raise RefusalCmpError(
                f"{source.name!r} cannot be quantised while it is loaded, as {what}; load it whole.",
                quantization="none",
            )
        return
    if method not in {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}:
        raise RefusalCmpError(
            f"The weights of {source.name!r} are quantised by {method}, which transformers does not know and "
            f"would take for plain numbers; {UNQUANTISED}."
        )
    if source.quantization != "none":
        raise RefusalCmpError(
            f"The weights of {source.name!r} are quantised already, by {method}; leave them as they are.",
            quantization="none",
        )
    if files.adapter:
        raise RefusalCmpError(
            f"The base of the adapter {source.name!r}, {files.base!r}, is quantised, by {method}, and would round away "
            f"what is merged into it; name the whole model that it was made from in {ADAPTER}."
        )


def quantised_by(config: Any) -> str | None:
    """The way in which the weights of a checkpoint are quantised, as its configuration calls it."""
    of_text = config.get_text_config()
    settings = getattr(config, "quantization_config", None) or getattr(of_text, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def _check_complete(source: ModelSource, model: Any, found: Mapping[str, Any], *, with_buffers: bool) -> None:
    """No weight is a random number that transformers has put where the files have none, or one of another shape.

    Parameters
    ----------
    with_buffers
        The scales of quantised weights are.
    """
    weights = {name for name, _ in model.named_parameters()} | (set(model.state_dict()) if with_buffers else set())
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
def _loading(
    source: ModelSource, part: str, advice: str | None = None, *, files: ModelFiles | None = None
) -> Iterator[None]:
    """One sentence for whatever goes wrong inside, where files that came with the model are read, and code is run.

    Parameters
    ----------
    files
        Those of the model, where it is its base that is read.
    """
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
        read = repo(source.path, source.revision, source.name)
        if files is not None and files.adapter:
            read = repo(files.base, files.revision, files.base)
        said = None if Path(read.name).exists() else explained(error, read)
        raise said or RefusalCmpError(
            f"Cannot load model {source.name!r}: its {part} cannot be read ({reason(error)}); "
            f"{advice or _advice(source)}."
        ) from error


def _of_base(files: ModelFiles, part: str) -> str:
    return part if files.adapter is None else f"base {files.gguf or files.base!r}, that is its {part},"


def _advice(source: ModelSource) -> str:
    if Path(source.path).exists():
        return "mend it, download it again, or give another"
    cache = repo(source.path, source.revision, source.name).cache
    again = f"delete {cache} to download it again, " if cache.is_dir() else ""
    return f"{again}give another Hugging Face id, a local folder or GGUF file, or nothing for the embedded {EMBEDDED}"
