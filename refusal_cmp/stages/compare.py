"""The ranking study of select: local against global scores, and bypass against whole completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from refusal_cmp.interventions import Setting
from refusal_cmp.interventions.planning import Chosen, make_plan
from refusal_cmp.interventions.scope import Scope
from refusal_cmp.judging import verdict
from refusal_cmp.rankings import prediction, spread, study
from refusal_cmp.report.figures import rankings_figure, save_figure, scores_figure
from refusal_cmp.scoring import PromptScores, Reach
from refusal_cmp.selection import Rule
from refusal_cmp.session import Session
from refusal_cmp.stages.extract import read_prompts
from refusal_cmp.subspace import Component, SubspaceField

RANKINGS = "select/rankings.json"
JUDGED_COMPONENTS = 12

Scores = Mapping[Reach, PromptScores]


def compare_rankings(
    session: Session,
    fields: list[SubspaceField],
    tables: list[pd.DataFrame],
    scores: Mapping[str, Scores],
    rules: Mapping[str, Rule],
    settings: Mapping[str, Setting],
    baseline: Mapping[str, float],
    sources: Mapping[str, str],
) -> None:
    """Write `select/rankings.json` and the figures; nothing if they were made from the same scores."""
    config, run = session.config, session.run
    made_with = {**config.binding("select"), "max_new_tokens": config.max_new_tokens}
    if run.is_fresh(RANKINGS, made_with, sources):
        return
    studies = []
    with session.progress("comparing rankings", len(fields)) as advance:
        for field, table in zip(fields, tables, strict=True):
            of_method = study(field, table, scores[field.method], rules[field.method], config.seed)
            studies.append({**of_method, "completions": _judged(session, field, table, settings[field.method])})
            advance(1)
    whole = pd.concat(tables, ignore_index=True)
    save_figure(run, "rankings", rankings_figure(whole, studies))
    save_figure(run, "scores", scores_figure(whole, baseline, next(iter(rules.values()))))
    run.write_json(RANKINGS, studies)
    run.record(RANKINGS, made_with, sources)


def _judged(session: Session, field: SubspaceField, table: pd.DataFrame, setting: Setting) -> dict[str, Any]:
    """Refusal of whole completions under the local removal edit, for a spread of components."""
    instructions = [prompt.instruction for prompt in read_prompts(session, "harmful_val")]
    bypass, refused = [], []
    for row in spread(table, JUDGED_COMPONENTS):
        component = Component(int(table.loc[row, "position"]), int(table.loc[row, "layer"]))
        plan = make_plan("nullspace", Chosen(field, component, (component,)), Scope("single"), setting=setting)
        with session.model.edited(plan):  # the scorer has it in memory: no second engine beside it
            completions = session.model.generate(
                instructions, max_new_tokens=session.config.max_new_tokens, batch_size=session.config.batch_size
            )
        verdicts = [verdict(one.text, one.finish) for one in completions]
        bypass.append(float(table.loc[row, "local_bypass"]))
        refused.append(verdicts.count("refused") / len(verdicts))
    return {**prediction(bypass, refused), "bypass": bypass, "refused": refused}
