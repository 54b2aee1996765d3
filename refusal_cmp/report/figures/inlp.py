"""(d) INLP: accuracy of its classifiers by iteration, and effect by the number of directions kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refusal_cmp.config import BUDGET
from refusal_cmp.interventions import edits_whole_subspace
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.registry import parse_spec
from refusal_cmp.report.answer import costs
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    GREY,
    INK,
    LINES,
    VERMILION,
    Drawn,
    Outcome,
    Skipped,
    errors,
    legend_below,
    page,
    percent_axis,
    shades,
    spread,
    step,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import counted, percent, scope_name, span
from refusal_cmp.subspace import Component, SubspaceField

TITLE = "INLP: accuracy by iteration, effect by directions kept"
METHOD = "inlp"


def draw(data: RunData) -> list[Outcome]:
    """Dev accuracy of every classifier; with several k policies also refusal and loss by k. A figure for each INLP."""
    figures: list[Outcome] = []
    for method in data.fields:
        if parse_spec(method)[0] == METHOD:
            name = "inlp" if not figures else f"inlp-{len(figures) + 1}"
            title = TITLE if method == METHOD else f"{TITLE}: {method}"
            kept = _by_k(data, method)
            figures.append(Drawn(name, title, _figure(data, method, kept), _says(data, method, kept)))
    return figures or [Skipped("inlp", TITLE, "INLP is not among the methods of this run")]


@styled
def _figure(data: RunData, method: str, kept: Sequence[Plan]) -> Figure:
    figure = Figure(figsize=(page(), 2.7))
    field = data.fields[method]
    if not kept:
        accuracy, rank = figure.subplots(1, 2)
        _accuracy(accuracy, field, _selected(data, method))
        _rank(rank, field, data.ranks.get(method))
        return figure
    effects = _effects(data)
    axes = figure.subplots(1, 1 + len(effects), squeeze=False)[0]
    _accuracy(axes[0], field, _selected(data, method))
    colours = dict(zip(steps := list(dict.fromkeys(map(step, kept))), shades(len(steps)), strict=True))
    lines = dict(zip(dict.fromkeys(plan.scope for plan in kept), LINES, strict=False))
    for (dataset, metric, label), ax in zip(effects, axes[1:], strict=True):
        _effect(ax, data, kept, colours, lines, (dataset, metric))
        ax.set_ylabel(label)
        if metric != "loss":
            percent_axis(ax.yaxis)
    legend_below(
        figure,
        [
            *(swatch(colour, name, line="-") for name, colour in colours.items()),
            *(swatch(INK, scope_name(scope), marker="", line=line) for scope, line in lines.items()),
            swatch(GREY, BASELINE, marker="", line="--"),
        ],
    )
    return figure


def _effects(data: RunData) -> list[tuple[str, str, str]]:
    """What was measured of refusal and cost: dataset, metric, and the label of its axis."""
    effects = [("harmful", "refusal", "harmful prompts refused")] if data.get(BASELINE, "harmful", "refusal") else []
    for cost in costs(data)[:1]:
        unit = "" if cost.unit == "share" else f",\n{cost.unit}"
        effects.append((cost.datasets[0], cost.metric, f"{cost.metric} on {cost.datasets[0]}{unit}"))
    return effects


def _selected(data: RunData, method: str) -> Component:
    """The component that was selected with these subspaces; with several k policies that of the first."""
    return next(one.selected for one in data.selections if data.extracted_by[one.method] == method)


def _by_k(data: RunData, method: str) -> list[Plan]:
    """The plans that use INLP's whole subspace, by how many directions it has; empty if that is one number only."""
    of_method = [plan for plan in data.edited if data.extracted_by[plan.method] == method]
    kept = [plan for plan in of_method if edits_whole_subspace(plan.intervention)]
    calibrated = data.config.get("calibrate_over") == "k"  # each plan has its own number
    return kept if len({plan.k for plan in kept}) > 1 and not calibrated else []


def _ks(kept: Sequence[Plan]) -> list[int]:
    """How many directions the plans keep, ascending."""
    return sorted({plan.k for plan in kept if plan.k is not None})


def _accuracy(ax: Axes, field: SubspaceField, selected: Component) -> None:
    """Every component in grey, the selected one in colour."""
    for component, subspace in field.subspaces.items():
        chosen = component == selected
        ax.plot(
            range(1, subspace.k + 1),
            subspace.evidence.numpy(),
            color=VERMILION if chosen else GREY,
            alpha=1 if chosen else 0.35,
            linewidth=1.4 if chosen else 0.7,
            marker="o" if chosen or subspace.k == 1 else "",
            markersize=4 if chosen else 1.8,
            zorder=3 if chosen else 2,
        )
    ax.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    ax.text(0.98, 0.51, "chance", transform=ax.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    ax.set_title(f"{selected} selected, others grey")
    ax.set(xlabel="iteration", ylabel="accuracy on the dev split")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.set_ylim(0.45, 1.02)
    percent_axis(ax.yaxis)
    tidy(ax)


def _rank(ax: Axes, field: SubspaceField, ranks: pd.DataFrame | None) -> None:
    """How many directions were found, by layer and position; a bar is what other dev splits find."""
    positions = field.means.positions
    if ranks is not None:
        spans = ranks.groupby(["position", "layer"], as_index=False)["k"].agg(["min", "max"])
        ax.vlines(spans["layer"], spans["min"], spans["max"], color=GREY, linewidth=3, alpha=0.5)
    for colour, position in zip(shades(len(positions)), positions, strict=True):
        found = sorted((one.layer, field[one].k) for one in field if one.position == position)
        ax.plot(*zip(*found, strict=True), marker="o", color=colour, label=f"position {position}") if found else None
    ax.set(xlabel="layer", ylabel="directions found")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.set_ylim(bottom=0)
    ax.legend()
    tidy(ax)


def _effect(
    ax: Axes,
    data: RunData,
    kept: Sequence[Plan],
    colours: dict[str, object],
    lines: dict[str, str],
    what: tuple[str, str],
) -> None:
    """A line for each intervention and scope, moved sideways a little so that lines that coincide are all seen."""
    ks = _ks(kept)
    found = list(dict.fromkeys((step(plan), plan.scope) for plan in kept))
    for (name, scope), shift in zip(found, spread(len(found)), strict=True):
        of_line = [plan for plan in kept if (step(plan), plan.scope) == (name, scope)]
        points = sorted((ks.index(plan.k or 0) + 0.3 * shift, data.get(plan.label, *what)) for plan in of_line)
        there = [(x, one) for x, one in points if one is not None]
        ax.errorbar(
            [x for x, _ in there],
            [one.value for _, one in there],
            yerr=np.hstack([errors(*one[:3]) for _, one in there]),
            color=colours[name],
            linestyle=lines.get(scope, "-"),
            marker="o",
            markersize=3,
            elinewidth=0.8,
        )
    unedited = data.get(BASELINE, *what)
    if unedited is not None:
        ax.axhline(unedited.value, color=GREY, linestyle="--", linewidth=1)
    ax.set_xticks(range(len(ks)), [str(k) for k in ks])
    ax.set_xlabel("directions kept")
    tidy(ax)


def _by_split(ranks: pd.DataFrame | None) -> str:
    """How the rank varies with the dev split, where that was looked at."""
    if ranks is None:
        return ""
    spans = ranks.groupby(["position", "layer"])["k"].agg(["min", "max"])
    widest = spans.iloc[int((spans["max"] - spans["min"]).to_numpy().argmax())]
    over = (
        f" The dev split decides when it stops: over {ranks['seed'].nunique()} splits of the same prompts the rank at "
    )
    over += counted(len(spans), "component")
    if widest["min"] == widest["max"]:
        return f"{over} stays the same."
    return f"{over} varies, most of all from {widest['min']} to {widest['max']}."


def _says(data: RunData, method: str, kept: Sequence[Plan]) -> str:
    field, selected = data.fields[method], _selected(data, method)
    evidence = [percent(float(accuracy)) for accuracy in field[selected].evidence]
    ranks = [field[one].k for one in field]
    directions = "1 direction" if max(ranks) == 1 else f"{span(min(ranks), max(ranks))} directions"
    of = (
        f"of {evidence[0]} dev accuracy" if len(evidence) == 1 else f"from {evidence[0]} dev accuracy to {evidence[-1]}"
    )
    start = (
        f"At the selected component {selected} INLP accepts {counted(len(evidence), 'classifier')}, {of}; over all "
        f"components it finds {directions}."
        f"{_by_split(data.ranks.get(method))}" + _within_budget(data, method)
    )
    if not kept:
        return f"{start} Run with --inlp-k budget,1,2,4,full to see the effect by how many are kept."
    ks = _ks(kept)
    shares = []
    for k in (ks[0], ks[-1]):
        labels = [plan.label for plan in kept if plan.k == k]
        found = [data.get(label, "harmful", "refusal") for label in labels]
        values = [one.value for one in found if one is not None]
        shares.append(percent(float(np.mean(values))) if values else "–")
    return (
        f"{start} Averaged over these plans, refusal of harmful prompts is {shares[0]} with {ks[0]} kept and "
        f"{shares[1]} with {ks[-1]}."
    )


def _within_budget(data: RunData, method: str) -> str:
    """How many directions the k policy `budget` uses, where it is among those of the run."""
    selected = data.scores[(data.scores["method"] == method) & data.scores["selected"].astype(bool)]
    return "".join(
        f" Of the component that it selects, the k policy {BUDGET} uses {counted(int(k), 'direction')}."
        for k in selected["k"]
    )
