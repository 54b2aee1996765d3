"""What the stages of one command share: configuration, run directory, the model once somebody needs it."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from refusal_cmp.config import DATE, STAGES, TEMPLATE_FILES, RunConfig, load_config, named_file
from refusal_cmp.engines import ENGINES, Engine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import read_text
from refusal_cmp.model import ChatModel, ModelSource
from refusal_cmp.model.chat import Chat
from refusal_cmp.plan import Plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.run.directory import RunDir, say_nothing, why_no_run

PACKAGES = ("refusal-cmp", "torch", "transformers", "numpy", "scipy", "scikit-learn")


@dataclass
class Session:
    """One command at work on one run directory."""

    config: RunConfig
    run: RunDir
    progress: Progress = silent
    say: Callable[[str], None] = say_nothing
    """Tells the user something that is not progress: what was dropped, a warning, a fallback."""
    loaded: ChatModel | None = None
    """The model, where the caller has it already."""
    stages: tuple[str, ...] = STAGES
    """What the command will run: what it will not need is not fetched."""

    vouched: dict[str, str] = field(default_factory=dict)
    """By label of a plan that is another checkpoint: what its files are now."""

    def __post_init__(self) -> None:
        self.run.say = self.say

    @cached_property
    def model(self) -> ChatModel:
        """The model, loaded on first use; a stage whose work is finished never asks for it."""
        if not ENGINES.get(self.config.engine).shares_model:
            self._stop_engine()
        _hide_progress_bars()
        model = self.loaded or ChatModel.load(self.source, device=self.config.device)
        self.run.note(
            model={
                "name": self.config.model,
                "revision": model.revision,
                "architecture": type(model.model).__name__,
                "n_layers": model.n_layers,
                "d_model": model.d_model,
                "positions": list(model.positions),
                "dtype": str(model.model.dtype).removeprefix("torch."),
                "date": model.date,
            },
            device=str(model.device),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        )
        return model

    @property
    def source(self) -> ModelSource:
        """The model of the run, in the precision, at the commit and on the day that it was begun with.

        Whatever `auto`, a branch or no day mean by now: a run goes on as it was begun.
        """
        config = self.config
        begun, date = self.run.manifest.get("model"), config.date
        if begun is not None and STAGES[0] not in self.run.force:
            dtype, revision = begun["dtype"], begun["revision"] or config.revision
            date = date or begun.get("date")
        else:
            dtype, revision = config.dtype, self._commit
        return ModelSource(
            config.model,
            revision=revision,
            dtype=dtype,
            quantization=config.quantization,
            chat_template=self._template(),
            system=config.system,
            trust_remote_code=config.trust_remote_code,
            date=date or DATE,
        )

    def beside(self, where: str) -> ModelSource:
        """Another checkpoint of the model, to be loaded as the model is."""
        return replace(self.source, name=where, revision=None)

    @cached_property
    def _commit(self) -> str | None:
        """What the revision stands for on the hub, asked for once, so that all of a command is of one commit."""
        from refusal_cmp.model.loading import pinned

        return pinned(ModelSource(self.config.model, revision=self.config.revision)).revision

    def _template(self) -> str | None:
        given = self.config.chat_template
        if given is None:
            return None
        file = named_file(given, TEMPLATE_FILES, "chat template")
        return read_text(file, "chat template", give="a Jinja text file")

    @cached_property
    def engine(self) -> Engine:
        """Who generates. An engine with a model of its own and our model are not in memory at the same time."""
        engine: Engine = ENGINES.get(self.config.engine).start(self)
        self.run.note(versions=self.run.manifest.get("versions", {}) | engine.versions())
        return engine

    @property
    def chat(self) -> Chat:
        """What renders and tokenises prompts, of the model or without loading it."""
        return self.__dict__.get("model") or self.loaded or self._chat

    @cached_property
    def _chat(self) -> Chat:
        return Chat.load(self.source)

    def host_of(self, plan: Plan) -> Session:
        """Whose model and engine run a plan: these, or those of another checkpoint. One is in memory at a time."""
        beside: Beside | None = self.__dict__.get("_beside")
        if beside is not None and beside.plan != plan:
            beside.release()
            del self.__dict__["_beside"]
        if not plan.checkpoint:
            return self
        if "_beside" not in self.__dict__:
            self.release()
            self.__dict__["_beside"] = Beside(self.config, self.run, self.progress, self.say, base=self, plan=plan)
        return self.__dict__["_beside"]

    def release(self) -> None:
        """Free the model and the engine: another model needs the memory. They are loaded again on next use."""
        beside: Beside | None = self.__dict__.pop("_beside", None)
        if beside is not None:
            beside.release()
        self._stop_engine()
        self.__dict__.pop("model", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop_engine(self) -> None:
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()


@dataclass
class Beside(Session):
    """The session as it is for a plan that is another checkpoint: its weights, and all else as the run has it."""

    base: Session = field(kw_only=True)
    plan: Plan = field(kw_only=True)

    @cached_property
    def model(self) -> ChatModel:
        """The checkpoint, in the precision of the run.

        Raises
        ------
        RefusalCmpError
            If it is of another shape than the model, or its files are not those that completions were made with.
        """
        from refusal_cmp.model.beside import load_beside

        self._vouch()
        _hide_progress_bars()
        if not ENGINES.get(self.config.engine).shares_model:
            self._stop_engine()
        return load_beside(self.plan.label, self.source, self.chat, self.config.device)

    @property
    def source(self) -> ModelSource:
        """The checkpoint, to be loaded as the model is."""
        self._vouch()
        return self.base.beside(self.plan.checkpoint)

    @property
    def chat(self) -> Chat:
        """The model's."""
        return self.base.chat

    def _vouch(self) -> None:
        from refusal_cmp.model.beside import content_beside

        known = self.base.vouched
        if self.plan.label not in known:
            known[self.plan.label] = content_beside(self.base.beside(self.plan.checkpoint), self.progress)
        if known[self.plan.label] != self.plan.content:
            raise RefusalCmpError(
                f"The files of {self.plan.label}, {self.plan.checkpoint}, are not those that {self.run.path} has "
                f"completions of; run {self.run.command('infer')} again, or give the files that it was made with."
            )


def open_run(path: Path, **machine: Any) -> Session:
    """A session on a finished run, with the configuration that its manifest holds.

    Parameters
    ----------
    machine
        Machine settings, such as the device; by default those of this machine.
    """
    run = RunDir(path)
    if not run.settings:
        raise RefusalCmpError(f"{path} is not a run directory: {why_no_run(run)}.")
    return Session(load_config(None, run.settings | machine), run)


def _hide_progress_bars() -> None:
    """transformers' own: ours is the one that is shown."""
    from transformers.utils import logging

    logging.disable_progress_bar()
