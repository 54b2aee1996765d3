"""Calibration in a run: the strength, or the number of directions and the strength, of every plan at which the damage
to harmless validation prompts is the budget.

What was calibrated before stands in `infer/calibration.json`, by what the plans do, and is not done again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import pandas as pd

from refusal_cmp.calibration.calibrate import Calibration, calibrate, same_cells
from refusal_cmp.calibration.damage import MEASURES, Meter
from refusal_cmp.calibration.search import Status
from refusal_cmp.calibration.varied import Varied, varied
from refusal_cmp.config import RunConfig
from refusal_cmp.grid import Cell
from refusal_cmp.plan import Plan, number
from refusal_cmp.report.wording import counted, sentence_list
from refusal_cmp.run.contents import CALIBRATION, CALIBRATION_PASSES, PROMPTS, read_prompts
from refusal_cmp.run.session import Session

NAMED = 3
"""Plans of a kind that a sentence names."""


def budget_of(config: RunConfig) -> tuple[str, float]:
    """The measure of damage and the budget of the settings; by default the first measure, and none."""
    measure, _, budget = (config.calibrate or "").partition("=")
    return measure or next(iter(MEASURES)), float(budget or math.nan)


def meter(session: Session, cells: Sequence[Varied]) -> Meter:
    """Measures damage on the harmless validation prompts of the run."""
    config = session.config
    return Meter(
        session.model,
        [prompt.instruction for prompt in read_prompts(session, "harmless_val")],
        budget_of(config)[0],
        config.calibrate_tokens,
        batch_size=config.batch_size,
        some_tokens=any(cell.at(1).tokens != "all" for cell in cells),
    )


def calibrated(session: Session, grid: Sequence[Cell]) -> list[Plan]:
    """The plans of the grid, each at what does the damage of the budget, or as near as it comes."""
    config, run = session.config, session.run
    measure, budget = budget_of(config)
    cells = varied(grid, config.calibrate_over)
    settings = {"calibrate": config.calibrate, "calibrate_tokens": config.calibrate_tokens}
    sources = {PROMPTS: run.digest(PROMPTS)}
    known: dict[str, dict[str, Any]] = {}
    if run.is_fresh(CALIBRATION, settings, sources):
        known = run.read_json(CALIBRATION)["cells"]
    new = [cell for cell, _ in same_cells(cells) if cell.digest not in known]
    done = run.journal(CALIBRATION, [settings, sources, [cell.digest for cell in new]])
    if new:
        found = calibrate(new, meter(session, new), budget, done=done, progress=session.progress)
        known = known | {one.digest: _row(one) for one in found}
    plans = [cell.at(known[cell.digest]["times"], known[cell.digest].get("k")) for cell in cells]
    rows = [
        {
            "plan": plan.label,
            "to": cell.to(str(config.calibrate)),
            "method": plan.method,
            "cell": cell.name,
            "scope": plan.scope,
            "digest": cell.digest,
        }
        | known[cell.digest]
        for cell, plan in zip(cells, plans, strict=True)
    ]
    run.write_json(
        CALIBRATION,
        {
            "measure": measure,
            "budget": budget,
            "said": MEASURES[measure].said(config.calibrate_tokens),
            "unit": MEASURES[measure].unit,
            "n": len(read_prompts(session, "harmless_val")),
            "plans": rows,
            "cells": known,
        },
    )
    run.write_table(CALIBRATION_PASSES, _passes(cells, rows))
    run.record(CALIBRATION, settings, sources, [CALIBRATION_PASSES])
    done.discard()
    for sentence in said(rows, str(config.calibrate)):
        session.say(sentence)
    if config.calibrate_over == "k":
        n = sum(cell.most > 1 for cell in cells)
        session.say(
            f"The number of directions is searched for {n} of {counted(len(cells), 'plan')}, those along all "
            "directions of a method that has several in an order."
        )
    return plans


def _row(one: Calibration) -> dict[str, Any]:
    """A calibration as JSON has it, which knows no infinity."""
    row = {**asdict(one.found), "is_flat": one.found.is_flat, "tried": [list(each) for each in one.tried]}
    return _plain(row)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _passes(cells: Sequence[Varied], rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each strength that was tried for each plan; damage is empty where numbers broke."""
    return pd.DataFrame(
        [
            {
                "method": row["method"],
                "intervention": row["cell"],
                "scope": row["scope"],
                "pass": index,
                "plan": cell.at(times, *k).label,
                "times": times,
                "k": cell.at(times, *k).k,
                "damage": damage,
                "chosen": (times, *k) == (row["times"], row.get("k"))[: 1 + len(k)],
            }
            for cell, row in zip(cells, rows, strict=True)
            for index, (times, damage, *k) in enumerate(row["tried"], 1)
        ]
    )


def said(rows: Sequence[dict[str, Any]], budget: str) -> list[str]:
    """What was calibrated, what could not be, and where the strength is hardly determined."""
    of = {status: [row for row in rows if row["status"] == status] for status in get_args(Status)}
    most, n = max(len(row["tried"]) for row in rows), len(of["met"])
    found = [f"{n} of {counted(len(rows), 'plan')} calibrated to {budget}, in {most} passes or fewer each."]
    if of["below"]:
        found.append(
            f"{counted(len(of['below']), 'plan')} cannot do that much damage even at the end of the range, which is "
            f"taken: {_named(of['below'])}."
        )
    split = [row for row in rows if row.get("beside")]
    if split:
        found.append(
            f"No number of directions meets the budget by itself for {counted(len(split), 'plan')}, and the larger of "
            f"the two beside it is done in part: {_listed([_between(row) for row in split])}."
        )
    if of["above"]:
        found.append(f"Warning: even at the least strength more damage is done by {_named(of['above'])}.")
    if of["missed"]:
        found.append(
            f"Warning: no strength was found that meets the budget, as damage jumps, for {_named(of['missed'])}; each "
            "stands at the nearest strength below it."
        )
    falls = [row for row in rows if not row["is_monotone"]]
    if falls:
        found.append(
            f"Warning: damage does not grow with the strength everywhere, so that other strengths may meet the budget "
            f"too, for {_named(falls)}."
        )
    flat = [row for row in of["met"] if row["is_flat"]]
    if flat:
        found.append(f"Warning: damage hardly depends on the strength, which is vague, for {_named(flat)}.")
    return found


def _named(rows: Sequence[dict[str, Any]]) -> str:
    return _listed([f"{row['plan']} ({_damage(row['damage'])})" for row in rows])


def _between(row: dict[str, Any]) -> str:
    """A plan with the damage of the two numbers of directions beside the budget, done in whole."""
    return f"{row['plan']} ({', '.join(f'k = {k}: {_damage(damage)}' for _, damage, k in row['beside'])})"


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return sentence_list([*names[:NAMED], *more])


def _damage(value: float | None) -> str:
    return "broken numbers" if value is None else number(float(f"{value:.3g}"))
