"""(c) Local against global ranks: do cheap scores order components like expensive ones?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    GREY,
    INK,
    SEQUENCE,
    VERMILION,
    Drawn,
    Outcome,
    Skipped,
    column,
    legend_below,
    page,
    styled,
)
from refusal_cmp.report.wording import bracketed, decimal

TITLE = "Local against global ranking"
WIDEST = 3


def draw(data: RunData) -> list[Outcome]:
    """Scores and ranks by bypass, three methods a figure."""
    if data.rankings is None:
        return [Skipped("rankings", TITLE, "components were scored locally only; run with --compare-rankings")]
    figures: list[Outcome] = []
    for start in range(0, len(data.rankings), WIDEST):
        studies = data.rankings[start : start + WIDEST]
        name = "rankings" if not start else f"rankings-{start // WIDEST + 1}"
        says = " ".join(map(_says, studies))
        figures.append(Drawn(name, TITLE, rankings_figure(data.scores, studies), says))
    return figures


@styled
def rankings_figure(table: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> Figure:
    """Local against global bypass, as scores and as ranks, a column per method."""
    width = column() if len(studies) == 1 else page()
    figure = Figure(figsize=(width, 2 * 0.74 * width / max(len(studies), 1.15) + 0.9))
    axes = figure.subplots(2, len(studies), squeeze=False)
    deepest = max(1, int(table["layer"].max()))
    for one, (top, bottom) in zip(studies, axes.T, strict=True):
        part = table[(table["method"] == one["method"]) & table["rank"].notna()]
        scatter(top, part, part["local_bypass"], part["global_bypass"], deepest)
        scatter(bottom, part, part["local_bypass"].rank(), part["global_bypass"].rank(), deepest)
        top.set_title(f"{one['method']}\n{_said(one['pools'])}")
        top.set(xlabel="local bypass (log-odds)", ylabel="global bypass (log-odds)")
        bottom.set(xlabel="local rank (1 is best)", ylabel="global rank (1 is best)")
        bottom.plot([1, len(part)], [1, len(part)], color=GREY, linestyle=":", linewidth=1)
    keys_below(figure, axes, deepest, columns=2 if width == column() else 4)
    return figure


def keys_below(figure: Figure, axes: Any, deepest: int, columns: int) -> None:
    """A legend of what colours and marks are."""
    shade = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, deepest), SEQUENCE)
    figure.colorbar(shade, ax=axes[:, -1], label="layer", shrink=0.6)
    legend_below(
        figure,
        [
            Line2D([], [], color=GREY, marker="o", linestyle="", label="kept by the filters"),
            Line2D([], [], color=GREY, marker="o", markerfacecolor="none", linestyle="", label="dropped"),
            Line2D(
                [], [], color=VERMILION, markeredgecolor=INK, marker="*", markersize=9, linestyle="", label="selected"
            ),
            Line2D([], [], color=GREY, linestyle=":", label="same rank"),
        ],
        columns=columns,
    )


def scatter(ax: Axes, part: pd.DataFrame, x: pd.Series, y: pd.Series, deepest: int) -> None:
    """Kept components filled, dropped ones hollow, the selected one a star; colour is the layer."""
    kept = part["kept"].astype(bool)
    colours = mpl.colormaps[SEQUENCE](part["layer"].to_numpy() / deepest)
    ax.scatter(x[kept], y[kept], color=colours[kept.to_numpy()], s=24)
    ax.scatter(x[~kept], y[~kept], facecolors="none", edgecolors=list(map(tuple, colours[~kept.to_numpy()])), s=20)
    chosen = part["selected"].astype(bool)
    ax.scatter(x[chosen], y[chosen], marker="*", s=110, color=VERMILION, edgecolors=INK, linewidths=0.6, zorder=3)


def _said(pools: Mapping[str, Mapping[str, Any]]) -> str:
    """The correlations in words."""
    parts = []
    for name, pool in pools.items():
        if pool["rho"] is None:
            parts.append(f"{name}, n = {pool['n']}: {pool['why']}")
        elif pool["says_little"]:
            parts.append(f"{name}, n = {pool['n']}: ρ = {pool['rho']:.2f} (too few)")
        else:
            interval = bracketed(pool["ci_low"], pool["ci_high"])
            parts.append(f"{name}, n = {pool['n']}: ρ = {decimal(pool['rho'])} {interval}")
    return "\n".join(parts)


def _sure(pool: Mapping[str, Any]) -> str:
    """What the correlation is worth."""
    if pool["says_little"]:
        return f"which says little of {pool['n']} components"
    interval = bracketed(pool["ci_low"], pool["ci_high"])
    if pool["rho_noise_free"] is None:
        return f"{interval}, since at least one ranking is all noise"
    bound = "a lower bound, " if pool["rho"] < pool["rho_noise_free"] else ""
    return (
        f"{bound}and {decimal(pool['rho_noise_free'])} {interval} without the noise of the scores, whose reliability "
        f"is {decimal(pool['reliability_local'])} and {decimal(pool['reliability_global'])}"
    )


def _says(one: Mapping[str, Any]) -> str:
    pool = one["pools"]["all"]
    if pool["rho"] is None:
        return f"{one['method']}: no rank correlation, {pool['why']}."
    same = "the same component" if pool["top1_match"] else "another component"
    return (
        f"{one['method']}: over all {pool['n']} components local and global bypass agree with Spearman's ρ "
        f"{decimal(pool['rho'])}, {_sure(pool)}; {same} comes first globally, and choosing "
        f"locally costs {one['regret']:.2f} log-odds of global bypass."
    )
