"""Figures in one style: colours that colour-blind readers tell apart, every axis with its unit."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.artifacts import RunDir
from refusal_cmp.selection import Rule

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's palette."""
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "refusal-cmp",
}
FORMATS = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}


def save_figure(run: RunDir, name: str, figure: Figure) -> None:
    """Write a figure to `report/figures/` as PNG and SVG."""
    for kind, options in FORMATS.items():
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format=kind, **options)  # type: ignore[arg-type]
        run.write_bytes(f"report/figures/{name}.{kind}", buffer.getvalue())


def scores_figure(table: pd.DataFrame, baseline: Mapping[str, float], rule: Rule) -> Figure:
    """Bypass, induce and KL by layer, a line per position, a column per method and reach.

    Parameters
    ----------
    baseline
        The unedited model's mean refusal metric on `harmful` and `harmless` validation prompts.
    """
    reaches = [reach for reach in ("local", "global") if f"{reach}_bypass" in table]
    columns = [(method, reach) for method in table["method"].unique() for reach in reaches]
    rows = (
        ("bypass", "log-odds of refusal\non harmful prompts", baseline["harmful"], "unedited"),
        ("induce", "log-odds of refusal\non harmless prompts", baseline["harmless"], "unedited"),
        ("KL", "nats, on\nharmless prompts", rule.kl_threshold, "threshold"),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(columns) + 0.8, 6.6))
        axes = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
        for (score, unit, line, meaning), row in zip(rows, axes, strict=True):
            for (method, reach), ax in zip(columns, row, strict=True):
                _curves(ax, table[table["method"] == method], f"{reach}_{score.lower()}")
                ax.axhline(line, color=GREY, linestyle="--", linewidth=1, label=meaning)
            row[0].set_ylabel(f"{score}\n{unit}")
        for (method, reach), top, bottom in zip(columns, axes[0], axes[-1], strict=True):
            top.set_title(f"{method}, {reach}")
            bottom.set_xlabel("layer")
            bottom.set_yscale("symlog", linthresh=0.01)
            bottom.set_ylim(bottom=0)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        labels[-1] = "dashed: unedited (KL: threshold)"
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="position")
    return figure


def rankings_figure(table: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> Figure:
    """Local against global bypass, as scores and as ranks, a column per method."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(studies), 7.4))
        axes = figure.subplots(2, len(studies), squeeze=False)
        for one, (top, bottom) in zip(studies, axes.T, strict=True):
            part = table[(table["method"] == one["method"]) & table["rank"].notna()]
            shades = _scatter(top, part, part["local_bypass"], part["global_bypass"])
            _scatter(bottom, part, part["local_bypass"].rank(), part["global_bypass"].rank())
            top.set_title(f"{one['method']}\n{_said(one['pools'])}")
            top.set(xlabel="local bypass (log-odds)", ylabel="global bypass (log-odds)")
            bottom.set(xlabel="local rank (1 is best)", ylabel="global rank (1 is best)")
            bottom.plot([1, len(part)], [1, len(part)], color=GREY, linestyle=":", linewidth=1)
        figure.colorbar(shades, ax=axes[:, -1], label="layer", shrink=0.6)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _curves(ax: Axes, table: pd.DataFrame, column: str) -> None:
    for colour, (position, part) in zip(_cycle(table["position"].nunique()), table.groupby("position"), strict=True):
        part = part.sort_values("layer")
        ax.plot(part["layer"], part[column], color=colour, marker="o", markersize=3, linewidth=1.2, label=str(position))
    selected = table[table["selected"]]
    ax.plot(selected["layer"], selected[column], "*", color="black", markersize=10, label="selected", zorder=3)


def _scatter(ax: Axes, part: pd.DataFrame, x: pd.Series, y: pd.Series) -> Any:
    """Kept components filled, dropped ones hollow, the selected one a star; colour is the layer."""
    limits: dict[str, Any] = {"vmin": 0, "vmax": max(1, int(part["layer"].max())), "cmap": "viridis"}
    kept = part["kept"].astype(bool)
    ax.scatter(x[kept], y[kept], c=part["layer"][kept], s=36, label="kept by the filters", **limits)
    colours = mpl.colormaps["viridis"](part["layer"][~kept].to_numpy() / limits["vmax"])
    ax.scatter(x[~kept], y[~kept], facecolors="none", edgecolors=colours, s=30, label="dropped")
    chosen = part["selected"].astype(bool)
    ax.scatter(x[chosen], y[chosen], marker="*", s=150, color="#D55E00", edgecolors="black", label="selected", zorder=3)
    return mpl.cm.ScalarMappable(mpl.colors.Normalize(0, limits["vmax"]), "viridis")


def _said(pools: Mapping[str, Mapping[str, Any]]) -> str:
    """The correlations in words."""
    parts = []
    for name, pool in pools.items():
        if pool["rho"] is None:
            parts.append(f"{name} (n = {pool['n']}): no correlation, {pool['why']}")
        else:
            interval = f"[{pool['ci_low']:.2f}, {pool['ci_high']:.2f}]"
            parts.append(f"{name} (n = {pool['n']}): ρ = {pool['rho']:.2f} {interval}")
    return "\n".join(parts)


def _cycle(n: int) -> list[Any]:
    """n colours: the palette, or, for more, shades."""
    return list(COLOURS[:n]) if n <= len(COLOURS) else list(mpl.colormaps["viridis"](np.linspace(0, 0.95, n)))
