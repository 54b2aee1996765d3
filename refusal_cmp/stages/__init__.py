"""The pipeline: extract → select → infer → evaluate → report, one file each.

Each stage reads the files of the one before and writes files that a person can open. Finished work is
recognised by what it was made from (`refusal_cmp.artifacts`) and is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from refusal_cmp.config import STAGES, RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.session import Session

CONFIG = "config.yaml"
"""The run's resolved configuration; `--config` takes it."""


def run_stages(session: Session, stages: Sequence[str]) -> None:
    """Run these stages, in order; settings of earlier stages must be those that they were run with."""
    _check(session.config, stages)
    with session.run.locked():
        _check_upstream(session, STAGES[: STAGES.index(stages[0])])
        session.run.note(
            config=session.config.model_dump(mode="json"),
            config_hash=session.config.digest,
            seed=session.config.seed,
        )
        for stage in stages:
            started = time.monotonic()
            _mark(session, stage, "running")
            _function(stage)(session)
            _mark(session, stage, "done", round(time.monotonic() - started, 3))
            session.run.save()
            session.run.write_bytes(CONFIG, session.config.to_yaml().encode())


def _function(stage: str) -> Callable[[Session], None]:
    return getattr(import_module(f"refusal_cmp.stages.{stage}"), f"{stage}_stage")


def _check(config: RunConfig, stages: Sequence[str]) -> None:
    """Every name in the configuration is looked up before any work starts."""
    from refusal_cmp.data import check_name
    from refusal_cmp.evals import EVALUATORS
    from refusal_cmp.interventions import INTERVENTIONS
    from refusal_cmp.interventions.scope import Scope
    from refusal_cmp.stages.extract import extractor

    for name in config.methods:
        extractor(config, name)
    for name in config.interventions:
        INTERVENTIONS.get(name)
    for name in config.evals:
        evaluator = EVALUATORS.create(name)
        if "evaluate" in stages:
            evaluator.check(dict(config))
    for name in (config.harmful, config.harmless, *config.extra_datasets):
        check_name(name)
    for scope in config.scope:
        Scope.parse(scope)
    if config.engine == "vllm" and find_spec("vllm") is None:
        from refusal_cmp.engines.vllm import import_vllm

        import_vllm()  # says what is missing


def _check_upstream(session: Session, upstream: Sequence[str]) -> None:
    before = session.run.manifest.get("config")
    if before is None or not upstream:
        return
    for name, value in session.config.binding(*upstream).items():
        if before.get(name) != value:
            raise RefusalCmpError(
                f"The setting {name.replace('_', '-')} was {before.get(name)!r} when {session.run.path} was begun, is "
                f"now {value!r}, and matters to an earlier stage; start from there with --force, or name another "
                "run with --alias."
            )


def _mark(session: Session, stage: str, state: str, seconds: float | None = None) -> None:
    stages = dict(session.run.manifest.get("stages", {}))
    stages[stage] = {"state": state} if seconds is None else {"state": state, "seconds": seconds}
    session.run.note(stages=stages)
