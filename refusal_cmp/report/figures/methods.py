"""(i) Many methods: a cell for every method and intervention, a figure for each scope.

Where there are few, the figure of every plan (b) says more: it has intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from refusal_cmp.plan import Plan
from refusal_cmp.report.answer import Cost, cost_of, costs, destroyed
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._matrix import matrix
from refusal_cmp.report.figures._style import TALLEST, Drawn, Outcome, Skipped, page, step, styled
from refusal_cmp.report.wording import counted, scope_name, sentence_list

TITLE = "Every method with every intervention"
MANY = 5
"""Methods from which on they are a matrix."""
ROW, PANEL = 0.145, 0.75
"""Inches: of a method's row, where there is room for it, and of a panel beside its rows."""
RUINED = "×"
"""What stands in the cell of a plan that destroys the model."""
FEW = 0.1
"""Share of harmful prompts that a plan may leave refused to be counted."""


class Panel(NamedTuple):
    """What is shown of each plan."""

    title: str
    value: Callable[[Plan], float | None]
    written: Callable[[float], str]


def draw(data: RunData) -> list[Outcome]:
    """A figure per scope: refusal of harmful and of harmless prompts, and the cost that decides first."""
    if len(data.methods) < MANY:
        return [Skipped("methods", TITLE, f"it takes {MANY} methods; the figure of every plan has intervals")]
    return [
        Drawn(
            f"methods-{scope.replace(':', '')}",
            f"{TITLE}: {scope_name(scope)}",
            _figure(data, [plan for plan in data.edited if plan.scope == scope]),
            _says(data, scope),
        )
        for scope in data.scopes
    ]


@styled
def _figure(data: RunData, plans: Sequence[Plan]) -> Figure:
    panels = [_refusal(data, name) for name in ("harmful", "harmless")] + [_lost(data, one) for one in costs(data)[:1]]
    height = min(TALLEST, len(panels) * (ROW * len(data.methods) + PANEL))
    figure = Figure(figsize=(page(), height))
    steps, gone = list(dict.fromkeys(map(step, plans))), destroyed(data)
    for ax, panel in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        cells = {}
        for plan in plans:
            if (value := panel.value(plan)) is not None:
                mark = RUINED if plan.label in gone else ""
                cells[plan.method, step(plan)] = value, panel.written(value) + mark
        matrix(ax, data.methods, steps, cells, most=1.0)
        ax.set_title(panel.title, loc="left")
    return figure


def _refusal(data: RunData, dataset: str) -> Panel:
    def value(plan: Plan) -> float | None:
        found = data.get(plan.label, dataset, "refusal")
        return None if found is None else found.value

    return Panel(f"{dataset} prompts refused, %", value, _percent)


def _lost(data: RunData, cost: Cost) -> Panel:
    unit, written = ("%", _percent) if cost.unit == "share" else (cost.unit, _nats)
    verb = "lost" if cost.sign < 0 else "more"
    return Panel(f"{cost.name}: {verb} than unedited, {unit}", lambda plan: cost_of(data, plan.label, cost), written)


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _nats(value: float) -> str:
    return "∞" if math.isinf(value) else "0" if abs(value) < 0.0005 else f"{value:.2g}"


def _says(data: RunData, scope: str) -> str:
    """With how many interventions each method leaves few harmful prompts refused, and does not destroy the model."""
    gone = destroyed(data)
    found: dict[int, list[str]] = {}
    for method in data.methods:
        plans = [plan for plan in data.edited if plan.scope == scope and plan.method == method]
        refused = {plan.label: data.get(plan.label, "harmful", "refusal") for plan in plans}
        n = sum(one is not None and one.value <= FEW and label not in gone for label, one in refused.items())
        found.setdefault(n, []).append(method)
    said = [
        f"with {counted(n, 'intervention')} {sentence_list(names)}" for n, names in sorted(found.items(), reverse=True)
    ]
    return (
        f"Of harmful prompts at most one in ten is refused, by a model that is not destroyed: {'; '.join(said)}. "
        f"{RUINED} marks plans that destroy the model; intervals are in the figure of every plan."
    )
