"""The curve in a run: a sweep of every cell's strengths, what it does to the test prompts, and at what damage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refusal_cmp.calibration.calibrate import same_cells
from refusal_cmp.calibration.curves import Point, Refusal, strengths_within, sweep
from refusal_cmp.calibration.varied import Varied, varied
from refusal_cmp.grid import Cell
from refusal_cmp.plan import BASELINE
from refusal_cmp.run.contents import CURVE, PROMPTS, prompts_file, read_refusal_tokens
from refusal_cmp.run.session import Session
from refusal_cmp.stages.calibration import budget_of, meter
from refusal_cmp.stages.prompts import read_test_prompts


def write_curve(session: Session, grid: Sequence[Cell]) -> None:
    """Write `infer/curve.jsonl`, unless it was made from the same plans, prompts and settings."""
    config, run = session.config, session.run
    measure, _ = budget_of(config)
    cells = varied(grid)
    distinct = list(same_cells(cells))
    settings: dict[str, Any] = {
        "measure": measure,
        "calibrate_tokens": config.calibrate_tokens,
        "curve_limit": config.curve_limit,
        "curve_strengths": config.curve_strengths,
    }
    files = dict.fromkeys([PROMPTS, *(prompts_file(config, dataset) for dataset in config.test_sets)])
    sources = {file: run.digest(file) for file in files} | {"cells": [[cell.name, cell.digest] for cell in cells]}
    if run.is_fresh(CURVE, settings, sources):
        return
    swept = [cell for cell, _ in distinct]
    damage = meter(session, swept)
    prompts = {name: [one.instruction for one in read_test_prompts(session, name)] for name in config.test_sets}
    refusal = Refusal(
        session.model,
        prompts,
        read_refusal_tokens(session),
        config.batch_size,
        some_tokens=any(cell.at(1).tokens != "all" for cell in swept),
    )
    identity = [settings, sources]
    reached = run.journal("infer/curve.strengths", identity)
    if config.curve_strengths is None:
        strengths = strengths_within(swept, damage, config.curve_limit, done=reached, progress=session.progress)
    else:
        strengths = [[one for one in config.curve_strengths if 0 < one <= cell.end] for cell in swept]
    done = run.journal(CURVE, identity)
    points = sweep(swept, strengths, damage, refusal, done=done, progress=session.progress)
    unedited = {"plan": BASELINE, "method": "", "cell": "", "scope": "", "times": 0.0}
    rows = [{**unedited, "damage": [0.0] * len(damage.targets), "refused": refusal.unedited()}]
    for index, (_, same) in enumerate(distinct):
        of_cell = [point for point in points if point.cell == index]
        rows += [_row(cells[at], point) for at in same for point in of_cell]
    run.write_lines(CURVE, rows)
    run.record(CURVE, settings, sources)
    done.discard()
    reached.discard()


def _row(cell: Varied, point: Point) -> dict[str, Any]:
    plan = cell.at(point.times)
    damage = [one if one == one and abs(one) != float("inf") else None for one in point.damage]  # JSON has no NaN
    facts = {"plan": plan.label, "method": plan.method, "cell": cell.name, "scope": plan.scope, "times": point.times}
    return {**facts, "damage": damage, "refused": point.refused}
