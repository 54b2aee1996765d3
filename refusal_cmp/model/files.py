"""Where a model's files are: a whole model, one in a GGUF file, or an adapter and the model that it changes."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from refusal_cmp.config import EMBEDDED, SMALL
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import Repo, commit_of
from refusal_cmp.model.small import small_base
from refusal_cmp.model.source import ModelSource, model_path

CONFIG, ADAPTER = "config.json", "adapter_config.json"
GGUF = ".gguf"
MISTRAL = "params.json"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Of a whole model, as transformers calls them."""
PICKLES = ("*model*.bin", "*.pt", "*.pth")
NOWHERE = str(package_files("refusal_cmp") / "assets")
"""A folder without a model: what lies beside a GGUF file, transformers would mix with what is in it."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model is loaded from."""

    base: str
    """Hugging Face id, or folder, of a whole model."""
    revision: str | None = None
    """Of the base on the hub: a branch, tag or commit."""
    gguf: str | None = None
    """The GGUF file that is the base, with its own tokenizer and template."""
    adapter: str | None = None
    """Hugging Face id, or folder, of what PEFT has trained on the base."""
    adapter_revision: str | None = None

    @property
    def of_base(self) -> dict[str, Any]:
        """What `from_pretrained` is told of the base."""
        name = NOWHERE if self.gguf else self.base
        told = {"pretrained_model_name_or_path": name, "revision": self.revision}
        return told | {"gguf_file": self.gguf} if self.gguf else told

    @property
    def places(self) -> list[tuple[str, str | None]]:
        """Where the tokenizer, its template and other small files are looked for, in this order."""
        adapter = [] if self.adapter is None else [(self.adapter, self.adapter_revision)]
        return adapter if self.gguf else [*adapter, (self.base, self.revision)]


def model_files(source: ModelSource) -> ModelFiles:
    """The files of a model.

    Raises
    ------
    RefusalCmpError
        If they are of no model, of several, or of an adapter whose base is not there.
    """
    path, revision = source.path, source.revision
    if path.lower().endswith(GGUF):
        return _whole(path, revision, source.name)
    config = _config_file(path, revision)
    adapter = mapping(path, ADAPTER, revision)
    if adapter is None:
        return _whole(path, revision, source.name)
    if config is not None and any(_has(path, name, revision) for name in WEIGHTS):
        raise RefusalCmpError(
            f"{source.name!r} holds both a whole model and an adapter of {adapter.get('base_model_name_or_path')!r}; "
            f"give a copy with only one of the two: the first has no {ADAPTER}, the second no {CONFIG}."
        )
    return _adapted(path, revision, source.name, adapter)


def located(name: str, beside: Path) -> str:
    """Where the base of an adapter is: in a folder or file from the adapter's folder or from here, or on the hub."""
    here = Path(name).expanduser()
    found = next((place for place in (beside / here, here) if place.exists()), None)
    return model_path(name) if found is None else str(found)


def mapping(path: str, name: str, revision: str | None) -> dict[str, Any] | None:
    """What a JSON file of the model holds; None where there is no such file, ValueError where it holds no mapping."""
    from transformers.utils import cached_file

    file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__} where a mapping is expected")
    return content


def commit(path: str, revision: str | None, name: str | None = None) -> str | None:
    """The commit that a branch or tag of the hub stands for now; None for what is in a folder."""
    if Path(path).exists() or path.lower().endswith(GGUF):
        return None
    return commit_of(repo(path, revision, name or path))


def repo(path: str, revision: str | None, name: str) -> Repo:
    """A model on the hub, as messages speak of it."""
    found = _like_named(path)
    a = "a" if found is None else f"the folder {found}, which is there, another"
    instead = f"give {a} local folder or GGUF file, or the embedded {EMBEDDED}"
    return Repo(path, revision, f"model {name!r}", instead)


def _like_named(path: str) -> Path | None:
    """The folder with a model beside this path that has nearly its name."""
    with suppress(OSError, ValueError):
        beside = Path(path).parent
        close = [beside / name for name in get_close_matches(Path(path).name, os.listdir(beside))]
        return next((one for one in close if any((one / file).is_file() for file in (CONFIG, ADAPTER))), None)
    return None


def _config_file(path: str, revision: str | None) -> str | None:
    """The configuration; None where there is no such file. A hub that cannot be reached is an error."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from transformers.utils import cached_file

    if Path(path).is_dir():
        return str(Path(path) / CONFIG) if (Path(path) / CONFIG).is_file() else None
    try:
        return cached_file(path, CONFIG, revision=revision)
    except OSError as error:
        why = error.__cause__
        is_absent = isinstance(why, EntryNotFoundError) and not isinstance(why, LocalEntryNotFoundError)
        if is_absent or isinstance(try_to_load_from_cache(path, ADAPTER, revision=revision), str):
            return None
        raise


def check_pickles(files: ModelFiles, name: str) -> None:
    """RefusalCmpError where weights are pickles only, which run code when they are read."""
    for folder in filter(Path.is_dir, map(Path, filter(None, (None if files.gguf else files.base, files.adapter)))):
        pickles = sorted(file.name for ending in PICKLES for file in folder.glob(ending))
        if pickles and not any(folder.glob("*.safetensors*")):
            as_what = "PeftModel" if files.adapter == str(folder) else "AutoModelForCausalLM"
            raise RefusalCmpError(
                f"Cannot load model {name!r}: its weights are in {pickles[0]}, a pickle, which can run code when it is "
                f"read; if you trust it, read it by from_pretrained of {as_what}, write it by save_pretrained, which "
                "makes safetensors, and give the new folder with the rest of the old one."
            )


def _whole(path: str, revision: str | None, name: str) -> ModelFiles:
    """A model that is no adapter."""
    folder = Path(path)
    file = folder if path.lower().endswith(GGUF) else None
    if folder.is_dir() and not (folder / CONFIG).exists():
        found = sorted(one for one in folder.iterdir() if one.suffix.lower() == GGUF)
        if len(found) > 1 and not PART.search(found[0].name):
            raise RefusalCmpError(
                f"{name!r} holds {len(found)} GGUF files, {', '.join(one.name for one in found)}; give the path of one."
            )
        file = found[0] if found else None
        if file is None and (folder / MISTRAL).exists():
            raise RefusalCmpError(
                f"{name!r} is in Mistral's own format, with a {MISTRAL} and no {CONFIG}; give the copy of it in the "
                "format of transformers."
            )
    if file is None:
        return ModelFiles(path, revision)
    if not file.is_file():
        raise RefusalCmpError(f"The GGUF file {name} is not there; give one that is, a folder, or a Hugging Face id.")
    if PART.search(file.name):
        raise RefusalCmpError(
            f"{file.name} is one of several parts of a GGUF file; join them by llama.cpp's `llama-gguf-split`, and "
            "give the result."
        )
    return ModelFiles(str(file.parent), gguf=str(file.absolute()))


def _adapted(path: str, revision: str | None, name: str, adapter: dict[str, Any]) -> ModelFiles:
    """An adapter on the base that it names."""
    base = adapter.get("base_model_name_or_path")
    told = f"The adapter {name!r} was trained on {base!r}, as its {ADAPTER} says"
    if not isinstance(base, str) or not base:
        raise RefusalCmpError(
            f"The adapter {name!r} does not say what it was trained on; write that model's id or folder as "
            f"base_model_name_or_path in its {ADAPTER}."
        )
    place = small_base() if path == model_path(SMALL) else located(base, Path(path))
    is_local = Path(base).expanduser().is_absolute() or base.startswith(".") or base.lower().endswith(GGUF)
    mend = f"put that there, or name in {ADAPTER} where it is"
    if is_local and not Path(place).exists():
        raise RefusalCmpError(f"{told}, which is not there; {mend}.")
    if Path(place).is_dir() and (Path(place) / ADAPTER).exists():
        raise RefusalCmpError(f"{told}, which is an adapter too; merge that into its base, and name the result there.")
    whole = _whole(place, adapter.get("revision"), base)
    return replace(whole, adapter=path, adapter_revision=revision)


def _has(path: str, name: str, revision: str | None) -> bool:
    from transformers.utils import has_file

    return has_file(path, name, revision=revision)
