"""(e) The trade-off: harmful prompts answered against what is lost, with the Pareto front."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from refusal_cmp.plan import ALSO, BASELINE, Plan
from refusal_cmp.report.answer import Cost, cost_of, costs, destroyed, pareto
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    FAINT,
    GREEN,
    GREY,
    INK,
    PAPER,
    TALLEST,
    UNEDITED,
    Drawn,
    Outcome,
    Skipped,
    column,
    destroyed_swatch,
    errors,
    in_column,
    intervention_markers,
    legend_below,
    loss_axis,
    method_colours,
    numbered,
    page,
    percent_axis,
    styled,
    swatch,
    tidy,
    unedited_swatches,
)
from refusal_cmp.report.wording import counted, does, percent, scope_name, sentence_list
from refusal_cmp.statistics import ENOUGH

TITLE = "Harmful prompts answered against what is lost"
LETTERS = 13
"""Of a label, to the inch of a panel."""
LABEL = 25
"""Letters of a line of the legend, in a column."""
ROWS = 2
"""Costs that are drawn."""
NAMED = 3
"""Plans on the front that the sentence names."""
PANEL, MARGIN = 2.0, 1.1
"""Inches, in a column: the height of a panel; that of titles and a legend of few entries."""
LINE = 0.08
"""Inches of height, in a column, for each entry of the legend."""
MIDDLE = 0.5
BAND = 0.08
"""How strong the green is behind plans that answer enough."""


def draw(data: RunData) -> list[Outcome]:
    """A row for each of the costs that decide first, a panel per scope; the front is that of the shown scopes together.

    In a column panels are below each other, in as many figures as a page has room for.
    """
    measured = costs(data)[:ROWS]
    if data.answered(BASELINE) is None:
        return [Skipped("tradeoff", TITLE, "refusal was not measured; add it to --evals")]
    if not measured:
        return [Skipped("tradeoff", TITLE, "no cost was measured; add perplexity, capability or kl to --evals")]
    measured = [cost for cost in measured if _lost_by(data, cost, data.edited)]
    if not measured:
        return [Skipped("tradeoff", TITLE, "no plan has a finite cost")]
    size = len(measured) if _height(data, len(measured)) <= TALLEST or not in_column() else 1
    figures: list[Outcome] = []
    for index, start in enumerate(range(0, len(measured), size)):
        shown = measured[start : start + size]
        says = " ".join([*(_says(data, cost) for cost in shown), _apart(data)])
        figures.append(Drawn(numbered("tradeoff", index), TITLE, _figure(data, shown), says))
    return figures


def _height(data: RunData, n_costs: int) -> float:
    """Inches that a figure of so many costs takes."""
    if not in_column():
        return 2.25 * n_costs + 1.1
    entries = len(data.methods) + len({plan.intervention for plan in data.edited})
    return PANEL * n_costs * len(data.scopes) + LINE * entries + MARGIN


@styled
def _figure(data: RunData, measured: Sequence[Cost]) -> Figure:
    colours = method_colours(data.methods)
    markers = intervention_markers(list(dict.fromkeys(plan.intervention for plan in data.edited)))
    scopes = data.scopes
    width, across = (column(), 1) if in_column() else (page(), len(scopes))
    figure = Figure(figsize=(width, _height(data, len(measured))))
    panels = [(cost, scope) for cost in measured for scope in scopes]
    axes = figure.subplots(len(panels) // across, across, sharey=True, sharex="row", squeeze=False)
    for index, ((cost, scope), ax) in enumerate(zip(panels, axes.flat, strict=True)):
        _panel(ax, data, cost, scope, colours, markers, _front(data, cost))
        ax.set_xlabel(textwrap.fill(_lost_in_words(cost), int(LETTERS * width / across)))
        if index % across == 0:
            ax.set_ylabel("harmful prompts\nanswered" + (", in language" if data.asks_for_language else ""))
        if in_column() or index < across:
            ax.set_title(scope_name(scope))
    front_of = f"Pareto front of the plans at {_scopes(data)}"
    legend_below(
        figure,
        [
            *(Patch(color=colour, label=method) for method, colour in colours.items()),
            *(swatch(GREY, name, marker=marker) for name, marker in markers.items()),
            swatch(INK, textwrap.fill(front_of, LABEL) if in_column() else front_of, marker="", line="-"),
            swatch(INK, BASELINE, marker="+"),
            *unedited_swatches(data.unedited),
            destroyed_swatch(),
            *([swatch(FAINT, "another scope", marker=".")] if len(scopes) > 1 else []),
            Patch(color=GREEN, alpha=BAND, linewidth=0, label=f"{percent(ENOUGH)} or more answered"),
        ],
    )
    return figure


def _panel(
    ax: Axes,
    data: RunData,
    cost: Cost,
    scope: str,
    colours: dict[str, str],
    markers: dict[str, str],
    front: Sequence[tuple[str, float, float]],
) -> None:
    tidy(ax, "both")
    ax.axhspan(ENOUGH, 1.05, color=GREEN, alpha=BAND, linewidth=0)
    corners = [*((x, y) for _, x, y in front), (1.0 if cost.unit == "share" else 100.0, front[-1][2])]
    ax.step(*zip(*corners, strict=True), where="post", color=INK, linewidth=0.8, alpha=0.6, zorder=2)
    unedited = data.answered(BASELINE)
    ax.plot(0, unedited.value if unedited else math.nan, "+", color=INK, markersize=7, markeredgewidth=1.2)
    on_front, gone = {plan for plan, *_ in front}, destroyed(data)
    for plan in data.edited:
        lost, answered = cost_of(data, plan.label, cost), data.answered(plan.label)
        if lost is None or answered is None or not math.isfinite(lost):
            continue
        if plan.scope != scope:
            ax.plot(lost, answered.value, ".", color=FAINT, markersize=3, zorder=1)
            continue
        best = plan.label in on_front
        ax.errorbar(
            lost,
            answered.value,
            yerr=errors(*answered[:3]),
            fmt=markers[plan.intervention],
            color=colours[plan.method],
            markersize=6.5 if best else 4.5,
            **_mark(colours[plan.method], best, plan.label in gone),
            elinewidth=0.7,
            zorder=4 if best else 3,
        )
    for plan in data.unedited:
        _star(ax, data, plan, cost, plan.label in gone)
    if cost.unit == "share":
        percent_axis(ax.xaxis)
        every = _lost(data, cost)
        ax.set_xlim(min(-0.05, *every) - 0.02, max(0.05, *every) + 0.02)
    else:
        loss_axis(ax, "x", min(0.0, *_lost(data, cost)))
    ax.set_ylim(-0.04, 1.05)
    percent_axis(ax.yaxis)


def _star(ax: Axes, data: RunData, plan: Plan, cost: Cost, is_broken: bool) -> None:
    """A plan that edits nothing, the same in every panel, with its name beside it."""
    lost, answered = cost_of(data, plan.label, cost), data.answered(plan.label)
    if lost is None or answered is None or not math.isfinite(lost):
        return
    face = PAPER if is_broken else INK
    ax.plot(
        lost, answered.value, UNEDITED, color=INK, markerfacecolor=face, markersize=7, markeredgewidth=0.7, zorder=5
    )
    name, below = plan.label.removeprefix(ALSO), answered.value > MIDDLE
    ax.annotate(
        name,
        (lost, answered.value),
        (0, -5 if below else 5),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize=5.5,
    )


def _mark(colour: str, best: bool, is_broken: bool) -> dict[str, Any]:
    """The face and the edge of a plan's mark: with a dark edge on the front, hollow if it destroys the model."""
    if is_broken:
        return {"markerfacecolor": PAPER, "markeredgecolor": colour, "markeredgewidth": 1.0}
    return {"markeredgecolor": INK if best else PAPER, "markeredgewidth": 0.9 if best else 0.5}


def _lost_in_words(cost: Cost) -> str:
    """What an axis of a cost shows."""
    if cost.unit == "share":
        return f"{cost.name}, lost"
    return f"increase of {cost.name}, {cost.unit}"


def _lost(data: RunData, cost: Cost) -> list[float]:
    """What every distinct plan loses, and every one that edits nothing, where it was measured and is finite."""
    return [*_lost_by(data, cost, data.edited), *_lost_by(data, cost, data.unedited)]


def _lost_by(data: RunData, cost: Cost, plans: Sequence[Plan]) -> list[float]:
    lost = [cost_of(data, label, cost) for label in data.distinct([plan.label for plan in plans])]
    return [one for one in lost if one is not None and math.isfinite(one)]


def _front(data: RunData, cost: Cost) -> list[tuple[str, float, float]]:
    """The plans that no other beats in both, with the baseline among them: (plan, cost, answered).

    Those that destroy the model have no place there.
    """
    points, gone = [], destroyed(data)
    for plan in (label for label in (BASELINE, *(one.label for one in data.edited)) if label not in gone):
        lost, answered = cost_of(data, plan, cost), data.answered(plan)
        if lost is not None and answered is not None and math.isfinite(lost):
            points.append((plan, lost, answered.value))
    return [points[index] for index in pareto([(x, y) for _, x, y in points])]


def _says(data: RunData, cost: Cost) -> str:
    front = [one for one in _front(data, cost) if one[0] != BASELINE]
    best = [plan for plan, _, answered in front if answered >= ENOUGH]
    lost = _lost_by(data, cost, data.edited)
    cheap = sum(one <= cost.tie for one in lost)
    amounts = [
        counted(round(100 * one), "point") if cost.unit == "share" else f"{one:.2g} nats"
        for one in (cost.tie, max(lost))
    ]
    enough = f"{percent(ENOUGH)} or more of harmful prompts are answered by"
    if len(best) > NAMED:
        answers = f"{enough} {len(best)} of them, at the least cost by {sentence_list(best[:NAMED])}"
    elif best:
        answers = f"{enough} {sentence_list(best)}"
    else:
        answers = f"none of them answers {percent(ENOUGH)} of harmful prompts"
    return (
        f"By {cost.name}, {counted(len(front), 'plan')} {'is' if len(front) == 1 else 'are'} on the Pareto front of "
        f"the plans shown, at {_scopes(data)}; {answers}. {counted(cheap, 'plan')} of {len(lost)} "
        f"{does(cheap, 'cost')} at most {amounts[0]}, the dearest {amounts[1]}."
    )


def _scopes(data: RunData) -> str:
    """The scopes that are shown, of whose plans the fronts are: those of others that a run has may beat them."""
    return sentence_list([scope_name(scope) for scope in data.scopes])


def _apart(data: RunData) -> str:
    """What is said once for all costs: how many plans the fronts leave out."""
    gone = destroyed(data)
    n = len(data.distinct([plan.label for plan in data.edited if plan.label in gone]))
    left_out = f"{counted(n, 'plan')} {does(n, 'destroy')} the model, hollow here and on no front. " if n else ""
    return f"{left_out}Identical plans count once."
