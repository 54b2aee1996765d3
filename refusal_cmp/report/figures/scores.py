"""(a) Score curves: bypass, induce and KL of every component, by layer and position."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    FAINT,
    GREY,
    INK,
    Drawn,
    Outcome,
    column,
    in_column,
    legend_below,
    numbered,
    page,
    shades,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import counted, log_odds
from refusal_cmp.selection import Rule, Selection

WIDEST = 4
"""Columns of a figure: a method and a reach each."""
STEPS, STEPS_AN_INCH = 6, 3
"""Most steps between the layers that are written at the axis; and to the inch of a panel."""
IN_COLUMN = WIDEST // 2
"""Of them, in a figure that is as wide as a column."""


def draw(data: RunData) -> list[Outcome]:
    """A figure for every two methods (four, where there are only local scores); in a column for half as many."""
    reaches = _reaches(data.scores)
    methods = list(data.scores["method"].unique())
    size = max(1, (IN_COLUMN if in_column() else WIDEST) // len(reaches))
    figures: list[Outcome] = []
    for start in range(0, len(methods), size):
        shown = methods[start : start + size]
        table = data.scores[data.scores["method"].isin(shown)]
        figure = scores_figure(table, data.baseline_metric, data.rule, data.manifest["model"]["n_layers"])
        name = numbered("scores", start // size)
        says = " ".join(_says(one, data) for one in data.selections if one.method in shown)
        figures.append(Drawn(name, f"Scores by layer and position: {', '.join(shown)}", figure, says))
    return figures


@styled
def scores_figure(
    table: pd.DataFrame, baseline: Mapping[str, float], rule: Rule, n_layers: int | None = None
) -> Figure:
    """Bypass, induce and KL by layer, a line per position, a column per method and reach.

    Parameters
    ----------
    baseline
        The unedited model's mean refusal metric on `harmful` and `harmless` validation prompts.
    n_layers
        Of the model; by default up to the last layer that has a component.
    """
    columns = [(method, reach) for method in table["method"].unique() for reach in _reaches(table)]
    rows = (
        ("bypass", "log-odds of refusal\non harmful prompts", baseline["harmful"]),
        ("induce", "log-odds of refusal\non harmless prompts", baseline["harmless"]),
        ("KL", "nats, on harmless\nprompts", rule.kl_threshold),
    )
    positions = sorted(table["position"].unique())
    n_layers = n_layers or int(table["layer"].max()) + 1
    figure = Figure(figsize=(column() if len(columns) <= IN_COLUMN else page(), 5.2))
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for (score, unit, line), row in zip(rows, axes, strict=True):
        for (method, reach), ax in zip(columns, row, strict=True):
            tidy(ax)
            ax.axvspan(int(rule.prune_layers * n_layers) - 0.5, n_layers - 0.5, color=FAINT, alpha=0.35, linewidth=0)
            ax.axhline(line, color=GREY, linestyle="--", linewidth=1)
            _curves(ax, table[table["method"] == method], f"{reach}_{score.lower()}", positions)
        row[0].set_ylabel(f"{score}\n{unit}")
    steps = max(1, min(STEPS, int(STEPS_AN_INCH * figure.get_figwidth() / len(columns))))
    for (method, reach), top, bottom in zip(columns, axes[0], axes[-1], strict=True):
        top.set_title(f"{method}\n{reach}")
        bottom.set_xlabel("layer")
        bottom.set_xlim(-0.5, n_layers - 0.5)
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=steps))
        bottom.set_yscale("symlog", linthresh=0.01)
        bottom.set_yticks([0, 0.01, 0.1, 1, 10], ["0", "0.01", "0.1", "1", "10"])
        bottom.set_ylim(0, max(0.2, 1.5 * table[[f"{reach}_kl" for reach in _reaches(table)]].max().max()))
        bottom.minorticks_off()
    lines = [
        swatch(colour, f"position {position}", line="-")
        for position, colour in zip(positions, shades(len(positions)), strict=True)
    ]
    legend_below(
        figure,
        [
            *lines,
            Line2D([], [], color=GREY, marker="o", markerfacecolor="none", linestyle="", label="dropped by a filter"),
            swatch(INK, "selected", marker="*"),
            Line2D([], [], color=GREY, linestyle="--", label="unedited (KL: threshold)"),
            Patch(color=FAINT, alpha=0.6, label="layers not selected from"),
        ],
        columns=4 if len(columns) > IN_COLUMN else 2,
    )
    return figure


def _reaches(table: pd.DataFrame) -> list[str]:
    return [reach for reach in ("local", "global") if f"{reach}_bypass" in table]


def _curves(ax: Axes, table: pd.DataFrame, column: str, positions: list[int]) -> None:
    for colour, position in zip(shades(len(positions)), positions, strict=True):
        part = table[table["position"] == position].sort_values("layer")
        ax.plot(part["layer"], part[column], color=colour, linewidth=1.1)
        for kept, face in ((True, colour), (False, "none")):
            some = part[part["kept"].astype(bool) == kept]
            ax.plot(some["layer"], some[column], "o", color=colour, markerfacecolor=face, markersize=3.2)
    selected = table[table["selected"].astype(bool)]
    ax.plot(selected["layer"], selected[column], "*", color=INK, markersize=9, zorder=3)


def _says(one: Selection, data: RunData) -> str:
    row = data.chosen(one.method)
    chosen = f"{one.method} selects position {one.selected.position}, layer {one.selected.layer}"
    if one.fallback:
        chosen += f" though the filters keep none of its {counted(len(one.ranking), 'component')} ({one.note})"
    else:
        keep = "component that the filters keep" if len(one.kept) == 1 else "components that the filters keep"
        chosen += f", of {len(one.kept)} {keep} out of {len(one.ranking)}"
    before = data.baseline_metric
    bypass = f"from {log_odds(before['harmful'], 1)} to {log_odds(row['bypass'], 1)}"
    induce = f"from {log_odds(before['harmless'], 1)} to {log_odds(row['induce'], 1)}"
    return (
        f"{chosen}: removing it takes the log-odds of refusal on harmful prompts {bypass}, adding it takes those on "
        f"harmless prompts {induce}, and KL is {row['kl']:.2g} nats."
    )
