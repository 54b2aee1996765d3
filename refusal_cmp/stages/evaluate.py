"""evaluate: plans and completions → judgements of every example → results.csv and comparisons.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from refusal_cmp.config import GRID, RunConfig, is_marked
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluator, Subject, configured, facts, measure_of
from refusal_cmp.plan import BASELINE, Plan, baseline
from refusal_cmp.run.contents import (
    AGREEMENT,
    COLUMNS,
    COMPARISONS,
    MEANS,
    RESULTS,
    SELECTION,
    WEIGHTS,
    answers_file,
    examples_file,
    made_of,
    metrics_file,
    read_answers,
    read_examples,
    read_plans,
    read_refusal_tokens,
    read_selected,
    read_turns,
    subspace_file,
)
from refusal_cmp.run.journal import Memo
from refusal_cmp.run.session import Session
from refusal_cmp.stages.pinned import pinned_config
from refusal_cmp.statistics import Estimate
from refusal_cmp.statistics.agreement import agreements
from refusal_cmp.statistics.comparisons import compare_plans

HARMFUL = "harmful"
"""The test set on which to go along is to be unsafe, so that judges of refusal and of safety can be compared."""


def evaluate_stage(session: Session) -> None:
    """Run every evaluator on every distinct plan, tabulate all plans, and compare them in pairs."""
    plans = read_plans(session)
    distinct = [plan for plan, same_as in plans if plan.label == same_as]
    config = pinned_config(session)
    asked = [*config.evals, *(WEIGHTS[:1] if any(plan.checkpoint for plan in distinct) else ())]
    evaluators = {name: configured(config, name) for name in dict.fromkeys(asked)}
    order = sorted(evaluators, key=lambda name: ("model" not in evaluators[name].reads, evaluators[name].loads_model))
    made_with = {name: facts(config, name) for name in evaluators}
    inputs = {
        (plan.label, name): _inputs(session, plan, evaluators[name], made_with[name])
        for plan in distinct
        for name in evaluators
    }
    _check_settings(session, inputs)
    missing = {
        name: [
            plan
            for plan in distinct
            if not session.run.is_fresh(metrics_file(plan.label, name), *inputs[plan.label, name])
        ]
        for name in order
    }
    busy = [name for name in order if missing[name]]
    for name in order:
        done = session.run.journal(f"evaluate/{name}", [made_with[name], _read_from(session, evaluators[name])])
        if name in busy:
            if evaluators[name].loads_model:
                session.release()
            # One evaluator's plans take about the same time, and another's ten times as long.
            which = f"{name} ({busy.index(name) + 1} of {len(busy)} evaluators), plans"
            with session.progress(which, len(missing[name])) as advance:
                subjects = [_subject(session, plan, name, is_done=plan not in missing[name]) for plan in distinct]
                evaluators[name].prepare(subjects, Memo(done))
                for subject in subjects:
                    if subject.judged is None:
                        _evaluate(session, subject, name, evaluators[name], inputs[subject.plan.label, name])
                        advance(1)
        done.discard()
        evaluators[name].close()
    metrics = {
        plan.label: [one for name in evaluators for one in session.run.read_json(metrics_file(plan.label, name))]
        for plan in distinct
    }
    session.run.write_table(RESULTS, _tabulate(session, plans, metrics))
    names = {one["metric"] for of_plan in metrics.values() for one in of_plan}
    distances = {name for name in names if measure_of(name).is_distance}
    session.run.write_table(COMPARISONS, compare_plans(plans, metrics, distances, session.progress))
    _write_agreement(session, distinct)


def _check_settings(session: Session, inputs: Mapping[tuple[str, str], tuple[Mapping[str, Any], Any]]) -> None:
    """RefusalCmpError that names all evaluators which a changed setting concerns, so that they are redone together."""
    changed = {
        name: how
        for (plan, name), (settings, _) in inputs.items()
        if (how := session.run.changed(metrics_file(plan, name), settings))
    }
    if changed:
        ways = dict.fromkeys(way for how in changed.values() for way in how)
        raise RefusalCmpError(
            f"{session.run.path} has finished work of {', '.join(changed)} that was made with other settings: "
            f"{', '.join(ways)}; redo just that and then evaluate with all, or keep it and name another run.",
            evals=",".join(changed),
            force="",
            alias="NAME",
        )


def _inputs(
    session: Session, plan: Plan, evaluator: Evaluator, made_with: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and sources that an evaluation is made from. Lists are among the sources: one can be added to."""
    run, config = session.run, session.config
    files = []
    if "completions" in evaluator.reads:
        files += [answers_file(plan.label, dataset) for dataset in config.test_sets]
    if "baseline" in evaluator.reads:
        files += [answers_file(BASELINE, dataset) for dataset in config.test_sets]
    if "subspaces" in evaluator.reads:
        files += [SELECTION, MEANS, *(subspace_file(name) for name in config.methods)]
    lists = {name: value for name, value in made_with.items() if is_marked(RunConfig.model_fields[name], GRID)}
    settings = {name: value for name, value in made_with.items() if name not in lists}
    return settings, {**made_of(plan), **lists, **{file: run.digest(file) for file in files}}


def _read_from(session: Session, evaluator: Evaluator) -> dict[str, Any]:
    """Which model work in progress was read from, so that none goes on with what was read from another.

    Files of a model may change under their name: its completions tell.
    """
    if "model" not in evaluator.reads:
        return {}
    files = [answers_file(BASELINE, dataset) for dataset in session.config.test_sets]
    return {"model": session.run.manifest.get("model"), **{file: session.run.digest(file) for file in files}}


def _subject(session: Session, plan: Plan, evaluator: str, is_done: bool) -> Subject:
    config = session.config

    def judged(dataset: str) -> list[dict[str, Any]]:
        return read_examples(session, plan.label, evaluator, dataset)

    return Subject(
        plan=plan,
        answers={dataset: read_answers(session, plan.label, dataset) for dataset in config.test_sets},
        baseline={dataset: read_answers(session, BASELINE, dataset) for dataset in config.test_sets},
        model=lambda: session.host_of(plan).model,
        unedited=lambda: session.host_of(baseline()).model,
        batch_size=config.batch_size,
        selected=lambda: read_selected(session),
        judged=judged if is_done else None,
        refusal_tokens=read_refusal_tokens(session),
        turns=read_turns(session),
        progress=session.progress,
        say=session.say,
    )


def _evaluate(
    session: Session, subject: Subject, name: str, evaluator: Evaluator, inputs: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    run, plan = session.run, subject.plan
    evaluation = evaluator.evaluate(subject)
    for dataset, rows in evaluation.examples.items():
        run.write_lines(examples_file(plan.label, name, dataset), rows)
    metrics = [
        {"dataset": one.dataset, "metric": one.metric, **one.estimate._asdict(), "values": one.values,
         "weights": one.weights}
        for one in evaluation.metrics
    ]  # fmt: skip
    run.write_json(metrics_file(plan.label, name), metrics)
    also = [examples_file(plan.label, name, dataset) for dataset in evaluation.examples]
    run.record(metrics_file(plan.label, name), *inputs, also)


def _write_agreement(session: Session, plans: Sequence[Plan]) -> None:
    """How far the judges that gave verdicts on the harmful prompts under every plan agree."""
    run = session.run
    verdicts: dict[str, list[list[str]]] = {}
    for name in session.config.evals:
        files = [examples_file(plan.label, name, HARMFUL) for plan in plans]
        rows = [run.read_lines(file) for file in files if run.has(file)]
        if len(rows) == len(plans) and all("verdict" in row for of_plan in rows for row in of_plan):
            verdicts[name] = [[row["verdict"] for row in of_plan] for of_plan in rows]
    if len(verdicts) > 1:
        run.write_table(AGREEMENT, pd.DataFrame([one.row() for one in agreements(verdicts)]))
    else:
        run.remove(AGREEMENT)  # of judges that are not asked any more


def _tabulate(
    session: Session, plans: list[tuple[Plan, str]], metrics: Mapping[str, list[dict[str, Any]]]
) -> pd.DataFrame:
    """Every metric of every plan; identical plans have the same numbers."""
    config = session.config
    rows = []
    for plan, same_as in plans:
        facts = {
            "model": config.model_name,
            "plan": plan.label,
            "seed": config.seed,
            **plan.facts(),
            "method": plan.method or plan.label,
        }
        rows += [{**facts, **metric, **_interval(metric)} for metric in metrics[same_as]]
    table = pd.DataFrame(rows)[COLUMNS]
    return table.astype(dict.fromkeys(("k", "n_components", "n_layers", "position", "layer"), "Int64"))


def _interval(metric: Mapping[str, Any]) -> dict[str, float]:
    """The ends of a metric's interval, which is no wider than what the metric can be."""
    found = Estimate(*(metric[name] for name in Estimate._fields))
    within = measure_of(metric["metric"]).within(found)
    return {"ci_low": within.low, "ci_high": within.high}
