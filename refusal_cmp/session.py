"""What the stages of one command share: configuration, run directory, the model once somebody needs it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from refusal_cmp.artifacts import RunDir
from refusal_cmp.config import RunConfig
from refusal_cmp.engines import Engine
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel
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

    @cached_property
    def model(self) -> ChatModel:
        """The model, loaded on first use; a stage whose work is finished never asks for it."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # ours is the one that is shown
        config = self.config
        template = None
        if config.chat_template is not None:
            try:
                template = config.chat_template.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RefusalCmpError(
                    f"Cannot read the chat template {config.chat_template}: {error}; give a Jinja text file."
                ) from None
        model = ChatModel.load(
            config.model,
            device=config.device,
            dtype=config.dtype,
            chat_template=template,
            system=config.system,
        )
        self.run.note(
            model={
                "name": config.model,
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

    @cached_property
    def engine(self) -> Engine:
        """Who generates and measures losses."""
        return HFEngine(self.model, self.config.batch_size)
