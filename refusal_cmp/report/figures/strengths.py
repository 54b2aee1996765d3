"""(f) Strength sweeps: refusal and cost by the strength of activation addition, reflection and the like."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.plan import BASELINE, Plan, component_of, number
from refusal_cmp.registry import parse_spec
from refusal_cmp.report.answer import Cost, cost_of, costs, destroyed
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    GREY,
    PAPER,
    Drawn,
    Outcome,
    Skipped,
    destroyed_swatch,
    errors,
    legend_below,
    loss_axis,
    method_colours,
    page,
    percent_axis,
    spread,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import percent, scope_name
from refusal_cmp.statistics import Estimate

TITLE = "Strength sweep"
UNEDITED_AT_ZERO = ("actadd", "reflection")
"""Interventions that do nothing at strength 0, so that the baseline is a point of their sweep."""
STRENGTHS = {"actadd": "multiplier", "clamp": "strength: −1 harmless, 1 harmful"}

Read = Callable[[str], Estimate | None]


def draw(data: RunData) -> list[Outcome]:
    """A figure for each intervention with several strengths: a column per scope, a row per measurement."""
    names = dict.fromkeys(one.intervention for one in data.edited)
    swept = [name for name in names if len(_tried(data, name)) > 1]
    if not swept:
        why = "no intervention has two strengths; run with e.g. --actadd-multipliers -1,1 or --reflection-alphas 1,2"
        return [Skipped("strengths", TITLE, why)]
    rows = _rows(data)
    if not rows:
        return [Skipped("strengths", TITLE, "neither refusal nor a cost was measured")]
    return [
        Drawn(
            f"strengths-{re.sub('[^a-z0-9]+', '-', name).strip('-')}",
            f"{TITLE}: {name}",
            _figure(data, name, rows),
            _says(data, name, _strengths(data, name)),
        )
        for name in swept
    ]


def _tried(data: RunData, intervention: str) -> set[float]:
    """The strengths of an intervention's plans, but one that leaves the model as it is."""
    plans = [one for one in data.edited if not one.cell]  # strengths of calibration are no sweep
    found = {one.strength for one in plans if one.intervention == intervention and one.strength is not None}
    return found - {0.0} if _is_unedited_at_zero(intervention) else found


def _strengths(data: RunData, intervention: str) -> list[float]:
    """The strengths of a sweep, with that of the baseline where it has one."""
    return sorted(_tried(data, intervention) | ({0.0} if _is_unedited_at_zero(intervention) else set()))


def _is_unedited_at_zero(intervention: str) -> bool:
    return parse_spec(intervention)[0] in UNEDITED_AT_ZERO


def _rows(data: RunData) -> list[tuple[str, Read]]:
    """What was measured: its label, and how to read it for a plan."""
    rows: list[tuple[str, Read]] = [
        ("refuses\nharmful prompts", lambda plan: data.get(plan, "harmful", "refusal")),
        ("refuses\nharmless prompts", lambda plan: data.get(plan, "harmless", "refusal")),
    ]
    rows = [(label, read) for label, read in rows if read(BASELINE) is not None]
    cost = next(iter(costs(data)), None)
    if cost is not None and any(_reader(data, cost)(plan.label) for plan in data.edited):
        label = "accuracy lost" if cost.unit == "share" else f"loss increase,\n{cost.unit}"
        rows.append((label, _reader(data, cost)))
    return rows


@styled
def _figure(data: RunData, intervention: str, rows: Sequence[tuple[str, Read]]) -> Figure:
    colours = method_colours(data.methods)
    figure = Figure(figsize=(page(), 1.45 * len(rows) + 1.0))
    axes = figure.subplots(len(rows), len(data.scopes), sharex=True, sharey="row", squeeze=False)
    strengths = _strengths(data, intervention)
    for scope, column in zip(data.scopes, axes.T, strict=True):
        column[0].set_title(scope_name(scope))
        here = [one for one in data.edited if (one.intervention, one.scope) == (intervention, scope)]
        plans = [one for one in here if component_of(one) is None]
        for (_, read), ax in zip(rows, column, strict=True):
            tidy(ax)
            for (method, colour), shift in zip(colours.items(), spread(len(colours)), strict=True):
                points = _points([one for one in plans if one.method == method], strengths)
                _line(ax, data, points, read, colour, 0.1 * shift * (strengths[-1] - strengths[0]))
        column[-1].set_xticks(strengths, [number(one) for one in strengths])
        column[-1].set_xlabel(STRENGTHS.get(parse_spec(intervention)[0], "strength α"))
    for (label, _), row in zip(rows, axes, strict=True):
        row[0].set_ylabel(label)
        if "nats" in label:
            least = [line.value for plan in data.plans if (line := rows[-1][1](plan.label)) is not None]
            loss_axis(row[0], "y", min(least))
        else:
            percent_axis(row[0].yaxis)
            row[0].set_ylim(-0.05, 1.05)
    figure.align_ylabels(axes[:, 0])
    legend_below(
        figure,
        [
            *(swatch(colour, method, line="-") for method, colour in colours.items()),
            destroyed_swatch(),
            *([swatch(GREY, BASELINE, marker="s")] if 0 in strengths else []),
        ],
    )
    return figure


def _reader(data: RunData, cost: Cost) -> Read:
    def read(plan: str) -> Estimate | None:
        lost = cost_of(data, plan, cost)
        return None if lost is None or not math.isfinite(lost) else Estimate(lost, lost, lost, 0)

    return read


def _points(plans: Sequence[Plan], strengths: list[float]) -> list[tuple[float, str]]:
    """(strength, plan) in order, with the baseline at 0 where that is a point of the sweep."""
    points = [(plan.strength, plan.label) for plan in plans if plan.strength is not None]
    if points and 0.0 in strengths and 0.0 not in dict(points):
        points.append((0.0, BASELINE))
    return sorted(points)


def _line(ax: Axes, data: RunData, points: list[tuple[float, str]], read: Read, colour: str, shift: float) -> None:
    """A line through the points, moved sideways by `shift` so that lines that coincide are both seen."""
    there = [(x + shift * (plan != BASELINE), plan, one) for x, plan in points if (one := read(plan)) is not None]
    if not there:
        return
    ax.errorbar(
        [x for x, *_ in there],
        [one.value for *_, one in there],
        yerr=np.hstack([errors(*one[:3]) for *_, one in there]),
        color=colour,
        elinewidth=0.8,
    )
    gone = destroyed(data)
    for x, plan, one in there:
        if plan == BASELINE:
            ax.plot(x, one.value, "s", color=GREY, zorder=4)
        else:
            face = PAPER if plan in gone else colour
            ax.plot(x, one.value, "o", color=colour, markerfacecolor=face, markersize=3.6, zorder=3)


def _says(data: RunData, intervention: str, strengths: list[float]) -> str:
    parts = []
    for kind in ("harmful", "harmless"):
        shares = []
        for strength in (strengths[0], strengths[-1]):
            wanted = (intervention, strength)
            labels = [one.label for one in data.edited if (one.intervention, one.strength) == wanted] or [BASELINE]
            found = [one.value for label in labels if (one := data.get(label, kind, "refusal")) is not None]
            shares.append(f"{percent(min(found))} to {percent(max(found))}" if found and min(found) < max(found) else
                          f"{percent(found[0])}" if found else "–")  # fmt: skip
        first, last = (number(strength) for strength in (strengths[0], strengths[-1]))
        parts.append(f"{kind} prompts are refused {shares[0]} at {first} and {shares[1]} at {last}")
    return f"{intervention}, over methods and scopes: {'; '.join(parts)}."
