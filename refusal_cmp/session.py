"""What the stages of one command share: configuration, run directory, the model once somebody needs it."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from refusal_cmp.artifacts import RunDir
from refusal_cmp.chat import Chat
from refusal_cmp.config import STAGES, RunConfig
from refusal_cmp.engines import Engine
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.progress import Progress, silent

PACKAGES = ("refusal-cmp", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def _say_nothing(message: str) -> None:
    pass


@dataclass
class Session:
    """One command at work on one run directory."""

    config: RunConfig
    run: RunDir
    progress: Progress = silent
    say: Callable[[str], None] = _say_nothing
    """Tells the user something that is not progress: what was dropped, a warning, a fallback."""
    loaded: ChatModel | None = None
    """The model, where the caller has it already."""

    @cached_property
    def model(self) -> ChatModel:
        """The model, loaded on first use; a stage whose work is finished never asks for it."""
        if self.config.engine == "vllm":
            self._stop_engine()
        model = self.loaded or self._load()
        self.run.note(
            model={
                "name": self.config.model,
                "revision": model.revision,
                "architecture": type(model.model).__name__,
                "n_layers": model.n_layers,
                "d_model": model.d_model,
                "positions": list(model.positions),
                "dtype": str(model.model.dtype).removeprefix("torch."),
            },
            device=str(model.device),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        )
        return model

    def _load(self) -> ChatModel:
        from transformers.utils import logging

        logging.disable_progress_bar()  # ours is the one that is shown
        config = self.config
        return ChatModel.load(
            config.model,
            device=config.device,
            quantization=config.quantization,
            trust_remote_code=config.trust_remote_code,
            chat_template=self._template(),
            system=config.system,
            **self._pinned,
        )

    @property
    def _pinned(self) -> dict[str, Any]:
        """Precision and commit: those that the run was begun with, whatever `auto` or a branch means by now."""
        settings = {"dtype": self.config.dtype, "revision": self.config.revision}
        begun = self.run.manifest.get("model")
        if begun is None or STAGES[0] in self.run.force:
            return settings
        return {"dtype": begun["dtype"], "revision": begun["revision"] or self.config.revision}

    def _template(self) -> str | None:
        path = self.config.chat_template
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RefusalCmpError(f"Cannot read the chat template {path}: {error}; give a Jinja text file.") from None

    @cached_property
    def engine(self) -> Engine:
        """Who generates. The vLLM engine and the model are not in memory at the same time."""
        config = self.config
        if config.engine == "hf":
            # A batch size that nobody asked for is found.
            return HFEngine(self.model, config.batch_size if "batch_size" in config.model_fields_set else None)
        from refusal_cmp.engines.vllm import VLLMEngine, import_vllm

        self.release()
        path = model_path(config.model)
        chat = Chat.load(
            config.model,
            path,
            revision=self._pinned["revision"],
            trust_remote_code=config.trust_remote_code,
            chat_template=self._template(),
            system=config.system,
        )
        engine = VLLMEngine(
            path,
            chat,
            device=config.device,
            quantization=config.quantization,
            tensor_parallel=config.tensor_parallel,
            gpu_memory_utilization=config.vllm_gpu_memory_utilization,
            trust_remote_code=config.trust_remote_code,
            **self._pinned,
        )
        self.run.note(versions=self.run.manifest.get("versions", {}) | {"vllm": import_vllm().__version__})
        return engine

    def release(self) -> None:
        """Free the model and the engine: another model needs the memory. They are loaded again on next use."""
        self._stop_engine()
        self.__dict__.pop("model", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop_engine(self) -> None:
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()
