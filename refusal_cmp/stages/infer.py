"""infer: selections → the grid of plans → completions of every test prompt under every plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from refusal_cmp.config import COMPLETING, RunConfig
from refusal_cmp.data import Prompt
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import Cell, grid_cells, strengths_of
from refusal_cmp.methods import configured
from refusal_cmp.model.beside import content_beside
from refusal_cmp.model.generation import Answer, Completion, Job, completion_of
from refusal_cmp.plan import BASELINE, Plan, baseline, checkpoint, prompted
from refusal_cmp.planning import Chosen, Scope, Setting
from refusal_cmp.run.contents import (
    PLANS,
    PROMPTS,
    SELECTION,
    answers_file,
    made_of,
    plan_file,
    plan_row,
    prompts_file,
    read_answers,
    read_field,
    read_fields,
    read_selections,
)
from refusal_cmp.run.journal import Journal
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Selection
from refusal_cmp.selection.among import among, named
from refusal_cmp.selection.shared import shared
from refusal_cmp.stages.calibration import calibrated
from refusal_cmp.stages.covariances import with_covariances
from refusal_cmp.stages.curves import write_curve
from refusal_cmp.stages.prompts import read_test_prompts
from refusal_cmp.subspace import SubspaceField

GRID = "infer/grid"
"""A journal of what was begun."""
_Part = tuple[Plan, str]
"""A test set to be completed under a plan."""


def infer_stage(session: Session) -> None:
    """Complete the test prompts under the baseline and under every distinct plan."""
    config, run = session.config, session.run
    run.require(PROMPTS)
    run.require(SELECTION)
    cells = _cells(session)
    edited = calibrated(session, cells) if config.calibrate else [cell.plan() for cell in cells]
    plans = [baseline(), *edited, *checkpoints(session), *system_prompts(session.config)]
    originals = _originals(plans)
    prompts = {dataset: read_test_prompts(session, dataset) for dataset in config.test_sets}
    settings = {
        dataset: {**config.marked(COMPLETING), "prompts": config.test_source(dataset)} for dataset in config.test_sets
    }
    distinct = [plan for plan in plans if originals[plan.label] == plan.label]
    missing = [
        (plan, dataset)
        for plan in distinct
        for dataset in config.test_sets
        if not run.is_fresh(answers_file(plan.label, dataset), settings[dataset], _sources(session, plan, dataset))
    ]
    for plan in distinct:
        _write_plan(session, plan)
    run.write_json(PLANS, [plan_row(plan, originals[plan.label]) for plan in plans])
    edits = [originals[plan.label] for plan in plans if plan.label != BASELINE]
    if len(set(edits)) < len(edits):
        n = len(set(edits))
        others = "the other does" if len(edits) - n == 1 else "the others do"
        same = "the same as it" if n == 1 else "what one of these does"
        session.say(f"{len(edits)} plans, {n} of them distinct; {others} exactly {same}.")
    begun = run.journal(GRID, settings)
    for some in _by_host(_as_begun(begun, missing, distinct)):
        if any(one in missing for one in some):
            _complete(session, [(*one, one in missing) for one in some], prompts, settings)
    begun.discard()
    if config.curve:
        write_curve(session, cells)
    _report_endings(session)


def _report_endings(session: Session) -> None:
    """Say so where the unedited model's completions are mostly cut off: what it would go on to say is not judged."""
    answers = [answer for dataset in session.config.test_sets for answer in read_answers(session, BASELINE, dataset)]
    cut = sum(answer.finish == "length" for answer in answers)
    if cut > len(answers) / 2:
        session.say(
            f"Warning: {cut} of the {len(answers)} completions of the unedited model end at max-new-tokens, "
            f"{session.config.max_new_tokens}, not where its turn ends: raise it, or look at them to see whether the "
            "model stops at all; late refusals are missed until then."
        )


def _cells(session: Session) -> list[Cell]:
    config = session.config
    fields, selections = read_fields(session), read_selections(session)
    _check_layers(session, fields, selections)
    chosen = []
    for which in config.component:
        at = shared(selections) if which == "shared" else named(which)
        if which == "shared":
            session.say(f"Shared by all methods: the direction at {at}.")
        for field, one in zip(fields, selections, strict=True):
            if at is not None and at not in field:
                if len(field) > 1 and at.position in field.means.positions:
                    raise RefusalCmpError(f"{field.method} has no subspace at {at}; choose another one.", component="")
                if len(field) > 1:
                    session.say(f"{field.method} reads other tokens than position {at.position}: no plan with {at}.")
                continue  # what is of one component, or of another token, is there, and nowhere else
            pool = one.pool(config.pool, everywhere=config.direction == "own")
            whole = _whole(session, field)
            chosen.append(Chosen(field, at or one.selected, pool, config.pool, which, whole=whole))
    scopes = [Scope.parse(scope) for scope in config.scope]
    return grid_cells(
        with_covariances(session, chosen),
        config.interventions,
        scopes,
        strengths=strengths_of(config),
        direction=config.direction,
        setting=Setting.of(config),
    )


def _whole(session: Session, field: SubspaceField) -> SubspaceField | None:
    """All directions of a method that has them in an order, where calibration varies how many are used."""
    varies = session.config.calibrate_over == "k" and configured(session.config, field.extracted_by).has_k
    return read_field(session, field.extracted_by) if varies else None


def _check_layers(session: Session, fields: Sequence[SubspaceField], selections: Sequence[Selection]) -> None:
    """Where every layer has its own direction, or all components are counted over, all of them have to be scored."""
    config = session.config
    wanted = {"direction": config.direction == "own", "pool": config.pool == "all"}
    for field, one in zip(fields, selections, strict=True):
        pruned = {at for at in among(field, config) if at.layer >= one.layers} - set(one.ranking)
        if any(wanted.values()) and len(pruned) > one.nan:
            (setting, *_) = [name for name, is_wanted in wanted.items() if is_wanted]
            raise RefusalCmpError(
                f"The setting {setting} {getattr(config, setting)} needs scores of the components from layer "
                f"{one.layers} on, which {session.run.path} has not; type {session.run.command('select')} with the "
                "same settings first."
            )


def checkpoints(session: Session) -> list[Plan]:
    """A plan for each of the other checkpoints."""
    plans = [
        checkpoint(name, where, content_beside(session.beside(where), session.progress))
        for name, where in session.config.checkpoints.items()
    ]
    session.vouched.update({plan.label: plan.content for plan in plans})
    return plans


def system_prompts(config: RunConfig) -> list[Plan]:
    """A plan for each of the other system prompts."""
    return [prompted(name, text) for name, text in config.other_systems.items()]


def _originals(plans: Sequence[Plan]) -> dict[str, str]:
    """For each plan the label of the first plan with the same edits."""
    first: dict[str, str] = {}
    return {plan.label: first.setdefault(plan.digest, plan.label) for plan in plans}


def _sources(session: Session, plan: Plan, dataset: str) -> dict[str, Any]:
    prompts = prompts_file(session.config, dataset)
    return {prompts: session.run.digest(prompts), **made_of(plan)}


def _as_begun(
    begun: MutableMapping[int, list[list[str]]], missing: Sequence[_Part], plans: Sequence[Plan]
) -> Sequence[_Part]:
    """What is missing, or where that was begun with more, all of it: batches are made of the same rows as before."""
    by_label = {plan.label: plan for plan in plans}
    names = [[plan.label, dataset] for plan, dataset in missing]
    before = begun.get(len(begun) - 1, [])
    if not names:
        return missing
    if all(name in before for name in names) and all(label in by_label for label, _ in before):
        return [(by_label[label], dataset) for label, dataset in before]
    begun[len(begun)] = names
    return missing


def _by_host(parts: Sequence[_Part]) -> list[list[_Part]]:
    """The plans of the model together, and those of each other checkpoint."""
    return [list(some) for _, some in groupby(parts, key=lambda part: part[0].checkpoint)]


def _complete(
    session: Session,
    parts: Sequence[tuple[Plan, str, bool]],
    prompts: Mapping[str, Sequence[Prompt]],
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Complete test sets under plans of one model; the file of each is written once its last completion is there.

    Parameters
    ----------
    parts
        Each with whether it is missing: what others have is there, and only says what batches are made of.
    """
    run, of_job = session.run, {}
    for plan, dataset, is_missing in parts:
        name, sources = answers_file(plan.label, dataset), _sources(session, plan, dataset)
        done: MutableMapping[int, Completion]
        if is_missing:
            identity = [settings[dataset], sources]
            done = run.journal(name, identity, encode=asdict, decode=lambda row: Completion(**row))
        else:
            done = dict(enumerate(map(completion_of, read_answers(session, plan.label, dataset))))
        job = Job(plan, [prompt.instruction for prompt in prompts[dataset]], done)
        of_job[job] = (name, dataset, sources)

    def write(job: Job) -> None:
        name, dataset, sources = of_job[job]
        if isinstance(job.done, Journal):
            run.write_lines(name, [asdict(one) for one in _answers(prompts[dataset], job.done)])
            run.record(name, settings[dataset], sources)
            job.done.discard()

    engine = session.host_of(parts[0][0]).engine
    engine.generate_many(list(of_job), session.config.max_new_tokens, session.progress, write)


def _answers(prompts: Sequence[Prompt], done: Mapping[int, Completion]) -> Iterator[Answer]:
    for index, prompt in enumerate(prompts):
        one = done[index]
        yield Answer(prompt.instruction, prompt.category, one.text, one.n_tokens, one.finish)


def _write_plan(session: Session, plan: Plan) -> None:
    if plan.label != BASELINE and not plan.edits_nothing:
        session.run.write_tensors(plan_file(plan.label), *plan.to_tensors())
