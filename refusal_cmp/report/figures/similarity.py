"""(h) Similarity of methods: cosine of directions and principal angles of subspaces, by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._matrix import matrix
from refusal_cmp.report.figures._style import (
    GREY,
    Drawn,
    Outcome,
    Skipped,
    column,
    legend_below,
    page,
    shades,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import counted, span
from refusal_cmp.subspace import Component, Subspace, SubspaceField

TITLE = "How similar the methods' subspaces are"
WIDEST = 4
MOST_PAIRS = 10
"""Of methods, each in a column; more are a matrix."""


def draw(data: RunData) -> list[Outcome]:
    """A column per pair of methods: |cosine| of directions, and the least and the mean principal angle."""
    if len(data.fields) < 2:
        return [Skipped("similarity", TITLE, "there is one method only")]
    pairs = list(combinations(data.fields, 2))
    if len(pairs) > MOST_PAIRS:
        return [Drawn("similarity", TITLE, _all_pairs(data), _says_of_all(data))]
    figures: list[Outcome] = []
    for start in range(0, len(pairs), WIDEST):
        shown = pairs[start : start + WIDEST]
        name = "similarity" if not start else f"similarity-{start // WIDEST + 1}"
        says = " ".join(_says(data, *pair) for pair in shown)
        figures.append(Drawn(name, TITLE, _figure(data, shown), says))
    return figures


def principal_angles(one: Subspace, other: Subspace) -> torch.Tensor:
    """Angles between two subspaces in degrees, smallest first, as many as the smaller has directions.

    Their cosines are the singular values of V₁ V₂ᵀ (Björck & Golub 1973).
    """
    cosines = torch.linalg.svdvals(one.basis @ other.basis.mT)
    return torch.rad2deg(torch.arccos(cosines.clamp(-1, 1)))


@styled
def _figure(data: RunData, pairs: Sequence[tuple[str, str]]) -> Figure:
    figure = Figure(figsize=(column() if len(pairs) <= WIDEST // 2 else page(), 4.4))
    axes = figure.subplots(2, len(pairs), sharex=True, sharey="row", squeeze=False)
    positions = sorted({position for field in data.fields.values() for position in field.means.positions})
    colours = dict(zip(positions, shades(len(positions)), strict=True))
    for (first, second), (top, bottom) in zip(pairs, axes.T, strict=True):
        one, other = data.fields[first], data.fields[second]
        for position, colour in colours.items():
            _curves(top, bottom, one, other, position, colour)
        top.set_title(f"{first}, {second}" if len(pairs) == 1 else f"{first},\n{second}")
        bottom.set_xlabel("layer")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        top.axhline(_by_chance(one), color=GREY, linestyle="--", linewidth=1)
        tidy(top)
        tidy(bottom)
    axes[0, 0].set_ylabel("|cosine| of directions")
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[1, 0].set_ylabel("smallest principal\nangle, degrees")
    axes[1, 0].set_ylim(-3, 93)
    axes[1, 0].set_yticks([0, 30, 60, 90])
    handles = [swatch(colour, f"position {position}", line="-") for position, colour in colours.items()]
    handles.append(swatch(GREY, "random directions", marker="", line="--"))
    legend_below(figure, handles, columns=2 if len(pairs) <= WIDEST // 2 else 5)
    return figure


@styled
def _all_pairs(data: RunData) -> Figure:
    """|cosine| of the directions of every two methods, its mean over the components of both."""
    names = list(data.fields)
    size = min(page(), 0.27 * len(names) + 1.6)
    figure = Figure(figsize=(size, size))
    ax = figure.subplots()
    found = {(one, other): _mean_cosine(data, one, other) for one in names for other in names}
    matrix(
        ax, names, names, {at: (one, f"{100 * one:.0f}") for at, one in found.items() if math.isfinite(one)}, most=1.0
    )
    ax.set_title("mean |cosine| of directions, %", loc="left")
    return figure


def _mean_cosine(data: RunData, first: str, second: str) -> float:
    """NaN where two methods have no component in common."""
    one, other = data.fields[first], data.fields[second]
    cosines = [abs(float(one[a].direction @ other[b].direction)) for a, b in _matched(one, other)]
    return sum(cosines) / len(cosines) if cosines else math.nan


def _says_of_all(data: RunData) -> str:
    """The two methods that are most alike, and the two that are least."""
    found = {pair: _mean_cosine(data, *pair) for pair in combinations(data.fields, 2)}
    known = {pair: value for pair, value in found.items() if math.isfinite(value)}
    if not known:
        return "No two methods have a component in common."
    (most, least) = (pick(known, key=lambda pair: known[pair]) for pick in (max, min))
    field = next(iter(data.fields.values()))
    return (
        f"The directions of {most[0]} and {most[1]} are most alike, with a |cosine| of {known[most]:.2f} on average "
        f"over the components of both; those of {least[0]} and {least[1]} least, with {known[least]:.2f} (two random "
        f"directions: about {_by_chance(field):.2f})."
    )


def _by_chance(field: SubspaceField) -> float:
    """Mean |cosine| of two random directions: √(2 / π d), for large d."""
    return math.sqrt(2 / (math.pi * field.means.harmful.shape[-1]))


def _matched(
    one: SubspaceField, other: SubspaceField, position: int | None = None
) -> list[tuple[Component, Component]]:
    """The components of both; of methods that read different tokens, those of the same layers.

    Parameters
    ----------
    position
        Of the later token of the two; by default any.
    """
    if set(one.means.positions) & set(other.means.positions):
        found = [(where, where) for where in one if where in other.subspaces]
    else:
        found = [(a, b) for a in one for b in other if a.layer == b.layer]
    return [pair for pair in found if position in (None, max(at.position for at in pair))]


def _curves(top: Axes, bottom: Axes, one: SubspaceField, other: SubspaceField, position: int, colour: object) -> None:
    where = sorted(_matched(one, other, position), key=lambda pair: pair[0].layer)
    layers = [component.layer for component, _ in where]
    cosines = [abs(float(one[a].direction @ other[b].direction)) for a, b in where]
    top.plot(layers, cosines, marker="o", markersize=3, color=colour)
    angles = [float(principal_angles(one[a], other[b])[0]) for a, b in where]
    bottom.plot(layers, angles, marker="o", markersize=3, color=colour)


def _says(data: RunData, first: str, second: str) -> str:
    one, other = data.fields[first], data.fields[second]
    matched = _matched(one, other)
    if not matched:
        return f"{first} and {second} have no component in common."
    cosines = {(a, b): abs(float(one[a].direction @ other[b].direction)) for a, b in matched}
    angles = {(a, b): float(principal_angles(one[a], other[b])[0]) for a, b in matched}
    closest = max(cosines, key=lambda pair: cosines[pair])
    least, most = (f"{of(angles.values()):.0f}°" for of in (min, max))
    mean = sum(cosines.values()) / len(matched)
    same = closest[0] == closest[1]
    pairs = "pair of different tokens" if len(matched) == 1 else "pairs of different tokens"
    over = counted(len(matched), "component") if same else f"{len(matched)} {pairs} in the same layer"
    place = f"{closest[0]}" if same else f"{closest[0]} and {closest[1]}"
    return (
        f"{first} and {second}: the directions' |cosine| is {mean:.2f} on average over {over} "
        f"(two random directions: about {_by_chance(one):.2f}) and at most {cosines[closest]:.2f}, at {place}; the "
        f"smallest angle between the subspaces {'is' if least == most else 'runs from'} {span(least, most)}."
    )
