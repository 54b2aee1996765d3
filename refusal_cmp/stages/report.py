"""report: results → one self-contained page, its figures, and the table that a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from refusal_cmp.artifacts import RunDir
from refusal_cmp.config import OWN_SETS, MachineSettings, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import BASELINE, FACTS, Plan
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures import Drawn, draw_all, rendered
from refusal_cmp.report.geometry import KINDS, Geometry, measure
from refusal_cmp.report.page import render
from refusal_cmp.report.table import labelled, summary
from refusal_cmp.selection import Rule
from refusal_cmp.session import Session
from refusal_cmp.stages.compare import RANKINGS
from refusal_cmp.stages.evaluate import AGREEMENT, COMPARISONS, RESULTS, examples_file
from refusal_cmp.stages.extract import read_field, subspace_file
from refusal_cmp.stages.infer import PLANS, answers_file, read_answers, read_plans
from refusal_cmp.stages.prompts import PROMPTS, prompts_file, read_prompts
from refusal_cmp.stages.select import SCORES, SELECTION, read_fields, read_selected, read_selections

SUMMARY = "report/summary.csv"
PAGE = "report/index.html"
GEOMETRY = "report/geometry.safetensors"
GEOMETRY_PROMPTS = 32
"""Test prompts of each kind that the geometry is measured on, at most."""


def report_stage(session: Session) -> None:
    """Write the summary, the figures and the page; nothing but the summary if they were made from the same files."""
    run = session.run
    run.write_table(SUMMARY, summary_of(run))
    sources = _sources(session)
    if run.is_fresh(PAGE, {}, sources):
        return
    data = read_run(session, measure_geometry(session))
    outcomes = draw_all(data)
    images = {
        (one.name, kind): rendered(one.figure, kind)
        for one in outcomes
        if isinstance(one, Drawn)
        for kind in ("png", "svg")
    }
    for (name, kind), image in images.items():
        run.write_bytes(f"report/figures/{name}.{kind}", image)
    run.write_bytes(PAGE, render(data, outcomes, images).encode())
    run.record(PAGE, {}, sources)


def summary_of(run: RunDir) -> pd.DataFrame:
    """The summary of a run that has been evaluated."""
    run.require(RESULTS, "evaluate")
    labels = [row["label"] for row in run.read_json(PLANS)]
    return summary(run.read_table(RESULTS), labels)


def open_run(path: Path, **machine: Any) -> Session:
    """A session on a finished run, with the configuration that its manifest holds.

    Parameters
    ----------
    machine
        Machine settings, such as the device; by default those of this machine.
    """
    run = RunDir(path)
    if "config" not in run.manifest:
        raise RefusalCmpError(f"{path} is not a run directory: it has no manifest.json that names its configuration.")
    stored = {name: value for name, value in run.manifest["config"].items() if name not in MachineSettings.model_fields}
    return Session(load_config(None, stored | machine), run)


def read_run(session: Session, geometry: Geometry | None = None) -> RunData:
    """Everything that figures and the page are made from."""
    run, config = session.run, session.config
    run.require(RESULTS, "evaluate")
    rows = run.read_json(PLANS)
    plans = [Plan(row["label"], {}, **{name: row[name] for name in FACTS}) for row in rows]
    distinct = [row["label"] for row in rows if row["label"] == row["same_as"]]
    return RunData(
        name=run.path.resolve().name,
        manifest=run.manifest,
        results=labelled(run.read_table(RESULTS), [plan.label for plan in plans]),
        plans=plans,
        run_as={row["label"]: row["same_as"] for row in rows},
        scores=run.read_table(SCORES),
        selections=read_selections(session),
        baseline_metric=run.read_json(SELECTION)["baseline"],
        rule=Rule(
            induce_threshold=config.induce_threshold,
            kl_threshold=config.kl_threshold,
            prune_layers=config.prune_layers,
            rank_by=config.rank_by,
        ),
        fields={name: read_field(session, name) for name in config.methods},
        extracted_by={field.method: field.extracted_by for field in read_fields(session)},
        prompts=_prompts(session),
        answers={(plan, name): _answers(session, plan, name) for plan in distinct for name in config.test_sets},
        rankings=run.read_json(RANKINGS) if run.has(RANKINGS) else None,
        comparisons=run.read_table(COMPARISONS) if run.has(COMPARISONS) else None,
        agreement=run.read_table(AGREEMENT) if run.has(AGREEMENT) else None,
        magnitude=_magnitude(session),
        geometry=geometry,
    )


def measure_geometry(session: Session) -> Geometry | None:
    """Where activations land under every plan; from its file, or else by running the model, if it can be loaded."""
    run, config = session.run, session.config
    plans = [plan for plan, same_as in read_plans(session) if plan.label == same_as != BASELINE]
    edits = {plan.label: plan.digest for plan in plans}
    sources = {PROMPTS: run.digest(PROMPTS), SELECTION: run.digest(SELECTION), "edits": edits}
    if not run.is_fresh(GEOMETRY, {}, sources):
        texts = [[prompt.instruction for prompt in read_prompts(session, f"{kind}_test")] for kind in KINDS]
        n = min(GEOMETRY_PROMPTS, *map(len, texts))
        prompts = {kind: text[:n] for kind, text in zip(KINDS, texts, strict=True)}
        try:
            model = session.model
        except RefusalCmpError as error:
            session.say(f"Where activations land is left out of the report: {error}")
            return None
        found = measure(model, prompts, read_selected(session), plans, config.batch_size, session.progress)
        run.write_tensors(GEOMETRY, *found.to_tensors())
        run.record(GEOMETRY, {}, sources)
    return Geometry.from_tensors(*run.read_tensors(GEOMETRY))


def _prompts(session: Session) -> dict[str, Any]:
    """`extract/prompts.json` with the counts of the other test sets."""
    run = session.run
    prompts = run.read_json(PROMPTS)
    others = {name: prompts_file(name) for name in session.config.test_sets if name not in OWN_SETS}
    return {
        **prompts,
        "counts": prompts["counts"] | {name: run.read_json(file)["counts"] for name, file in others.items()},
    }


def _answers(session: Session, label: str, dataset: str) -> list[dict[str, Any]]:
    """A plan's completions of a test set, with their verdicts if they were judged."""
    judged = examples_file(label, "refusal", dataset)
    answers = read_answers(session, label, dataset)
    verdicts = [row["verdict"] for row in session.run.read_lines(judged)] if session.run.has(judged) else []
    return [
        {
            "instruction": answer.instruction,
            "category": answer.category,
            "completion": answer.completion,
            "verdict": verdicts[index] if len(verdicts) == len(answers) else "",
        }
        for index, answer in enumerate(answers)
    ]


def _magnitude(session: Session) -> pd.DataFrame | None:
    """The magnitude study's prompts, a row for each with each method."""
    rows = []
    for dataset in session.config.test_sets:
        name = examples_file(BASELINE, "magnitude", dataset)
        for row in session.run.read_lines(name) if session.run.has(name) else []:
            for method, projection in row["projection"].items():
                rows.append({**row, "dataset": dataset, "method": method, "projection": projection})
    return pd.DataFrame(rows) if rows else None


def _sources(session: Session) -> dict[str, Any]:
    """Everything that the page is made from."""
    run, config = session.run, session.config
    files = [RESULTS, PLANS, PROMPTS, SCORES, SELECTION, *map(subspace_file, config.methods)]
    files += [
        name for name in (RANKINGS, COMPARISONS, AGREEMENT, *map(prompts_file, config.test_sets)) if run.has(name)
    ]
    labels = {row["same_as"] for row in run.read_json(PLANS)}
    for dataset in config.test_sets:
        files += [answers_file(label, dataset) for label in sorted(labels)]
        judged = [examples_file(label, "refusal", dataset) for label in sorted(labels)]
        files += [name for name in (*judged, examples_file(BASELINE, "magnitude", dataset)) if run.has(name)]
    about = {name: run.manifest.get(name) for name in ("config_hash", "model", "device", "versions")}
    return {**about, **{name: run.digest(name) for name in files}}
