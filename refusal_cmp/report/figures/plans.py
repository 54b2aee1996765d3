"""(b) Refusal and safety under every plan, with intervals: a figure for each scope."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from refusal_cmp.config import CONTRAST
from refusal_cmp.evals import measure_of
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.report.answer import destroyed
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    FAINT,
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
    legend_below,
    method_colours,
    numbered,
    page,
    spread,
    stacked,
    step,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import counted, does, percent, scope_name, sentence_list

PANELS = (
    ("harmful", "refusal"),
    ("harmless", "refusal"),
    (CONTRAST, "refusal"),
    ("harmful", "guard_unsafe"),
    ("harmful", "in_language"),
)
PROMPTS = {CONTRAST: "prompts that\nonly sound harmful"}
"""What a test set is called that has no speaking name."""
MOST = 0.5
"""A share beyond which most prompts are answered."""
HEADING, MARGIN = 0.5, 0.7
"""Inches, in a column: of a panel's title and axis; of the legend."""


def draw(data: RunData) -> list[Outcome]:
    """A row per intervention and strength, a dot per method, a panel per measurement."""
    panels = [panel for panel in PANELS if data.get(BASELINE, *panel)]
    if not panels:
        return [Skipped("plans", _title(panels), "no share of refusals was measured; run with --evals refusal")]
    figures: list[Outcome] = []
    for scope in data.scopes:
        plans = [*(plan for plan in data.edited if plan.scope == scope), *data.unedited]
        size = _panels_of_a_figure(data, plans, len(panels))
        for index, start in enumerate(range(0, len(panels), size)):
            name = numbered(f"plans-{scope.replace(':', '')}", index)
            figure = _figure(data, plans, panels[start : start + size])
            edits = [plan for plan in plans if not plan.edits_nothing]
            figures.append(Drawn(name, f"{_title(panels)}: {scope_name(scope)}", figure, _says(data, edits, scope)))
    return figures


def _title(panels: Sequence[tuple[str, str]]) -> str:
    """What the figure is of: safety where a guard judged it."""
    safety = any(metric == "guard_unsafe" for _, metric in panels)
    return f"Refusal{' and safety' if safety else ''} under every plan"


def _panels_of_a_figure(data: RunData, plans: Sequence[Plan], n: int) -> int:
    """How many of n panels are in one figure: on a page all, in a column as many as are not taller than a page."""
    if not in_column():
        return n
    height = _rows_height(len(set(map(step, plans))), len(data.methods))
    return min(n, max(1, int((TALLEST - MARGIN) / (height + HEADING))))


def across(runs: Sequence[RunData]) -> list[Outcome]:
    """Several runs side by side: a figure for each scope that all have, a panel per run."""
    scopes = [scope for scope in runs[0].scopes if all(scope in data.scopes for data in runs)]
    figures: list[Outcome] = []
    for scope in scopes:
        name = f"runs-{scope.replace(':', '')}"
        title = f"Harmful prompts answered in language, by run: {scope_name(scope)}"
        figures.append(Drawn(name, title, _across(runs, scope), _across_says(runs, scope)))
    return figures or [Skipped("runs", "Harmful prompts answered, by run", "the runs have no scope in common")]


@styled
def _across(runs: Sequence[RunData], scope: str) -> Figure:
    plans = [[plan for plan in data.edited if plan.scope == scope] for data in runs]
    steps = list(dict.fromkeys(step(plan) for of_run in plans for plan in of_run))
    colours = method_colours(list(dict.fromkeys(method for data in runs for method in data.methods)))
    figure, axes = _panels(len(runs), _rows_height(len(steps), len(colours)))
    for data, of_run, ax in zip(runs, plans, axes, strict=True):
        _panel(ax, data, of_run, steps, colours, "harmful", data.answered_by)
        ax.set_title(data.name)
        ax.set_xlabel("harmful prompts answered")
    _finish(figure, axes, steps, colours)
    return figure


def _across_says(runs: Sequence[RunData], scope: str) -> str:
    parts = []
    for data in runs:
        gone = destroyed(data)
        shares = [
            0.0 if plan.label in gone else one.low
            for plan in data.edited
            if plan.scope == scope and (one := data.answered(plan.label))
        ]
        parts.append(f"{data.name}: {counted(sum(share > MOST for share in shares), 'plan')} of {len(shares)}")
    return (
        "Plans under which most harmful prompts are answered in language, at the lower end of the interval, without "
        f"those that destroy the model: {'; '.join(parts)}."
    )


@styled
def _figure(data: RunData, plans: Sequence[Plan], panels: Sequence[tuple[str, str]]) -> Figure:
    steps = list(dict.fromkeys(map(step, plans)))
    colours = method_colours(data.methods)
    figure, axes = _panels(len(panels), _rows_height(len(steps), len(colours)))
    for (dataset, metric), ax in zip(panels, axes, strict=True):
        _panel(ax, data, plans, steps, colours, dataset, metric)
        prompts = PROMPTS.get(dataset, f"{dataset} prompts")
        lines = (measure_of(metric).heading.lower(), prompts.replace("\n", " ") if in_column() else prompts)
        ax.set_title((", " if in_column() else "\n").join(lines))
    _finish(figure, axes, steps, colours)
    return figure


def _rows_height(n_steps: int, n_methods: int) -> float:
    """Inches that the rows of a panel take."""
    return n_steps * (0.16 + 0.075 * n_methods)


def _panels(n: int, rows_height: float) -> tuple[Figure, list[Axes]]:
    """A figure of n panels whose rows take so many inches."""
    height = n * (rows_height + HEADING) + MARGIN if in_column() else rows_height + 1.1
    figure = Figure(figsize=(column() if in_column() else page(), height))
    return figure, stacked(figure, n)


def _finish(figure: Figure, axes: Sequence[Axes], steps: Sequence[str], colours: dict[str, str]) -> None:
    """The names of the rows, and the legend."""
    for ax in axes if in_column() else axes[:1]:
        ax.set_yticks(range(len(steps)), steps)
        ax.set_ylim(len(steps) - 0.5, -0.5)
    baseline = Line2D([], [], color=GREY, linestyle="--", label=BASELINE)
    methods = [swatch(colour, method) for method, colour in colours.items()]
    legend_below(figure, [*methods, destroyed_swatch(), baseline])


def _panel(
    ax: Axes,
    data: RunData,
    plans: Sequence[Plan],
    steps: Sequence[str],
    colours: dict[str, str],
    dataset: str,
    metric: str,
) -> None:
    offsets = dict(zip(colours, spread(len(colours)), strict=True))
    tidy(ax, "x")
    for row in range(0, len(steps), 2):
        ax.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.25, linewidth=0)
    unedited, gone = data.get(BASELINE, dataset, metric), destroyed(data)
    if unedited is not None:
        ax.axvline(unedited.value, color=GREY, linestyle="--", linewidth=1)
    for plan in plans:
        one = data.get(plan.label, dataset, metric)
        if one is None:
            continue
        ax.errorbar(
            one.value,
            steps.index(step(plan)) + offsets.get(plan.method, 0),
            xerr=errors(*one[:3]),
            fmt=UNEDITED if plan.edits_nothing else "o",
            color=colours.get(plan.method, INK),
            markerfacecolor=PAPER if plan.label in gone else colours.get(plan.method, INK),
            markersize=6 if plan.edits_nothing else 3.6,
            elinewidth=1,
        )
    ax.set_xlim(-0.06, 1.06)
    ax.set_xticks([0, 0.5, 1], ["0", "50\u202f%", "100\u202f%"])
    ax.tick_params(axis="y", length=0)


def _says(data: RunData, plans: Sequence[Plan], scope: str) -> str:
    sure, unsure, broken = [], 0, 0
    labels, gone = data.distinct([plan.label for plan in plans]), destroyed(data)
    for plan in (one for one in plans if one.label in labels):
        answered = data.answered(plan.label)
        if plan.label in gone:
            broken += 1
        elif answered is not None and answered.low > MOST:
            sure.append(step(plan))
        elif answered is not None and not answered.high <= MOST:
            unsure += 1
    unedited = data.get(BASELINE, "harmful", "refusal")
    start = f"At scope “{scope_name(scope)}”"
    if unedited is not None:
        start += f", where the unedited model refuses {percent(unedited.value)} of harmful prompts"
    if sure:
        some = (
            f"{counted(len(sure), 'plan')} of {len(labels)} {does(len(sure), 'answer')} most of them, at the lower end "
            f"of the interval too ({sentence_list(list(dict.fromkeys(sure)))})"
        )
    else:
        some = f"none of the {len(labels)} plans answers most of them at the lower end of the interval"
    open_ = f"; of {unsure} the interval leaves it open" if unsure else ""
    end = f"; {counted(broken, 'plan')} {does(broken, 'destroy')} the model" if broken else ""
    return f"{start}, {some}{open_}{end}. Identical plans count once. Bars are 95 % intervals."
