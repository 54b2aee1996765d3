"""select --what-if: which component each of several thresholds would choose, from the scores that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refusal_cmp.config import BUDGET
from refusal_cmp.methods import configured
from refusal_cmp.plan import number
from refusal_cmp.report.wording import counted, log_odds
from refusal_cmp.run.contents import SCORES, budget_file, budgeted, read_fields
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Rule, Selection, outcome
from refusal_cmp.selection.rule import select
from refusal_cmp.subspace import SubspaceField
from refusal_cmp.terminal import line

FACTORS = (0.25, 0.5, 2.0, 5.0, 10.0)
"""By which the KL threshold is multiplied."""
STEPS = (-2.0, -1.0, 1.0, 2.0)
"""That are added to the induce threshold."""
LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the layers that are selected from."""


class WhatIf(NamedTuple):
    """A choice that another setting would make."""

    setting: str
    """As it would be typed; empty for the settings of the run."""
    method: str
    selection: Selection
    kl: float
    """Of the removal on harmless prompts, by the scores that rank."""
    bypass: float
    others: int = 0
    """Components at which more or fewer directions would be used, whose scores nobody knows: the choice is open."""


def what_if(session: Session) -> list[WhatIf]:
    """The choice of every method by the run's own settings, and by others, one changed at a time."""
    config, found = session.config, []
    scores = session.run.read_table(SCORES)
    for field in read_fields(session):
        rule = Rule.of(config, field.extracted_by)
        table = scores[scores["method"] == field.method].reset_index(drop=True)
        shown = [
            column for column in table if column not in ("dropped_by", "kept", "key", "rank", "kl_budget", "selected")
        ]
        for setting, other in [("", rule), *_others(rule)]:
            ranked = select(table[shown].dropna(axis=1, how="all"), other, field.means.n_layers)
            chosen = ranked[ranked["selected"]].iloc[0]
            kl, bypass = (float(chosen[f"{other.rank_by}_{name}"]) for name in ("kl", "bypass"))
            others = _with_other_directions(session, field, other.kl_threshold)
            found.append(WhatIf(setting, field.method, outcome(ranked, field, other), kl, bypass, others))
    return found


def _with_other_directions(session: Session, field: SubspaceField, kl_threshold: float) -> int:
    """At how many components another KL threshold is a budget for more or fewer directions than were scored."""
    if BUDGET not in session.config.inlp_k or not configured(session.config, field.extracted_by).has_k:
        return 0
    if field.method != field.extracted_by:  # the leading directions by another policy
        return 0
    tried = budgeted(session.run.read_table(budget_file(field.method)), kl_threshold)
    return sum(at in field and (k != field[at].k or (k > 1 and not within)) for at, (k, within) in tried)


def _others(rule: Rule) -> Iterator[tuple[str, Rule]]:
    values: dict[str, list[Any]] = {
        "kl_threshold": [rule.kl_threshold * factor for factor in FACTORS],
        "induce_threshold": [rule.induce_threshold + step for step in STEPS],
        "prune_layers": [limit for limit in LIMITS if limit < rule.prune_layers],
    }
    for name, others in values.items():
        for value in others:
            yield f"--{name.replace('_', '-')} {number(value)}", replace(rule, **{name: value})


def print_what_if(console: Console, session: Session) -> None:
    """The choices as a table, a row per setting and a column per method."""
    found = {(one.setting, one.method): one for one in what_if(session)}
    settings, methods = (list(dict.fromkeys(key)) for key in zip(*found, strict=True))
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("with", *methods):
        table.add_column(line(heading))
    for setting in settings:
        cells = [_cell(found[setting, method], found["", method]) for method in methods]
        table.add_row(line(setting or "these settings"), *cells)
    console.print(table)
    if any(one.others for one in found.values()):
        console.print(
            "Open: with that KL threshold more or fewer directions of the method stay within the budget, and these are "
            f"not scored yet; {session.run.command('select')} with it scores them.",
            style="dim",
            highlight=False,
        )
    console.print(
        f"One setting is changed at a time. Type {session.run.command('select')} with one to choose by it, from the "
        "same scores.",
        style="dim",
        highlight=False,
    )


def _cell(one: WhatIf, own: WhatIf) -> Text:
    """What would be chosen, dimmed where it is what was chosen."""
    if one.others:
        return line(f"open: other directions at {counted(one.others, 'component')}")
    at, is_same = one.selection.selected, bool(one.setting) and one.selection.selected == own.selection.selected
    kept = "none kept, fallback" if one.selection.fallback else f"{len(one.selection.kept)} kept"
    where = "the same" if is_same else f"({at.position}, {at.layer})"
    return line(f"{where}: {kept}, KL {one.kl:.3f}, bypass {log_odds(one.bypass)}", "dim" if is_same else "")
