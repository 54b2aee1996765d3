"""The page over seeds: what holds with all of them, and what each alone would have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from refusal_cmp.plan import BASELINE
from refusal_cmp.report.answer import costs
from refusal_cmp.report.figures import Outcome, Skipped
from refusal_cmp.report.page.equal_damage import equal_damage_over_seeds
from refusal_cmp.report.page.filling import filled
from refusal_cmp.report.page.first_screen import PLAN, how
from refusal_cmp.report.page.images import placed_figures
from refusal_cmp.report.page.tables import plans_table
from refusal_cmp.report.seeds import SHARED, SeedsData, Verdict
from refusal_cmp.report.table import columns
from refusal_cmp.report.wording import counted, decimal, minus, percent, shown, with_bounds
from refusal_cmp.run.directory import cell_name
from refusal_cmp.statistics import ENOUGH


def render_seeds(data: SeedsData, outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> str:
    """The page over seeds as HTML; the same text for the same runs.

    Parameters
    ----------
    images
        Each figure by name and kind, `png` and `svg`.
    """
    answer = seeds_answer(data)
    return filled(
        "seeds.html",
        run=data.name,
        answer=answer,
        headline=answer["headline"].split(PLAN) if answer else [],
        seeds=seed_rows(data),
        selection=[*(_selection_row(data, name) for name in data.first.methods), *_shared_row(data)],
        shared=any(map(data.shared, data.seeds)),
        table=_plans(data),
        equal_damage=equal_damage_over_seeds(data),
        figures=placed_figures(outcomes, images),
        skipped=[one for one in outcomes if isinstance(one, Skipped)],
        n=counted(len(data.seeds), "seed"),
        enough=percent(ENOUGH),
    )


def seeds_answer(data: SeedsData) -> dict[str, Any] | None:
    """What the first screen says; None if refusal was not measured."""
    if not data.verdicts:
        return None
    best, n = data.verdicts[0], len(data.seeds)
    over, measured = data.as_run, costs(data.as_run)
    alike = [one for one in data.verdicts if one.suppresses == n]
    named = [ranked[0].plan for ranked in data.standings.values() if ranked]
    answered, over_refused = over.answered(best.plan), over.get(best.plan, "harmless", "refusal")
    sentences = []
    if answered is not None:
        spread = data.sd(best.plan, "harmful", over.answered_by)
        moved = "" if spread is None else f", ± {percent(spread)} from seed to seed"
        shares = with_bounds(answered, "share")
        sentences.append(f"It answers {shares} of {answered.n} harmful test prompts {how(data.first)}{moved}.")
    if over_refused is not None:
        sentences.append(f"It refuses {with_bounds(over_refused, 'share')} of the harmless ones.")
    if best.cost is not None and measured:
        unit = measured[0].unit
        amount = f"{100 * best.cost:.1f} points" if unit == "share" else f"{best.cost:.3f} {unit}"
        sentences.append(f"Its mean cost by {measured[0].name} is {minus(amount)}.")
    same = max(map(named.count, named))
    sentences.append(
        f"Alone, {'every seed names the same plan' if same == n else f'at most {same} of {n} seeds name the same plan'}"
        f"; {counted(len(alike), 'plan')} of {len(data.verdicts)} suppress{'es' if len(alike) == 1 else ''} refusal "
        "with every seed."
    )
    return {
        "plan": best.plan,
        "headline": _headline(data, best, n),
        "n": n,
        "broken": best.broken,
        "sentences": sentences,
    }


def _headline(data: SeedsData, best: Verdict, n: int) -> str:
    """The first sentence, with a place for the plan that it names."""
    if data.answers_already:
        return f"There is no refusal to suppress: the unedited model answers already. The numbers are those of {PLAN}."
    if data.too_few:
        return f"Too few harmful test prompts to decide; {PLAN} comes nearest."
    if best.suppresses == n:
        return f"{PLAN} suppresses refusal with every seed, and of such plans it costs least."
    if best.suppresses:
        return f"No plan suppresses refusal with every seed; {PLAN} does with {best.suppresses} of {n}."
    if best.broken == n:
        return (
            f"No plan suppresses refusal with any seed: every one destroys the model. The numbers are those of {PLAN}."
        )
    return f"No plan suppresses refusal with any seed; {PLAN} comes nearest."


def seed_rows(data: SeedsData) -> list[dict[str, Any]]:
    """What each seed alone says."""
    return [_seed_row(data, seed) for seed in data.seeds]


def _seed_row(data: SeedsData, seed: int) -> dict[str, Any]:
    ranked = data.standings[seed]
    if not ranked:
        return {"seed": seed, "plan": "", "answered": "–", "state": "–", "run": cell_name(seed)}
    best = ranked[0]
    state = "destroys the model" if best.is_broken else "suppresses refusal" if best.suppresses else "comes nearest"
    answered = with_bounds(best.answered, "share")
    return {"seed": seed, "plan": best.plan, "answered": answered, "state": state, "run": cell_name(seed)}


def _selection_row(data: SeedsData, method: str) -> dict[str, Any]:
    """What a method chose with every seed."""
    cells = []
    for seed in data.seeds:
        one = data.selection(method, seed)
        where = "–" if one is None else f"{minus(str(one.selected.position))}, {one.selected.layer}"
        k = "" if one is None else f"k = {int(data.runs[seed].chosen(method)['k'])}"
        cells.append({"where": where, "k": k, "note": "" if one is None else one.note})
    alike = data.alike(method)
    return {"method": method, "cells": cells, "alike": "–" if alike is None else decimal(alike)}


def _shared_row(data: SeedsData) -> list[dict[str, Any]]:
    """The component that all methods share with every seed; nothing where no plan uses one."""
    found = [data.shared(seed) for seed in data.seeds]
    if not any(found):
        return []
    where = ["–" if one is None else f"{minus(str(one.position))}, {one.layer}" for one in found]
    cells = [{"where": at, "k": "", "note": ""} for at in where]
    return [{"method": f"component={SHARED}", "cells": cells, "alike": "–"}]


def _plans(data: SeedsData) -> dict[str, Any]:
    """The plans with means and intervals, as the page of a run has them, and under each how far seeds are apart."""
    table = plans_table(data.as_run, ())
    by_plan = {one.plan: one for one in data.verdicts}
    wanted, n = columns(data.pooled), len(data.seeds)
    for row in table["rows"]:
        for column, cell in zip(wanted, row["cells"], strict=True):
            sd = data.sd(row["plan"], column.dataset, column.metric)
            cell["sd"] = "" if sd is None or pd.isna(sd) else f"± {shown(sd, column.measure.unit)}"
        verdict = by_plan.get(row["plan"])
        row["with"] = "" if verdict is None else f"{verdict.suppresses} of {n}"
        row["state"] = "broken" if verdict and verdict.broken else (
            "best" if verdict and verdict.suppresses == n and not data.answers_already else ""
        )  # fmt: skip
        row["is_baseline"] = row["plan"] == BASELINE
    return table
