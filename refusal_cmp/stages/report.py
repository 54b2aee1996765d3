"""report: results → one self-contained page, its figures, and the table that a person reads."""

from __future__ import annotations

from typing import Any

from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import draw_all, images
from refusal_cmp.report.page import render
from refusal_cmp.report.table import summary
from refusal_cmp.run.contents import (
    AGREEMENT,
    CALIBRATION,
    COMPARISONS,
    CURVE,
    CURVES,
    FRONTIER,
    LABELS_AGREEMENT,
    MEANS,
    PAGE,
    PLANS,
    PROMPTS,
    RANKING_RULES,
    RANKINGS,
    RESULTS,
    SCORES,
    SELECTION,
    SUMMARY,
    WEIGHTS,
    answers_file,
    examples_file,
    figure_file,
    prompts_file,
    ranks_file,
    read_labels_agreement,
    read_results,
    stability_files,
    subspace_file,
)
from refusal_cmp.run.session import Session

SHOWN = ("refusal", "magnitude", "geometry")
"""Evaluators whose examples the page and its figures show."""


def report_stage(session: Session) -> None:
    """Write the summary, the figures and the page; nothing but the summary if they were made from the same files."""
    run = session.run
    run.write_table(SUMMARY, summary(read_results(run)))
    sources = _sources(session)
    if run.is_fresh(PAGE, {}, sources):
        return
    data = read_run(session)
    tables = {}
    if data.sweep is not None:
        tables = {CURVES: data.sweep.points(), FRONTIER: data.sweep.compared()}
    for table, content in tables.items():
        run.write_table(table, content)
    outcomes = draw_all(data)
    pictures = images(outcomes)
    for (name, kind), image in pictures.items():
        run.write_bytes(figure_file(name, kind), image)
    run.write_bytes(PAGE, render(data, outcomes, pictures).encode())
    run.record(PAGE, {}, sources, also=[*tables, *(figure_file(*one) for one in pictures)])


def _sources(session: Session) -> dict[str, Any]:
    """Everything that the page is made from."""
    run, config = session.run, session.config
    files = [RESULTS, PLANS, PROMPTS, MEANS, SCORES, SELECTION, *map(subspace_file, config.methods)]
    files += [prompts_file(config, dataset) for dataset in config.other_sets]
    rules = (RANKING_RULES,) if config.ranking_rules else ()
    swept = (CURVE,) if config.curve else ()
    calibrated = (CALIBRATION,) if config.calibrate else ()
    optional = (RANKINGS, *rules, *swept, *calibrated, COMPARISONS, AGREEMENT, *map(ranks_file, config.methods))
    files += [name for name in optional if run.has(name)]
    labels = {row["same_as"] for row in run.read_json(PLANS)}
    for dataset in config.test_sets:
        files += [answers_file(label, dataset) for label in sorted(labels)]
        shown = [examples_file(label, evaluator, dataset) for evaluator in SHOWN for label in sorted(labels)]
        files += [name for name in shown if run.has(name)]
    files += [name for label in sorted(labels) if run.has(name := examples_file(label, *WEIGHTS))]
    files += stability_files(session)
    files += [] if read_labels_agreement(session) is None else [LABELS_AGREEMENT]
    about = {name: run.manifest.get(name) for name in ("config_hash", "model", "device", "versions")}
    return {**about, **{name: run.digest(name) for name in files}}
