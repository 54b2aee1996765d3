"""Ranks by other rules against those by exact bypass: would a cheaper rule, or one without tokens, do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import GREY, Drawn, Outcome, Skipped, column, page, styled
from refusal_cmp.report.figures.rankings import WIDEST, keys_below, scatter
from refusal_cmp.report.wording import decimal
from refusal_cmp.selection.rule import HIGHEST

TITLE = "Other ranking rules against bypass"


def draw(data: RunData) -> list[Outcome]:
    """Ranks by each rule, a figure for each reach and three methods."""
    if not data.ranking_rules:
        return [Skipped("rules", TITLE, "components were ranked by no other rule; run with --ranking-rules")]
    figures: list[Outcome] = []
    for reach in dict.fromkeys(one["reach"] for one in data.ranking_rules):
        found = [one for one in data.ranking_rules if one["reach"] == reach]
        methods = list(dict.fromkeys(one["method"] for one in found))
        for start in range(0, len(methods), WIDEST):
            studies = [one for one in found if one["method"] in methods[start : start + WIDEST]]
            name = f"rules-{reach}" + (f"-{start // WIDEST + 1}" if start else "")
            title = f"{TITLE}, {reach}"
            figures.append(Drawn(name, title, rules_figure(data.scores, studies), " ".join(map(_says, studies))))
    return figures


@styled
def rules_figure(table: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> Figure:
    """Ranks by each rule against those by exact bypass of the same reach, a column per method and a row per rule."""
    methods = list(dict.fromkeys(one["method"] for one in studies))
    rules = list(dict.fromkeys((one["rule"], one["reach"]) for one in studies))
    width = column() if len(methods) == 1 else page()
    figure = Figure(figsize=(width, len(rules) * 0.74 * width / max(len(methods), 1.15) + 0.9))
    axes = figure.subplots(len(rules), len(methods), squeeze=False)
    deepest = max(1, int(table["layer"].max()))
    for one in studies:
        rule, reach = one["rule"], one["reach"]
        ax = axes[rules.index((rule, reach)), methods.index(one["method"])]
        part = table[(table["method"] == one["method"]) & table["rank"].notna()]
        ranks = part[f"{reach}_{rule}"].rank(ascending=rule not in HIGHEST), part[f"{reach}_bypass"].rank()
        scatter(ax, part, *ranks, deepest)
        ax.plot([1, len(part)], [1, len(part)], color=GREY, linestyle=":", linewidth=1)
        ax.set_title("\n".join([f"{one['method']}: {rule}, {reach}", *_correlations(one)]))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel=f"rank by {rule} (1 is best)", ylabel="rank by bypass (1 is best)")
    keys_below(figure, axes, deepest, columns=2 if width == column() else 4)
    return figure


def _correlations(one: Mapping[str, Any]) -> list[str]:
    """With exact bypass of the rule's own reach, by pool."""
    found = []
    for name, pool in one["against"][one["reach"]]["pools"].items():
        rho = pool["why"] if pool["rho"] is None else f"ρ = {decimal(pool['rho'])}"
        found.append(
            f"{name.replace('within_kl', 'within KL')}, n = {pool['n']}: {rho}"
            + (" (too few)" if pool.get("says_little") else "")
        )
    return found


def _says(one: Mapping[str, Any]) -> str:
    own = one["against"][one["reach"]]
    pool, name = own["pools"]["all"], f"{one['method']}, {one['rule']} at {one['reach']} reach"
    if pool["rho"] is None:
        return f"{name}: no rank correlation, {pool['why']}."
    return (
        f"{name}: Spearman's ρ with exact bypass is {decimal(pool['rho'])} over all {pool['n']} components, and "
        f"choosing by it costs {decimal(own['regret'])} log-odds."
    )
