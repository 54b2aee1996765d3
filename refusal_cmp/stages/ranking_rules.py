"""Scores by rules beside bypass, kept in files of their own, and the study of how far they rank as bypass does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.config import CHOOSING, SCORING, RankingRule
from refusal_cmp.planning import UNIT_METHOD, Setting
from refusal_cmp.run.contents import (
    PROMPTS,
    RANKING_RULES,
    read_prompts,
    read_refusal_tokens,
    read_rule_scores,
    rule_file,
    subspace_file,
)
from refusal_cmp.run.session import Session
from refusal_cmp.selection import attribution, cosmic
from refusal_cmp.selection.rankings import against_exact
from refusal_cmp.selection.rule import RULES, Rule
from refusal_cmp.selection.scoring import Reach, Scorer, passes_of_bypass
from refusal_cmp.subspace import SubspaceField


def rules_of(session: Session, rule: Rule, reaches: Sequence[Reach]) -> list[tuple[RankingRule, Reach]]:
    """The rules whose scores a method needs: those to be compared at every reach, and the one that ranks at its own."""
    ranking = [(name, rule.rank_by) for name in RULES if name == rule.rank_key]
    return list(
        dict.fromkeys([*((name, reach) for name in session.config.ranking_rules for reach in reaches), *ranking])
    )


def scored_with(
    session: Session, field: SubspaceField, edits: Setting, unit: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the sources of a method's scores, whatever they are by."""
    settings = {**session.config.marked(SCORING), "sites": list(edits.sites)}
    sources = {file: session.run.digest(file) for file in (PROMPTS, subspace_file(field.extracted_by))}
    return settings, sources if unit is None else {**sources, "selected norm": unit}


def rule_scores(
    session: Session,
    field: SubspaceField,
    which: tuple[RankingRule, Reach],
    edits: Setting,
    scorer: Callable[[], Scorer],
    unit: float | None,
) -> Float[Tensor, "c m"]:
    """A method's scores by a rule, from its file as far as they stand there and were made from the same things.

    Parameters
    ----------
    edits
        What its candidates are scored by.
    unit
        The selected norm, as for the other scores.
    """
    run, (rule, reach) = session.run, which
    name = rule_file(field.method, rule, reach)
    unit = None if field.method == UNIT_METHOD else unit
    settings, sources = scored_with(session, field, edits, unit)
    scored: dict[tuple[int, ...], int] = {}
    if run.is_fresh(name, settings, sources):
        scored, scores = read_rule_scores(session, field.method, rule, reach)
    left = field.only([at for at, subspace in field.subspaces.items() if (*at, subspace.k) not in scored])
    if len(left):
        new = [(*at, subspace.k) for at, subspace in left.subspaces.items()]
        done = run.journal(name, [settings, sources, new])
        begun, started = bool(done or scored), time.monotonic()
        if rule == "cosmic":
            more = cosmic.cosmic(
                scorer(), left, reach, setting=edits, selected_norm=unit, done=done, progress=session.progress
            )
        else:
            harmful, tokens = (
                [one.instruction for one in read_prompts(session, "harmful_val")],
                read_refusal_tokens(session),
            )
            more = attribution.attribution(
                session.model, harmful, tokens, left, reach, setting=edits, progress=session.progress
            )
        note_seconds(session, name, None if begun else time.monotonic() - started)
        scores = torch.cat([scores, more]) if scored else more
        scored |= {key: len(scored) + row for row, key in enumerate(new)}
        run.write_tensors(name, {"score": scores, "scored": torch.tensor([*scored])}, {"method": field.method})
        run.record(name, settings, sources)
        done.discard()
    return scores[[scored[*at, subspace.k] for at, subspace in field.subspaces.items()]]


def note_seconds(session: Session, name: str, seconds: float | None) -> None:
    """How long the scores of a file took, in the manifest; None where they were not made in one go."""
    if not session.config.ranking_rules:
        return
    known = {file: value for file, value in session.run.manifest.get("seconds", {}).items() if file != name}
    session.run.note(seconds=known | ({} if seconds is None else {name: round(seconds, 3)}))


def compare_rules(
    session: Session,
    fields: Sequence[SubspaceField],
    tables: Sequence[pd.DataFrame],
    reaches: Sequence[Reach],
    sources: Mapping[str, Any],
) -> None:
    """Write `select/ranking-rules.json`, unless it was made from the same scores."""
    run, rules = session.run, session.config.ranking_rules
    files = [rule_file(field.method, name, reach) for field in fields for name in rules for reach in reaches]
    sources = {**sources, **{file: run.digest(file) for file in files}, "choosing": session.config.marked(CHOOSING)}
    if run.is_fresh(RANKING_RULES, {}, sources):
        return
    run.write_json(
        RANKING_RULES,
        [
            {
                "method": field.method,
                "rule": name,
                "reach": reach,
                "passes": _passes(field, name, reach),
                "exact_passes": passes_of_bypass(field, reach),
                "against": {exact: against_exact(table, name, reach, exact) for exact in reaches},
            }
            for field, table in zip(fields, tables, strict=True)
            for name in rules
            for reach in reaches
        ],
    )
    run.record(RANKING_RULES, {}, sources)


def _passes(field: SubspaceField, rule: RankingRule, reach: Reach) -> float:
    return attribution.PASSES if rule == "attribution" else cosmic.passes(field, reach)
