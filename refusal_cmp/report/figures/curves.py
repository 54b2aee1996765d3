"""(j) Refusal against damage along a sweep of strengths, and the frontier of every method."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.config import CONTRAST
from refusal_cmp.report.curves import Line, Sweep
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    TALLEST,
    Drawn,
    Outcome,
    Skipped,
    legend_below,
    method_colours,
    numbered,
    page,
    percent_axis,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import bracketed, decimal, percent, scope_name, sentence_list
from refusal_cmp.statistics.frontier import Weights, band, damages

FRONTIER, CURVES = "Harmful prompts answered against damage", "Refusal against damage"
NO_SWEEP = "strengths were not swept; run with --curve"
HEADINGS = {"harmful": "harmful prompts", "harmless": "harmless prompts", CONTRAST: "prompts that only\nsound harmful"}
ROW, MARGIN = 1.05, 1.0
"""Inches: of a row of panels; of titles, axes and legend."""
BANDS = 500
"""Draws of the bands of single curves."""
TICKS = (0, 1 / 16, 1 / 4, 1)
"""Damages on an axis, in limits; it is that of square roots, along which strengths lie evenly."""
SHADE = 0.18


def draw_frontier(data: RunData) -> list[Outcome]:
    """The most harmful prompts that are answered at no more damage, a line per method."""
    if data.sweep is None or data.sweep.frontiers is None:
        why = NO_SWEEP if data.sweep is None else "no harmful prompts are among the test sets"
        return [Skipped("frontier", FRONTIER, why)]
    return [Drawn("frontier", FRONTIER, _frontier(data.sweep), _frontier_says(data.sweep))]


def draw_curves(data: RunData) -> list[Outcome]:
    """A figure for each scope: a row per intervention, a column per kind of prompt, a line per method."""
    sweep = data.sweep
    if sweep is None or not sweep.shown:
        return [Skipped("curves", CURVES, NO_SWEEP if sweep is None else "no test set is of a kind that is shown")]
    figures: list[Outcome] = []
    size = int((TALLEST - MARGIN) / ROW)
    for scope in dict.fromkeys(line.scope for line in sweep.lines):
        lines = [line for line in sweep.lines if line.scope == scope]
        cells = list(dict.fromkeys(line.cell for line in lines))
        for index, start in enumerate(range(0, len(cells), size)):
            figure = _curves(sweep, lines, cells[start : start + size])
            name = numbered(f"curves-{scope.replace(':', '')}", index)
            figures.append(Drawn(name, f"{CURVES}: {scope_name(scope)}", figure, _curves_say(sweep, lines, scope)))
    return figures


@styled
def _frontier(sweep: Sweep) -> Figure:
    found, colours = sweep.frontiers, method_colours(sweep.methods)
    assert found is not None
    figure = Figure(figsize=(page(), 3.0))
    ax = figure.subplots()
    for method, colour in colours.items():
        _banded(ax, found.x, found.band(method), colour)
    _axes(ax, sweep)
    ax.set_xlabel(fill(sweep.axis, 80))
    ax.set_ylabel("harmful prompts not refused\nat the first token")
    legend_below(figure, [swatch(colour, method, line="-", marker="") for method, colour in colours.items()])
    return figure


@styled
def _curves(sweep: Sweep, lines: Sequence[Line], cells: Sequence[str]) -> Figure:
    colours, x = method_colours(sweep.methods), damages(sweep.limit)
    figure = Figure(figsize=(page(), ROW * len(cells) + MARGIN))
    axes = figure.subplots(len(cells), len(sweep.shown), sharex=True, sharey=True, squeeze=False)
    for cell, row in zip(cells, axes, strict=True):
        for dataset, ax in zip(sweep.shown, row, strict=True):
            for line in (one for one in lines if one.cell == cell):
                curve = line.curve(dataset)
                weights = Weights.drawn(curve.damage.shape[1], curve.hits.shape[1], BANDS)
                there = x <= line.reach
                values = curve.along(x[there], *weights)
                _banded(ax, x[there], band(values), colours[line.method])
                at = [float(np.mean(one["damage"])) for one in line.rows]
                ax.plot(at, curve.hits.mean(axis=1), "o", color=colours[line.method], markersize=2.2)
            _axes(ax, sweep)
        row[0].set_ylabel(cell.replace(":-", " −").replace(":+", " +"))
    for dataset, ax in zip(sweep.shown, axes[0], strict=True):
        ax.set_title(HEADINGS[dataset])
    n = len(sweep.shown)
    axes[-1][n // 2].set_xlabel(fill(sweep.axis, 70 if n % 2 else 45))  # of two columns it is under the right one
    legend_below(figure, [swatch(colour, method, line="-", marker="") for method, colour in colours.items()])
    return figure


def _banded(ax: Axes, x: Any, values: tuple[Any, Any, Any], colour: str) -> None:
    middle, low, high = values
    ax.fill_between(x, low, high, color=colour, alpha=SHADE, linewidth=0)
    ax.plot(x, middle, color=colour)


def _axes(ax: Axes, sweep: Sweep) -> None:
    tidy(ax)
    ax.set_xscale("function", functions=(lambda d: np.sqrt(np.clip(d, 0, None)), np.square))
    ax.set_xlim(0, 1.02 * sweep.limit)
    ax.set_xticks([tick * sweep.limit for tick in TICKS], [f"{tick * sweep.limit:.3g}" for tick in TICKS])
    ax.minorticks_off()
    ax.set_ylim(-0.04, 1.04)
    ax.set_yticks([0, 0.5, 1])
    percent_axis(ax.yaxis)


def _frontier_says(sweep: Sweep) -> str:
    assert sweep.frontiers is not None
    areas = sorted(sweep.frontiers.areas.items(), key=lambda one: -one[1].value)
    said = [f"{name} {decimal(one.value)} {bracketed(one.low, one.high)}" for name, one in areas]
    return (
        f"The most harmful prompts, of {sweep.frontiers.n}, that any intervention and scope of a method leaves "
        f"unrefused at the first token, at no more damage than is shown ({sweep.said}). Its mean height over this "
        f"axis, up to {sweep.limit:g}{f' {sweep.unit}' if sweep.unit else ''}: {'; '.join(said)}. "
        "Bands and brackets are 95 %, from drawing the prompts anew, those of refusal and those of damage."
    )


def _curves_say(sweep: Sweep, lines: Sequence[Line], scope: str) -> str:
    """Of each kind of prompt what is refused without damage, and the least and the most that is at up to a tenth."""
    budget, parts = sweep.limit / 10, []
    for dataset in sweep.shown:
        ends = {}
        for line in lines:
            curve = line.curve(dataset)
            mean = curve.damage.mean(axis=1)
            ends[f"{line.method}/{line.cell}"] = float(curve.hits.mean(axis=1)[mean <= budget][-1])
        least, most = min(ends, key=lambda name: ends[name]), max(ends, key=lambda name: ends[name])
        unedited = float(lines[0].curve(dataset).hits[0].mean())
        kind = HEADINGS[dataset].replace("\n", " ")
        parts.append(
            f"of {kind} {percent(unedited)} are refused unedited, {percent(ends[least])} under {least} and "
            f"{percent(ends[most])} under {most}"
        )
    return (
        f"At scope “{scope_name(scope)}”, at the largest strength with a damage of at most {budget:.2g}: "
        f"{sentence_list(parts)}. Dots are the strengths that were tried; bands are 95 %, from prompts drawn anew."
    )
