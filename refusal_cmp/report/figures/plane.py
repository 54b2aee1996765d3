"""(g) Where activations land: in the plane of direction and first principal component, and along the way between."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    FAINT,
    GREY,
    INK,
    PAPER,
    PROMPT_COLOURS,
    UNEDITED,
    Drawn,
    Outcome,
    Skipped,
    column,
    legend_below,
    method_colours,
    page,
    spread,
    step,
    styled,
    swatch,
    tidy,
    unedited_swatches,
)
from refusal_cmp.report.landings import Landing, Landings
from refusal_cmp.report.wording import scope_name, sentence_list

PLANE = "Activations in the plane of the direction and the first principal component"
LANDING = "Where harmful activations land"
WIDEST = 4
LANDS = {
    "harmful": "stay with the harmful ones",
    "past": "go further away from the harmless ones",
    "between": "land between the clusters",
    "harmless": "land with the harmless ones",
    "beyond": "land beyond the harmless ones",
    "aside": "end aside of both",
}
MEANS = ((0, "harmless", ":", "right"), (1, "harmful", "--", "left"))
"""The unedited means: where each is on the way, its label, dash, and the side of the line on which the label stands."""
PALE = 0.2
"""Opacity of unedited activations."""
EDGE = 2.2
"""Landings further than this from the middle are drawn at the edge."""


def draw(data: RunData) -> list[Outcome]:
    """Landings of all plans, and a plane per method at the first scope."""
    if data.landings is None:
        return [Skipped("plane", PLANE, "geometry is not among the evaluators")]
    finite = {plan for plan, landings in data.landings.landings.items() if math.isfinite(landings[0].along)}
    if not finite:
        return [Skipped("plane", PLANE, "no plan leaves the activations finite")]
    scope = data.scopes[0]
    figures: list[Outcome] = [
        Drawn("landing", LANDING, _landing_figure(data, data.landings), _says(data, data.landings))
    ]
    for method in data.methods:
        plans = [
            plan
            for plan in data.edited
            if (plan.method, plan.scope) == (method, scope) and (method, plan.label) in data.landings.planes
        ]
        plans += [plan for plan in data.unedited if (method, plan.label) in data.landings.planes]
        if any(plan.label in finite for plan in plans):
            figures.append(
                Drawn(
                    f"plane-{_slug(method)}-{scope.replace(':', '')}",
                    f"{PLANE}: {method}, {scope_name(scope)}",
                    _plane_figure(data.landings, method, plans),
                    _plane_says(data.landings, method, plans),
                )
            )
    return figures


@styled
def _plane_figure(found: Landings, method: str, plans: Sequence[Plan]) -> Figure:
    n = len(plans)
    columns = min(n, WIDEST)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(column() if columns <= WIDEST // 2 else page(), 1.85 * rows + 0.8))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    unedited = found.planes[method, BASELINE]
    for plan, ax in zip(plans, axes, strict=False):
        _plane(ax, unedited, found.planes[method, plan.label])
        landed = found.landings[plan.label][0]
        ax.set_title(step(plan), pad=12)
        distances = f"to harmful {landed.to_harmful:.2f}, to harmless {landed.to_harmless:.2f}"
        distances = distances if math.isfinite(landed.along) else "not finite"
        ax.text(0.5, 1.03, distances, transform=ax.transAxes, ha="center", fontsize=6)
    for ax in axes[n:]:
        ax.remove()
    for index, ax in enumerate(axes[:n]):
        if index % columns == 0:
            ax.set_ylabel("first principal\ncomponent")
        if index + columns >= n:
            ax.set_xlabel("along the direction")
            ax.tick_params(labelbottom=True)
    legend_below(
        figure,
        [
            *(swatch(colour, f"{kind}, edited") for kind, colour in _colours().items()),
            *(swatch(colour, f"{kind}, unedited", alpha=PALE) for kind, colour in _colours().items()),
            swatch(INK, "unedited means", marker="P"),
        ],
        columns=5 if columns > 2 else 3,
    )
    return figure


def _colours() -> dict[str, str]:
    return {kind: PROMPT_COLOURS[kind] for kind in ("harmful", "harmless")}


def _plane(ax: Axes, unedited: np.ndarray, edited: np.ndarray) -> None:
    """Unedited activations pale, edited ones in colour, an arrow from the harmful mean to where it lands."""
    for colour, before in zip(_colours().values(), unedited, strict=True):
        ax.scatter(before[:, 0], before[:, 1], s=9, color=colour, alpha=PALE, linewidths=0)
    for colour, after in zip(_colours().values(), edited, strict=True):
        ax.scatter(after[:, 0], after[:, 1], s=7, color=colour, alpha=0.75, linewidths=0)
    start, end = unedited[0].mean(0), edited[0].mean(0)
    way = unedited[0].mean(0) - unedited[1].mean(0)
    if np.isfinite(end).all() and np.linalg.norm(end - start) > 0.1 * np.linalg.norm(way):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.9}, zorder=5)
    for before in unedited:
        ax.plot(*before.mean(0), "P", color=INK, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.5, zorder=4)
    ax.axvline(0, color=GREY, linestyle=":", linewidth=0.8)


@styled
def _landing_figure(data: RunData, found: Landings) -> Figure:
    steps = list(dict.fromkeys(map(step, (*data.edited, *data.unedited))))
    colours = method_colours(data.methods)
    figure = Figure(figsize=(page(), len(steps) * (0.16 + 0.075 * len(colours)) + 1.2))
    axes = figure.subplots(1, len(data.scopes), sharex=True, sharey=True, squeeze=False)[0]
    offsets = dict(zip(colours, spread(len(colours)), strict=True))
    for scope, ax in zip(data.scopes, axes, strict=True):
        tidy(ax, "x")
        for row in range(0, len(steps), 2):
            ax.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.25, linewidth=0)
        for place, mean, line, side in MEANS:
            ax.axvline(place, color=INK, linestyle=line, linewidth=0.9)
            ax.text(place, 1, mean, transform=ax.get_xaxis_transform(), ha=side, va="bottom", fontsize=6)
        for plan in (plan for plan in data.edited if plan.scope == scope):
            y = steps.index(step(plan)) + offsets[plan.method]
            _landed(ax, found.landings.get(data.run_as[plan.label], ()), y, colours[plan.method])
        for plan in data.unedited:
            _landed(ax, found.landings.get(data.run_as[plan.label], ()), steps.index(plan.label), INK, UNEDITED)
        ax.set_title(scope_name(scope), pad=12)
        ax.set_xlabel("harmless (0) to harmful (1)")
        ax.set_xlim(0.5 - EDGE - 0.1, 0.5 + EDGE + 0.1)
        ax.set_xticks([-1, 0, 1, 2])
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(steps)), steps)
    axes[0].set_ylim(len(steps) - 0.5, -0.5)
    legend_below(
        figure,
        [
            *(swatch(colour, method) for method, colour in colours.items()),
            *unedited_swatches(data.unedited),
            swatch(GREY, "at the selected component"),
            swatch(GREY, "before the last block", marker="$\\circ$"),
        ],
        columns=4,
    )
    return figure


def _landed(ax: Axes, landings: tuple[Landing, ...], y: float, colour: str, mark: str = "o") -> None:
    for landing, face, size, kind in zip(landings, (colour, "none"), (3.8, 5), (mark, "o"), strict=False):
        if not math.isfinite(landing.along):
            continue
        x = float(np.clip(landing.along, 0.5 - EDGE, 0.5 + EDGE))
        marker = kind if x == landing.along else "<" if x < landing.along else ">"
        marker = {"<": ">", ">": "<"}.get(marker, marker)
        ax.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=size, markeredgewidth=0.8)


def _slug(method: str) -> str:
    return "".join(character for character in method if character.isalnum() or character == "-")


def _says(data: RunData, found: Landings) -> str:
    """The interventions by where they land, at the first scope; one that differs between methods is in each place."""
    scope = data.scopes[0]
    places: dict[str, list[str]] = {word: [] for word in LANDS}
    for plan in data.edited:
        landings = found.landings.get(data.run_as[plan.label])
        if plan.scope == scope and landings and step(plan) not in places[landings[0].word]:
            places[landings[0].word].append(step(plan))
    said = "; ".join(f"under {sentence_list(steps)} they {LANDS[word]}" for word, steps in places.items() if steps)
    return (
        f"Harmful activations at the selected component, scope “{scope_name(scope)}”: {said}. Rings: the same "
        "on entry to the last block. Lines: the unedited means."
    )


def _plane_says(found: Landings, method: str, plans: Sequence[Plan]) -> str:
    parts = []
    for plan in plans:
        landed = found.landings[plan.label][0]
        place = f"{landed.along:+.2f} ({landed.word})" if math.isfinite(landed.along) else "not finite"
        parts.append(f"{step(plan)} {place}")
    return (
        f"{method} at {found.components[method]}: on the way from the harmless mean (0) to the harmful mean (1), "
        f"the mean of harmful activations lands at: {', '.join(parts)}. Distances in the titles are shares of the "
        "distance between the two unedited means."
    )
