"""The page's completions side by side: some prompts of each test set under every distinct plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refusal_cmp.plan import BASELINE
from refusal_cmp.report.answer import Standing, best_by_method
from refusal_cmp.report.data import RunData

EXAMPLES = 8
"""Prompts of each test set whose completions the page shows."""
LONGEST = 600
"""Characters of a completion; longer ones are cut."""
SLOTS = 3
"""Plans whose completions stand side by side."""
VERDICTS = {
    "refused": "refuses",
    "complied": "answers",
    "degenerate": "says nothing",
    "unfinished": "only thinks",
    "": "",
}
FOLDED = "harmful"
"""Test sets whose completions are behind a notice."""


def side_by_side(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any]:
    """Completions by plan and test set, and the plans that are shown at first: the best of each method."""
    distinct = [str(plan) for plan, same_as in data.run_as.items() if plan == same_as]
    first = [BASELINE, *(data.run_as[one.plan] for one in best_by_method(ranked))]
    shown_first = list(dict.fromkeys([*first, *distinct]))[:SLOTS]
    sets = []
    texts: dict[str, dict[str, list[list[str]]]] = {plan: {} for plan in distinct}
    for dataset in dict.fromkeys(dataset for _, dataset in data.answers):
        chosen = _spread(data.answers[BASELINE, dataset])
        for plan in distinct:
            rows = data.answers[plan, dataset]
            texts[plan][dataset] = [[cut(rows[i]["completion"]), VERDICTS[rows[i]["verdict"]]] for i in chosen]
        prompts = [data.answers[BASELINE, dataset][i] for i in chosen]
        sets.append(
            {
                "name": dataset,
                "folded": dataset.startswith(FOLDED),
                "prompts": [{"instruction": one["instruction"], "category": one["category"]} for one in prompts],
                "first": [[texts[plan][dataset][i] for plan in shown_first] for i in range(len(prompts))],
            }
        )
    return {"plans": distinct, "first": shown_first, "sets": sets, "texts": texts}


def _spread(rows: Sequence[Any]) -> list[int]:
    """Indices of some rows, evenly over all."""
    n = min(EXAMPLES, len(rows))
    return [round(i * (len(rows) - 1) / max(1, n - 1)) for i in range(n)]


def cut(text: str) -> str:
    """A completion as long as the page shows it."""
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"
