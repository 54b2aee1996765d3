"""The pipeline: extract → select → infer → evaluate → report, one file each.

Each stage reads the files of the one before and writes files that a person can open. Finished work is
recognised by what it was made from (`refusal_cmp.run.directory`) and is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from refusal_cmp.config import SETTINGS_OF, STAGES, RunConfig, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import BASELINE, PROMPT
from refusal_cmp.run.contents import CONFIG, answers_file
from refusal_cmp.run.session import Session
from refusal_cmp.selection.among import chosen, named

Around = Callable[[Session, str], AbstractContextManager[object]]


def _nothing(session: Session, stage: str) -> AbstractContextManager[object]:
    return nullcontext()


def run_stages(session: Session, stages: Sequence[str], around: Around = _nothing) -> None:
    """Run these stages, in order; settings of earlier stages must be those that they were run with.

    Parameters
    ----------
    around
        Makes the context that each stage is run in, inside the lock of the run directory.
    """
    check_stages(session, stages)
    with session.run.locked():
        _check_upstream(session, STAGES[: STAGES.index(stages[0])])
        if "config" not in session.run.manifest:
            _note_config(session, session.config)
        _check_test_sets(session)
        session.run.begin({"stages": stages, "force": session.run.force, "config": session.config.digest})
        if _read_more_than_the_run(stages):
            _check_weights(session)
        for stage in stages:
            started = time.monotonic()
            _mark(session, stage, state="running")
            if stage in session.run.force:
                session.run.outdate(STAGES[STAGES.index(stage) + 1 :])
            with around(session, stage):
                _function(stage)(session)
            _mark(session, stage, state="done", seconds=round(time.monotonic() - started, 3))
            settled = _settled(session, stage)  # after it: settings that a stage refuses are not the run's
            _note_config(session, settled)
            session.run.write_bytes(CONFIG, settled.to_yaml().encode())
            session.run.save()
        session.run.finish()
        session.run.save()


def _function(stage: str) -> Callable[[Session], None]:
    return getattr(import_module(f"refusal_cmp.stages.{stage}"), f"{stage}_stage")


def _read_more_than_the_run(stages: Sequence[str]) -> bool:
    return tuple(stages) != STAGES[-1:]


def check_stages(session: Session, stages: Sequence[str]) -> None:
    """Every name in the configuration is looked up before any work starts, or a folder is made."""
    session.stages = tuple(stages)
    config = session.config
    evaluated = session.run.manifest.get("stages", {}).get("evaluate", {}).get("state") == "done"
    from refusal_cmp import evals, methods
    from refusal_cmp.calibration.varied import check_varied
    from refusal_cmp.data.sets import check_name
    from refusal_cmp.data.wrappers import wrapper
    from refusal_cmp.engines import ENGINES
    from refusal_cmp.interventions import INTERVENTIONS
    from refusal_cmp.methods import EXTRACTORS
    from refusal_cmp.model.loading import load_chat
    from refusal_cmp.planning import Scope, Setting
    from refusal_cmp.stages.pinned import pinned_config

    model = Path(config.model)
    is_local = model.is_absolute() or config.model.startswith((".", "~"))
    if is_local and not model.exists() and _read_more_than_the_run(stages):
        raise RefusalCmpError(
            f"The model {config.model} is not there; give a folder, a GGUF file, or a Hugging Face id."
        )
    if session.loaded is None and not evaluated:
        load_chat(session.source)
    if PROMPT.rstrip("/") in config.methods:
        raise RefusalCmpError(
            "A system prompt finds no direction, so prompt is no method: it is a plan of its own, beside those that "
            "edit; take it out of the methods and name the system prompts.",
            system_prompts="less,more",
        )
    for name in config.methods:
        methods.configured(config, name)
    if not evaluated and {"extract", "select"} & set(stages):
        _check_components(session)
    if "infer" in stages:
        _check_checkpoints(session)
        if config.wrappers and "harmful" not in config.test_sets:
            raise RefusalCmpError(
                "Wrappers are put around harmful test prompts, and harmful is not among the test sets; add it, or "
                "leave the wrappers out.",
                eval_datasets="",
                wrappers="",
            )
        for name in config.wrappers:
            wrapper(name)
        for text in config.other_systems.values():
            with session.chat.asked(text):
                pass  # the template has a place for it
    for name in (*config.method_options, *config.rank_key_of, *config.score_sites_of):
        EXTRACTORS.get(name)
    for name in config.interventions:
        INTERVENTIONS.create(name).check(Setting.of(config), several=any(scope != "single" for scope in config.scope))
        if config.calibrate is not None or config.curve:
            check_varied(name)
    for name in config.strengths:
        INTERVENTIONS.create(name)
    for name in config.evals:
        evals.configured(config, name)
    if "evaluate" in stages and not evaluated:
        pinned = pinned_config(session)
        for name in config.evals:
            evals.configured(pinned, name).check(tuple(config.test_sets))
    for name in (config.harmful, config.harmless, *config.other_sets.values()):
        check_name(name)
    for scope in config.scope:
        Scope.parse(scope)
    engine = ENGINES.get(config.engine)
    engine.check()
    for name in config.interventions:
        engine.check_tokens(INTERVENTIONS.create(name).tokens)


def _check_components(session: Session) -> None:
    """The model has the components that the settings name, as its tokenizer and its configuration say."""
    config, loaded = session.config, session.loaded
    if config.positions is None and config.layers is None and all(named(one) is None for one in config.component):
        return
    from refusal_cmp.methods import configured
    from refusal_cmp.model.loading import described

    post = session.chat.positions
    shape = loaded.model.config if loaded else described(session.source)[1]
    beyond = {at for name in config.methods for at in configured(config, name).positions(post)} - set(post)
    chosen(config, post, shape.get_text_config().num_hidden_layers, sorted(beyond))


def _check_checkpoints(session: Session) -> None:
    """The other checkpoints are there, are of the same model, and have names of their own."""
    from refusal_cmp.methods import EXTRACTORS
    from refusal_cmp.model.beside import check_beside
    from refusal_cmp.model.files import GGUF
    from refusal_cmp.model.loading import described

    config, loaded = session.config, session.loaded
    for name, where in config.checkpoints.items():
        if name in (BASELINE, *EXTRACTORS, *config.methods, *config.given_files):
            raise RefusalCmpError(f"The checkpoint {name} ({where}) is called like a plan or a method; rename it.")
        place = Path(where)
        is_stranger = place.is_file() and place.suffix.lower() != GGUF
        if is_stranger or (not place.exists() and (place.is_absolute() or where.startswith("."))):
            raise RefusalCmpError(
                f"The checkpoint {name} is no model that is there: {where}; give a folder, a GGUF file, or a Hugging "
                "Face id."
            )
    if config.checkpoints:
        tokenizer, shape = (loaded.tokenizer, loaded.model.config) if loaded else described(session.source)[:2]
        for name, where in config.checkpoints.items():
            check_beside(name, session.beside(where), tokenizer, shape)


def _check_upstream(session: Session, upstream: Sequence[str]) -> None:
    for stage in upstream:
        record = session.run.manifest.get("stages", {}).get(stage)
        if record is None:
            continue  # the stage that reads its files says so
        if record["state"] != "done":
            raise RefusalCmpError(
                f"The stage {stage} of {session.run.path} is not finished ({record['state']}); run "
                f"{session.run.command(stage)} again first, with the same settings."
            )
        before = record["settings"] if "settings" in record else session.run.manifest["config"]  # of older versions
        unknown = load_config(None, {}).binding(stage)  # what a version did not know, it did as is done by default
        for name, value in session.config.binding(stage).items():
            then = before.get(name, unknown[name])
            if then != value:
                raise RefusalCmpError(
                    f"The setting {name.replace('_', '-')} was {then!r} in {stage} of "
                    f"{session.run.path}, is now {value!r}, and matters to it; redo the run from there, or name "
                    "another.",
                    force="",
                    alias="NAME",
                )


def _check_test_sets(session: Session) -> None:
    """The prompts of a test set come from where those that were completed did: `harmful` can be played by others."""
    for dataset in session.config.test_sets:
        source = {"prompts": session.config.test_source(dataset)}
        session.run.check_settings(answers_file(BASELINE, dataset), source)


def _check_weights(session: Session) -> None:
    """The files of a model are those that the run was begun with: their names say nothing of them."""
    from refusal_cmp.model.loading import content_of

    run, source = session.run, session.source
    is_known = "model" in run.manifest and "weights" not in run.manifest and not Path(source.path).exists()
    if session.loaded is not None or is_known:  # one on the hub goes by its commit
        return
    found = content_of(source, session.progress)
    if found is None:
        return
    if run.manifest.get("weights", found) != found and STAGES[0] not in run.force:
        raise RefusalCmpError(
            f"The files of the model {session.config.model} are not those that {run.path} was begun with; do the whole "
            "run again, or name another.",
            force="",
            alias="NAME",
        )
    run.note(weights=found)


def _settled(session: Session, stage: str) -> RunConfig:
    """The configuration once a stage is done: later ones have the settings that they were done with, if they were."""
    stages = session.run.manifest["stages"]
    later = [name for name in STAGES[STAGES.index(stage) + 1 :] if stages.get(name, {}).get("state") == "done"]
    names = [name for one in later if one in SETTINGS_OF for name in SETTINGS_OF[one].model_fields]
    if not names:
        return session.config
    before = load_config(None, session.run.settings)
    return session.config.model_copy(update={name: getattr(before, name) for name in names})


def _note_config(session: Session, config: RunConfig) -> None:
    session.run.note(config=config.model_dump(mode="json"), config_hash=config.digest, seed=config.seed)


def _mark(session: Session, stage: str, **facts: Any) -> None:
    """Say how far a stage is, and with which settings."""
    settings = session.config.binding(stage) if stage in SETTINGS_OF else {}
    session.run.note(stages=session.run.manifest.get("stages", {}) | {stage: {**facts, "settings": settings}})
