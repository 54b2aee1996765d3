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
    PAPER,
    Drawn,
    Outcome,
    Skipped,
    destroyed_swatch,
    errors,
    legend_below,
    method_colours,
    page,
    spread,
    step,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import counted, does, percent, scope_name, sentence_list

TITLE = "Refusal and safety under every plan"
PANELS = (
    ("harmful", "refusal"),
    ("harmless", "refusal"),
    (CONTRAST, "refusal"),
    ("harmful", "guard_unsafe"),
    ("harmful", "in_language"),
)
PROMPTS = {CONTRAST: "prompts that\nonly sound harmful"}
"""What a test set is called that has no speaking name."""


def draw(data: RunData) -> list[Outcome]:
    """A row per intervention and strength, a dot per method, a column per measurement."""
    panels = [panel for panel in PANELS if data.get(BASELINE, *panel)]
    if not panels:
        return [Skipped("plans", TITLE, "no share of refusals was measured; run with --evals refusal")]
    return [
        Drawn(
            f"plans-{scope.replace(':', '')}",
            f"{TITLE}: {scope_name(scope)}",
            _figure(data, [plan for plan in data.edited if plan.scope == scope], panels),
            _says(data, [plan for plan in data.edited if plan.scope == scope], scope),
        )
        for scope in data.scopes
    ]


def across(runs: Sequence[RunData]) -> list[Outcome]:
    """Several runs side by side: a figure for each scope that all have, a column per run."""
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
    figure = Figure(figsize=(page(), len(steps) * (0.16 + 0.075 * len(colours)) + 1.1))
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
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
            0.0 if plan.label in gone else one.value
            for plan in data.edited
            if plan.scope == scope and (one := data.answered(plan.label))
        ]
        parts.append(f"{data.name}: {counted(sum(share > 0.5 for share in shares), 'plan')} of {len(shares)}")
    return (
        "Plans under which most harmful prompts are answered in language, without those that destroy the model: "
        f"{'; '.join(parts)}."
    )


@styled
def _figure(data: RunData, plans: Sequence[Plan], panels: Sequence[tuple[str, str]]) -> Figure:
    steps = list(dict.fromkeys(map(step, plans)))
    colours = method_colours(data.methods)
    height = len(steps) * (0.16 + 0.075 * len(colours)) + 1.1
    figure = Figure(figsize=(page(), height))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for (dataset, metric), ax in zip(panels, axes, strict=True):
        _panel(ax, data, plans, steps, colours, dataset, metric)
        ax.set_title(f"{measure_of(metric).heading.lower()}\n{PROMPTS.get(dataset, f'{dataset} prompts')}")
    _finish(figure, axes, steps, colours)
    return figure


def _finish(figure: Figure, axes: Sequence[Axes], steps: Sequence[str], colours: dict[str, str]) -> None:
    """The names of the rows, and the legend."""
    axes[0].set_yticks(range(len(steps)), steps)
    axes[0].set_ylim(len(steps) - 0.5, -0.5)
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
            steps.index(step(plan)) + offsets[plan.method],
            xerr=errors(*one[:3]),
            fmt="o",
            color=colours[plan.method],
            markerfacecolor=PAPER if plan.label in gone else colours[plan.method],
            markersize=3.6,
            elinewidth=1,
        )
    ax.set_xlim(-0.06, 1.06)
    ax.set_xticks([0, 0.5, 1], ["0", "50\u202f%", "100\u202f%"])
    ax.tick_params(axis="y", length=0)


def _says(data: RunData, plans: Sequence[Plan], scope: str) -> str:
    low, broken = [], 0
    labels, gone = data.distinct([plan.label for plan in plans]), destroyed(data)
    for plan in (one for one in plans if one.label in labels):
        answered = data.answered(plan.label)
        if plan.label in gone:
            broken += 1
        elif answered is not None and answered.value > 0.5:
            low.append(step(plan))
    names = sentence_list(sorted(set(low), key=low.index)) if low else ""
    unedited = data.get(BASELINE, "harmful", "refusal")
    start = f"At scope “{scope_name(scope)}”"
    if unedited is not None:
        start += f", where the unedited model refuses {percent(unedited.value)} of harmful prompts"
    if low:
        some = f"{counted(len(low), 'plan')} of {len(labels)} {does(len(low), 'answer')} most of them ({names})"
    else:
        some = f"none of the {len(labels)} plans answers most of them"
    end = f"; {counted(broken, 'plan')} {does(broken, 'destroy')} the model" if broken else ""
    return f"{start}, {some}{end}. Identical plans count once. Bars are 95 % intervals."
