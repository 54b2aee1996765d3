"""A model as one plain folder, for what reads nothing else: vLLM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from refusal_cmp.data.download import CACHE_VARIABLE, cache
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.loading import content_of, files_of, load_pretrained
from refusal_cmp.model.source import ModelSource


def plain(source: ModelSource, say: Callable[[str], None]) -> ModelSource:
    """The source itself, or, of a GGUF file or an adapter, that of a folder with all its weights, written once.

    The folder is in the cache, under the content of the model, and complete or not there.

    Raises
    ------
    RefusalCmpError
        If the model cannot be loaded, or the folder not be written.
    """
    files = files_of(source)
    if not (files.gguf or files.adapter):
        return source
    place = cache() / "models" / f"{Path(source.name).stem}-{content_of(source)}-{source.dtype}"
    temporary = place.with_name(f".{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{temporary}.lock"):
            if not place.exists():
                say(f"{source.name} is written as a plain folder, as vLLM reads no other: {place}")
                shutil.rmtree(temporary, ignore_errors=True)  # of one who was killed
                _write(replace(source, chat_template=None, quantization="none"), temporary)
                os.replace(temporary, place)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RefusalCmpError(
            f"Cannot write {place}: {error.strerror or error}; free space, or name another folder by ${CACHE_VARIABLE}."
        ) from None
    return replace(source, name=str(place), revision=None)


def _write(source: ModelSource, folder: Path) -> None:
    from transformers import GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    model, tokenizer = load_pretrained(source, "cpu")
    as_it_came, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder)
    as_it_came.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(folder)
