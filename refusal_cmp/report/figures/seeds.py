"""(j) From seed to seed: the best plans of each method, a dot for every seed and the interval over all of them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.plan import BASELINE
from refusal_cmp.report.answer import costs
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures import plans, strengths, tradeoff
from refusal_cmp.report.figures._style import (
    FAINT,
    GREY,
    INK,
    PAPER,
    Drawn,
    Outcome,
    Skipped,
    destroyed_swatch,
    errors,
    legend_below,
    method_colours,
    page,
    percent_axis,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.seeds import SeedsData, Verdict
from refusal_cmp.report.wording import counted, percent, sentence_list

TITLE = "The best plans of each method, from seed to seed"
BEST = 3
"""Plans of a method that are shown."""

Panel = tuple[str, str, str]
"""Dataset, metric, heading."""


def draw_seeds(data: SeedsData) -> list[Outcome]:
    """How far plans move from seed to seed, and the figures of a run that numbers alone are enough for."""
    over = data.as_run
    drawn = [*_moves(data), *plans.draw(over), *tradeoff.draw(over), *strengths.draw(over)]
    note = (
        f"Values are means over {counted(len(data.seeds), 'seed')}, and intervals hold seeds and prompts. Hollow marks "
        "are plans that destroy the model with some seed."
    )
    return [
        Drawn(one.name, one.title, one.figure, f"{one.says} {note}") if isinstance(one, Drawn) else one for one in drawn
    ]


def _moves(data: SeedsData) -> list[Outcome]:
    panels = _panels(data.as_run)
    best = _best(data)
    if not panels or not best:
        return [Skipped("seeds", TITLE, "refusal was not measured; add it to --evals")]
    return [Drawn("seeds", TITLE, _figure(data, best, panels), _says(data, best))]


def _panels(over: RunData) -> list[Panel]:
    """What is drawn of every plan: what it answers, what it refuses, and what it costs."""
    wanted = [
        ("harmful", over.answered_by, "harmful prompts\nanswered"),
        ("harmless", "refusal", "harmless prompts\nrefused"),
        *((cost.datasets[0], cost.metric, f"{cost.name.split(' on ')[0]}\non {cost.datasets[0]}")
          for cost in costs(over)[:1]),
    ]  # fmt: skip
    return [one for one in wanted if over.get(BASELINE, one[0], one[1]) is not None]


def _best(data: SeedsData) -> list[Verdict]:
    """The first plans of each method, methods apart, identical ones once."""
    distinct = data.as_run.distinct([one.plan for one in data.verdicts])
    chosen = [one for one in data.verdicts if one.plan in distinct]
    return [one for name in data.as_run.methods for one in [v for v in chosen if v.method == name][:BEST]]


@styled
def _figure(data: SeedsData, best: Sequence[Verdict], panels: Sequence[Panel]) -> Figure:
    colours = method_colours(data.as_run.methods)
    figure = Figure(figsize=(page(), 0.28 * len(best) + 1.2))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, ax in zip(panels, axes, strict=True):
        _panel(ax, data, best, colours, panel)
    axes[0].set_yticks(range(len(best)), [one.plan for one in best])
    axes[0].set_ylim(len(best) - 0.5, -0.5)
    shown = dict.fromkeys(one.method for one in best)
    one_seed, over = swatch(GREY, "one seed", marker="|"), swatch(INK, "mean of all, with its interval")
    legend_below(figure, [*(swatch(colours[name], name) for name in shown), one_seed, over, destroyed_swatch()])
    return figure


def _panel(ax: Axes, data: SeedsData, best: Sequence[Verdict], colours: dict[str, str], panel: Panel) -> None:
    dataset, metric, heading = panel
    tidy(ax, "x")
    for row in range(0, len(best), 2):
        ax.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.25, linewidth=0)
    unedited = data.as_run.get(BASELINE, dataset, metric)
    if unedited is not None:
        ax.axvline(unedited.value, color=GREY, linestyle="--", linewidth=1)
    for row, one in enumerate(best):
        for run in data.runs.values():
            if (found := run.get(one.plan, dataset, metric)) is not None:
                ax.plot(found.value, row + 0.22, "|", color=colours[one.method], markersize=5, alpha=0.7)
        if (mean := data.as_run.get(one.plan, dataset, metric)) is not None:
            colour = colours[one.method]
            bars, face = errors(*mean[:3]), PAPER if one.broken else colour
            ax.errorbar(
                mean.value, row, xerr=bars, fmt="o", color=colour, markerfacecolor=face, markersize=3.6, elinewidth=1
            )
    ax.set_title(heading)
    ax.tick_params(axis="y", length=0)
    if metric in ("acc", "refusal", data.as_run.answered_by):
        ax.set_xlim(-0.06, 1.06)
        percent_axis(ax.xaxis)


def _says(data: SeedsData, best: Sequence[Verdict]) -> str:
    spreads = {one.plan: data.sd(one.plan, "harmful", data.as_run.answered_by) for one in best}
    known = {plan: sd for plan, sd in spreads.items() if sd is not None}
    if not known:
        return f"Seeds are {sentence_list([str(seed) for seed in data.seeds])}."
    widest = max(known, key=lambda plan: known[plan])
    if not known[widest]:
        return "With every seed each of these plans answers the same share of harmful prompts."
    return (
        f"What these plans answer of harmful prompts moves by {percent(known[widest])} from seed to seed (standard "
        f"deviation) at the most, of {widest}."
    )
