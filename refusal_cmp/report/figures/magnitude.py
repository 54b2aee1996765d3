"""(i) The magnitude study: does the projection on the direction track how much the model refuses?"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_cmp.config import EVERYTHING
from refusal_cmp.evals import measure_of
from refusal_cmp.plan import BASELINE
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    GREY,
    PALETTE,
    PROMPT_COLOURS,
    Drawn,
    Outcome,
    Skipped,
    column,
    legend_below,
    page,
    styled,
    swatch,
    tidy,
)
from refusal_cmp.report.wording import bracketed, decimal, sentence_list

TITLE = "Projection on the direction against refusal, unedited model"
WIDEST = 3
LETTERS = 15
"""Of a title, to the inch."""
UNBROKEN = "\u00a0"
"""A space at which no line is broken."""
STATISTICS = ("pearson", "spearman", "auroc")


def draw(data: RunData) -> list[Outcome]:
    """A panel per method, a dot per test prompt, filled if the completion refuses."""
    if data.magnitude is None:
        return [Skipped("magnitude", TITLE, "the study was not run; add magnitude to --evals")]
    methods = list(data.magnitude["method"].unique())
    figures: list[Outcome] = []
    for start in range(0, len(methods), WIDEST):
        shown = methods[start : start + WIDEST]
        name = "magnitude" if not start else f"magnitude-{start // WIDEST + 1}"
        says = " ".join(_says(data, method) for method in shown)
        figures.append(Drawn(name, TITLE, _figure(data, data.magnitude, shown), says))
    return figures


@styled
def _figure(data: RunData, rows: pd.DataFrame, methods: Sequence[str]) -> Figure:
    width = column() if len(methods) == 1 else page()
    figure = Figure(figsize=(width, min(3.4, 0.95 * width / len(methods) + 1.2)))
    axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    colours = _colours(list(rows["dataset"].unique()))
    for method, ax in zip(methods, axes, strict=True):
        part = rows[rows["method"] == method]
        for dataset, colour in colours.items():
            _dots(ax, part[part["dataset"] == dataset], colour)
        ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
        lines = (_within(data, list(colours), method), _numbers(data, EVERYTHING, method))
        letters = int(LETTERS * width / len(methods))
        ax.set_title("\n".join([method, *(textwrap.fill(line, letters) for line in lines if line)]))
        ax.set_xlabel("projection on the direction")
        tidy(ax, "both")
    axes[0].set_ylabel("refusal metric (log-odds)")
    legend_below(
        figure,
        [
            *(swatch(colour, dataset) for dataset, colour in colours.items()),
            swatch(GREY, "completion refuses"),
            swatch(GREY, "does not", marker="$\\circ$"),
        ],
        columns=3 if width == column() else 6,
    )
    return figure


def _colours(datasets: Sequence[str]) -> dict[str, str]:
    spare = iter([colour for colour in PALETTE if colour not in PROMPT_COLOURS.values()] * len(datasets))
    return {dataset: PROMPT_COLOURS.get(dataset) or next(spare) for dataset in datasets}


def _dots(ax: Axes, part: pd.DataFrame, colour: str) -> None:
    for refused, face in ((True, colour), (False, "none")):
        some = part[part["refused"].astype(bool) == refused]
        ax.scatter(
            some["projection"],
            some["refusal_metric"],
            s=11,
            facecolors=face,
            edgecolors=colour,
            linewidths=0.7,
            alpha=0.85,
        )


def _within(data: RunData, datasets: Sequence[str], method: str) -> str:
    """A line with Pearson's r of each set of prompts: over all of them two clusters alone make it near 1."""
    found = [
        f"{dataset}{UNBROKEN}{decimal(one.value)}"
        for dataset in datasets
        if (one := data.get(BASELINE, dataset, f"magnitude_pearson:{method}")) is not None
    ]
    return f"r within {', '.join(found)}" if found else ""


def _numbers(data: RunData, dataset: str, method: str) -> str:
    """A line with the numbers of all prompts together."""
    found = [
        f"{measure_of(metric).heading}{UNBROKEN}={UNBROKEN}{decimal(one.value)}"
        for metric in (f"magnitude_{statistic}:{method}" for statistic in STATISTICS)
        if (one := data.get(BASELINE, dataset, metric)) is not None
    ]
    return f"all together: {', '.join(found)}" if found else ""


def _says(data: RunData, method: str) -> str:
    def said(dataset: str, metric: str) -> str | None:
        one = data.get(BASELINE, dataset, f"magnitude_{metric}:{method}")
        return None if one is None else f"{decimal(one.value)} {bracketed(one.low, one.high)}"

    overall = said(EVERYTHING, "spearman")
    if overall is None:
        return f"{method}: no correlation, because nothing varies."
    within = [
        f"{rho} on {dataset}"
        for dataset in data.datasets(f"magnitude_spearman:{method}")
        if dataset != EVERYTHING and (rho := said(dataset, "spearman")) is not None
    ]
    auroc = said(EVERYTHING, "auroc")
    tells = f", and refused completions are told from the others with AUROC {auroc}" if auroc else ""
    sets = f"{sentence_list(within)}; " if within else ""
    return (
        f"{method}: projection and refusal metric correlate with Spearman's ρ {sets}{overall} over all prompts, "
        f"which sets that lie apart can bring about alone{tells}."
    )
