"""infer: selections → the grid of plans → completions of every test prompt under every plan."""

from __future__ import annotations

import json
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from refusal_cmp.data import Prompt
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.evals import Answer
from refusal_cmp.generation import Completion
from refusal_cmp.interventions.planning import Chosen, grid
from refusal_cmp.interventions.scope import Scope
from refusal_cmp.plan import BASELINE, FACTS, Place, Plan, baseline, file_name
from refusal_cmp.session import Session
from refusal_cmp.stages.prompts import PROMPTS, prompts_file, read_test_prompts
from refusal_cmp.stages.select import SELECTION, read_fields, read_selections, setting

PLANS = "infer/plans.json"


def infer_stage(session: Session) -> None:
    """Complete the test prompts under the baseline and under every distinct plan."""
    config, run = session.config, session.run
    run.require(PROMPTS, "extract")
    run.require(SELECTION, "select")
    plans = [baseline(), *_grid(session)]
    originals = _originals(plans)
    prompts = {dataset: read_test_prompts(session, dataset) for dataset in config.test_sets}
    settings = config.binding("infer")
    settings = {key: settings[key] for key in ("max_new_tokens", "engine")}
    distinct = [plan for plan in plans if originals[plan.label] == plan.label]
    missing = [
        (plan, dataset)
        for plan in distinct
        for dataset in config.test_sets
        if not run.is_fresh(answers_file(plan.label, dataset), settings, _sources(session, plan, dataset))
    ]
    for plan in distinct:
        _write_plan(session, plan)
    run.write_json(PLANS, [{"label": plan.label, "same_as": originals[plan.label], **plan.facts()} for plan in plans])
    if len(distinct) < len(plans):
        session.say(f"{len(plans)} plans, {len(distinct)} of them distinct; the others do exactly the same as one.")
    with session.progress("plans × test sets", len(missing)) as advance:
        for plan, dataset in missing:
            name, sources = answers_file(plan.label, dataset), _sources(session, plan, dataset)
            done = run.journal(name, [settings, sources], encode=asdict, decode=lambda row: Completion(**row))
            answers = _complete(session, plan, prompts[dataset], done)
            run.write_lines(name, [asdict(answer) for answer in answers])
            run.record(name, settings, sources)
            done.discard()
            advance(1)


def answers_file(label: str, dataset: str) -> str:
    """The artifact that holds a plan's completions of a test set."""
    return f"infer/{file_name(label)}/{dataset}.jsonl"


def read_plans(session: Session) -> list[tuple[Plan, str]]:
    """The plans of the run, each with the label of the plan that was run for it: itself or an identical one."""
    run = session.run
    run.require(PLANS, "infer")
    plans = []
    for row in run.read_json(PLANS):
        facts = {name: row[name] for name in FACTS}
        plans.append((Plan(row["label"], _read_edits(session, row["same_as"]), **facts), row["same_as"]))
    return plans


def read_answers(session: Session, label: str, dataset: str) -> list[Answer]:
    """A plan's completions of a test set."""
    name = answers_file(label, dataset)
    session.run.require(name, "infer")
    return [Answer(**row) for row in session.run.read_lines(name)]


def _grid(session: Session) -> list[Plan]:
    config = session.config
    pairs = zip(read_fields(session), read_selections(session), strict=True)
    chosen = [Chosen(field, selection.selected, selection.ranking) for field, selection in pairs]
    strengths: dict[str, Sequence[float]] = {
        **config.strengths,
        "actadd": config.actadd_multipliers,
        "reflection": config.reflection_alphas,
    }
    scopes = [Scope.parse(scope) for scope in config.scope]
    return grid(
        chosen,
        config.interventions,
        scopes,
        strengths=strengths,
        direction=config.direction,
        setting=setting(config),
    )


def _originals(plans: Sequence[Plan]) -> dict[str, str]:
    """For each plan the label of the first plan with the same edits."""
    first: dict[str, str] = {}
    return {plan.label: first.setdefault(plan.digest, plan.label) for plan in plans}


def _sources(session: Session, plan: Plan, dataset: str) -> dict[str, Any]:
    prompts = prompts_file(dataset)
    return {prompts: session.run.digest(prompts), "edits": plan.digest}


def _complete(
    session: Session, plan: Plan, prompts: Sequence[Prompt], done: MutableMapping[int, Completion]
) -> list[Answer]:
    instructions = [prompt.instruction for prompt in prompts]
    completions = session.engine.generate(plan, instructions, session.config.max_new_tokens, done=done)
    return [
        Answer(prompt.instruction, prompt.category, one.text, one.n_tokens, one.finish)
        for prompt, one in zip(prompts, completions, strict=True)
    ]


def _write_plan(session: Session, plan: Plan) -> None:
    """Write a plan's edits: each tensor once, and where it acts, as most places share theirs."""
    if plan.label == BASELINE:
        return
    tensors: dict[str, Tensor] = {}
    names: dict[bytes, str] = {}
    places: dict[str, dict[str, str]] = {}
    for place, edit in plan.edits.items():
        for term, tensor in edit.tensors().items():
            values = tensor.float().contiguous().cpu()
            name = names.setdefault(repr(values.shape).encode() + values.numpy().tobytes(), str(len(names)))
            tensors[name] = values
            places.setdefault(f"{place.layer}.{place.site}", {})[term] = name
    session.run.write_tensors(_plan_file(plan.label), tensors, {"label": plan.label, "places": json.dumps(places)})


def _read_edits(session: Session, label: str) -> dict[Place, LowRankEdit]:
    if label == BASELINE:
        return {}
    session.run.require(_plan_file(label), "infer")
    tensors, metadata = session.run.read_tensors(_plan_file(label))
    edits = {}
    for at, terms in json.loads(metadata["places"]).items():
        layer, site = at.split(".")
        edits[Place(int(layer), site)] = LowRankEdit(**{term: tensors[name] for term, name in terms.items()})
    return edits


def _plan_file(label: str) -> str:
    return f"infer/{file_name(label)}/plan.safetensors"
