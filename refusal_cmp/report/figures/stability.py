"""(l) Stability: what other prompts would have given, from draws of the training and the validation prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    INK,
    Drawn,
    Outcome,
    Skipped,
    errors,
    legend_below,
    method_colours,
    page,
    percent_axis,
    spread,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.stability import DIGITS, Steadiness, selected_again, steadiness, where_selected
from refusal_cmp.report.wording import decimal, percent
from refusal_cmp.selection.stability import sizes
from refusal_cmp.subspace import Component

NAME = "stability"
LEAST = 0.9
"""Cosine that the axes reach down to, whatever is above it."""
TITLE = "How stable directions and choices are"


def draw(data: RunData) -> list[Outcome]:
    """One figure of a run that was asked."""
    if data.stability is None:
        return [Skipped(NAME, TITLE, "it was not asked; `refusal-cmp stability` asks, from one read of the model")]
    rows = steadiness(data.stability, where_selected(data.extracted_by, data.selections))
    if not rows:
        return [Skipped(NAME, TITLE, "no method is fitted to prompts")]
    return [drawn(rows, data.stability.choices, {one.method: one.selected for one in data.selections})]


def drawn(rows: Sequence[Steadiness], choices: pd.DataFrame, selected: Mapping[str, Component]) -> Drawn:
    """The figure: cosines by prompts, cosines under the bootstrap, and how often the choice is the same."""
    of_choice = [one for one in rows if one.chosen]
    return Drawn(NAME, TITLE, _figure(of_choice, choices, selected), _says(of_choice, choices, selected))


@styled
def _figure(rows: Sequence[Steadiness], choices: pd.DataFrame, selected: Mapping[str, Component]) -> Figure:
    figure = Figure(figsize=(page(), 2.7))
    curve, boot, again = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    colours = method_colours(list(dict.fromkeys((*(one.method for one in rows), *selected))))
    _curve(curve, rows, colours)
    _bootstrap(boot, rows, colours)
    least = [curve.get_ylim()[0], boot.get_ylim()[0]]
    for ax in (curve, boot):
        ax.set_ylim(min(LEAST, *least), 1 + (1 - min(LEAST, *least)) / 50)
    _again(again, choices, selected, colours)
    methods = list(dict.fromkeys(one.method for one in rows))
    legend_below(
        figure,
        [
            *(swatch(colours[method], method, line="-") for method in methods),
            swatch(INK, "two draws apart", marker="o", line="-"),
            swatch(INK, "with all prompts", marker="", line="--"),
        ],
    )
    return figure


def _curve(ax: Axes, rows: Sequence[Steadiness], colours: Mapping[str, str]) -> None:
    """The cosine between disjoint draws with its band, and the one with the direction of all prompts."""
    for one in rows:
        pairs = [(n, pair) for n, (_, pair) in one.curve.items() if pair is not None and pair.found]
        whole = [(n, other) for n, (other, _) in one.curve.items() if other.found]
        colour = colours[one.method]
        ax.plot([n for n, _ in whole], [other.middle for _, other in whole], color=colour, linestyle="--", linewidth=1)
        x = [n for n, _ in pairs]
        ax.plot(x, [pair.middle for _, pair in pairs], color=colour, marker="o", markersize=3)
        ax.fill_between(
            x, [pair.low for _, pair in pairs], [pair.high for _, pair in pairs], color=colour, alpha=0.15, linewidth=0
        )
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ticks = sizes(1 + max((n for one in rows for n in one.curve), default=0))
    ax.set_xticks(ticks, list(map(str, ticks)))
    ax.set(xlabel="prompts of each class", ylabel="cosine", title="by number of prompts")
    tidy(ax)


def _bootstrap(ax: Axes, rows: Sequence[Steadiness], colours: Mapping[str, str]) -> None:
    for x, one in zip(spread(len(rows)), rows, strict=True):
        middle, low, high, found, _ = one.bootstrap
        if found:
            ax.errorbar([x], [middle], yerr=errors(middle, low, high), color=colours[one.method], marker="o")
    ax.set_xlim(-0.6, 0.6)
    ax.set_xticks([])
    ax.set(title="bootstrap", ylabel="cosine with the run’s own")
    tidy(ax)


def _again(ax: Axes, choices: pd.DataFrame, selected: Mapping[str, Component], colours: Mapping[str, str]) -> None:
    methods = [method for method in selected if (choices["method"] == method).any()]
    shares = [selected_again(choices, method, selected[method]) for method in methods]
    ax.bar(range(len(methods)), shares, color=[colours[method] for method in methods], width=0.6)
    ax.set_xticks(range(len(methods)), [str(selected[method]) for method in methods])
    ax.set_ylim(0, 1.02)
    ax.set_xlim(-0.7, max(1, len(methods)) - 0.3)
    ax.set(title="selected again", xlabel="component")
    percent_axis(ax.yaxis)
    tidy(ax)


def _says(rows: Sequence[Steadiness], choices: pd.DataFrame, selected: Mapping[str, Component]) -> str:
    """The medians, and how often the choice stays."""
    found = [
        f"{one.method} {decimal(one.bootstrap.middle, DIGITS)}"
        + (f" ({decimal(one.halves.middle, DIGITS)} between halves of them)" if one.halves.found else "")
        for one in rows
        if one.bootstrap.found
    ]
    again = [
        f"{at} of {method} in {percent(selected_again(choices, method, at))}"
        for method, at in selected.items()
        if (choices["method"] == method).any()
    ]
    drawn_anew = "The median cosine with the run’s own direction, when the training prompts are drawn anew, is"
    ends = [f"{drawn_anew} {', '.join(found)}."] if found else []
    if again:
        ends.append(f"With validation prompts drawn anew, what is selected is {', '.join(again)} of the draws.")
    return " ".join(ends)
