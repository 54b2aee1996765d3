"""Engines complete prompts under a plan. One file each; see `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

from refusal_cmp.config import RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, ModelSource
from refusal_cmp.model.chat import Chat
from refusal_cmp.model.generation import Completion, Job
from refusal_cmp.plan import Plan, Tokens
from refusal_cmp.progress import Progress, silent
from refusal_cmp.registry import Registry


class Host(Protocol):
    """What an engine is started from: a run's `Session`."""

    @property
    def config(self) -> RunConfig:
        """The run's settings."""

    @property
    def model(self) -> ChatModel:
        """The model in this process, loaded on first use."""

    @property
    def source(self) -> ModelSource:
        """The model, for an engine that loads it itself."""

    @property
    def chat(self) -> Chat:
        """What renders and tokenises prompts: the run's, also where the model is another checkpoint."""

    @property
    def say(self) -> Callable[[str], None]:
        """Tells the user something."""

    def release(self) -> None:
        """Free the model in this process: an engine that loads it itself needs the memory."""


class Engine(ABC):
    """Runs one model under one plan after another."""

    shares_model: ClassVar[bool] = False
    """Whether it runs the model of this process; otherwise it and that model are not in memory at the same time."""
    tells_tokens: ClassVar[bool] = False
    """Whether it can edit the tokens of prompts, or those that are generated, alone."""

    @classmethod  # noqa: B027
    def check(cls) -> None:
        """RefusalCmpError if what the engine needs is not installed; asked before any work starts."""

    @classmethod
    @abstractmethod
    def start(cls, host: Host) -> Engine:
        """The engine for a run."""

    @classmethod
    def check_tokens(cls, tokens: Tokens) -> None:
        """RefusalCmpError if it cannot edit these tokens alone: asked before any work, and for every plan."""
        if tokens != "all" and not cls.tells_tokens:
            raise RefusalCmpError(
                f"A plan edits {tokens} tokens alone, and this engine edits all tokens alike; take hf, or leave out "
                "interventions with tokens in brackets.",
                engine="hf",
                interventions="",
            )

    def versions(self) -> dict[str, str]:
        """Versions of packages that its completions may depend on, for the manifest."""
        return {}

    @abstractmethod
    def generate(
        self,
        plan: Plan,
        instructions: Sequence[str],
        max_new_tokens: int,
        progress: Progress = silent,
        done: MutableMapping[int, Completion] | None = None,
    ) -> list[Completion]:
        """Greedy completions under the plan, in the order of the instructions.

        Parameters
        ----------
        done
            Completions by the index of their instruction that there are already. They are not made again, and
            each new one is added as soon as it is finished, so that killed work can go on from there.
        """

    def generate_many(
        self,
        jobs: Sequence[Job],
        max_new_tokens: int,
        progress: Progress = silent,
        finished: Callable[[Job], None] = lambda _: None,
    ) -> None:
        """The completions of many jobs, each a plan and its prompts; here one job after the other, by `generate`.

        An engine that runs several plans at once does better here.

        Parameters
        ----------
        jobs
            Completions are added to what each has `done`.
        finished
            Told of each job once none of its completions is missing.
        """
        with progress("generating", sum(len(job.instructions) for job in jobs)) as advance:

            @contextmanager
            def part(_: str, __: int) -> Iterator[Callable[[int], None]]:
                yield advance

            for job in jobs:
                if job.is_done:
                    advance(len(job.done))
                else:
                    self.generate(job.plan, job.instructions, max_new_tokens, part, done=job.done)
                finished(job)

    def close(self) -> None:  # noqa: B027
        """Free what the engine holds; nothing is asked of it afterwards."""


class BatchEngine(Engine):
    """An engine that runs several plans at once: one plan alone is a single job of many."""

    def generate(
        self,
        plan: Plan,
        instructions: Sequence[str],
        max_new_tokens: int,
        progress: Progress = silent,
        done: MutableMapping[int, Completion] | None = None,
    ) -> list[Completion]:
        """Greedy completions under the plan, in the order of the instructions; see `Engine.generate`."""
        job = Job(plan, instructions, {} if done is None else done)
        self.generate_many([job], max_new_tokens, progress)
        return [job.done[index] for index in range(len(instructions))]

    @abstractmethod
    def generate_many(
        self,
        jobs: Sequence[Job],
        max_new_tokens: int,
        progress: Progress = silent,
        finished: Callable[[Job], None] = lambda _: None,
    ) -> None:
        """The completions of many jobs, those of several plans together; see `Engine.generate_many`."""


ENGINES: Registry[type[Engine]] = Registry("engine", __name__, Engine)
register_engine = ENGINES.register
