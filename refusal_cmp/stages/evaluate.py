"""evaluate: plans and completions → judgements of every example → results.csv."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusal_cmp.config import EvaluateSettings
from refusal_cmp.evals import EVALUATORS, Evaluator, Subject
from refusal_cmp.plan import Plan, file_name
from refusal_cmp.session import Session
from refusal_cmp.stages.infer import answers_file, read_answers, read_plans

RESULTS = "results.csv"
COLUMNS = [
    "model",
    "method",
    "k",
    "intervention",
    "strength",
    "scope",
    "n_components",
    "n_layers",
    "direction",
    "position",
    "layer",
    "seed",
    "dataset",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
]


def evaluate_stage(session: Session) -> None:
    """Run every evaluator on every distinct plan, and tabulate all plans."""
    plans = read_plans(session)
    evaluators = {name: EVALUATORS.create(name) for name in session.config.evals}
    distinct = [plan for plan, same_as in plans if plan.label == same_as]
    missing = [
        (plan, name)
        for plan in distinct
        for name, evaluator in evaluators.items()
        if not _is_fresh(session, plan, name, evaluator)
    ]
    with session.progress("plans × evaluators", len(missing)) as advance:
        for plan, name in missing:
            _evaluate(session, plan, name, evaluators[name])
            advance(1)
    session.run.write_table(RESULTS, _tabulate(session, plans))


def _metrics_file(label: str, evaluator: str) -> str:
    return f"evaluate/{file_name(label)}/{evaluator}.json"


def _inputs(session: Session, plan: Plan, name: str, evaluator: Evaluator) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an evaluation is made from: its settings and its sources."""
    settings = session.config.binding("evaluate") if evaluator.reads == "model" else {}
    files = [answers_file(plan.label, dataset) for dataset in session.config.eval_datasets]
    for file in files:
        session.run.require(file, "infer")
    sources: dict[str, Any] = {"edits": plan.digest}
    if evaluator.reads == "completions":
        sources |= {file: session.run.digest(file) for file in files}
    return settings, sources


def _is_fresh(session: Session, plan: Plan, name: str, evaluator: Evaluator) -> bool:
    return session.run.is_fresh(_metrics_file(plan.label, name), *_inputs(session, plan, name, evaluator))


def _evaluate(session: Session, plan: Plan, name: str, evaluator: Evaluator) -> None:
    subject = Subject(
        plan=plan,
        answers={dataset: read_answers(session, plan.label, dataset) for dataset in session.config.eval_datasets},
        engine=lambda: session.engine,
        options=session.config.model_dump(include=set(EvaluateSettings.model_fields)),
    )
    evaluation = evaluator.evaluate(subject)
    for dataset, rows in evaluation.examples.items():
        session.run.write_lines(f"evaluate/{file_name(plan.label)}/{name}.{dataset}.jsonl", rows)
    metrics = [{"dataset": one.dataset, "metric": one.metric, **one.estimate._asdict()} for one in evaluation.metrics]
    session.run.write_json(_metrics_file(plan.label, name), metrics)
    session.run.record(_metrics_file(plan.label, name), *_inputs(session, plan, name, evaluator))


def _tabulate(session: Session, plans: list[tuple[Plan, str]]) -> pd.DataFrame:
    """Every metric of every plan; identical plans have the same numbers."""
    config = session.config
    rows = []
    for plan, same_as in plans:
        facts = {
            "model": config.run_name,
            "seed": config.seed,
            **plan.facts(),
            "method": plan.method or plan.label,
        }
        for name in config.evals:
            for metric in session.run.read_json(_metrics_file(same_as, name)):
                metric = {**metric, "ci_low": metric["low"], "ci_high": metric["high"]}
                rows.append({**facts, **metric})
    table = pd.DataFrame(rows)[COLUMNS]
    return table.astype(dict.fromkeys(("k", "n_components", "n_layers", "position", "layer"), "Int64"))
