"""One style for every figure: sizes that fit a paper, colours that colour-blind readers tell apart."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from refusal_cmp.plan import Plan, component_of, number

VENUES = {
    "any": (3.35, 6.9),
    "neurips": (2.65, 5.5),
    "iclr": (2.65, 5.5),
    "icml": (3.25, 6.75),
    "acl": (3.03, 6.3),
}
"""Widths of a column and of the text on a page by template; inches. Of one column, half of it."""
WIDTHS = ("page", "column")
"""How wide the figures of the main result are drawn."""
TALLEST = 9.0
"""Inches: what a page has room for."""
_WIDTHS: ContextVar[tuple[float, float]] = ContextVar("widths", default=VENUES["any"])
_WIDTH: ContextVar[str] = ContextVar("width", default="page")

INK, GREY, FAINT, PAPER = "#1c1c1e", "#7a7a80", "#d0d0d4", "#ffffff"
"""Text and axes; reference lines; grids. The page swaps ink and paper in the dark."""

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
"""Okabe and Ito's palette, without its yellow and black: neither is read on both light and dark."""
PROMPT_COLOURS = {"harmful": VERMILION, "harmless": BLUE, "contrast": GREEN}
SEQUENCE = "viridis"

METHODS = {"diff-in-means": BLUE, "inlp": VERMILION, "random": GREY, "shuffled": PURPLE}
INTERVENTIONS = {
    "ablation": "o",
    "nullspace": "s",
    "actadd": "^",
    "reflection": "D",
    "alterrep": "P",
    "clamp": "X",
    "affine": "v",
}
UNEDITED = "*"
"""The marker of a plan that edits nothing: another checkpoint, a system prompt."""
AT_EQUAL_DAMAGE = " ≈"
"""Behind an intervention whose strength was calibrated, which differs from method to method."""
MARKERS = ("o", "s", "^", "D", "P", "X", "v", "<", ">", "p", "h", "d", "8")
LINES = ("-", "--", ":", "-.")

STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.hashsalt": "refusal-cmp",
    "pdf.fonttype": 42,
}
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 150},
    "svg": {"metadata": {"Date": None}, "transparent": True},
    "pdf": {"metadata": {"CreationDate": None}},
}


@dataclass(frozen=True)
class Drawn:
    """A figure and what it shows."""

    name: str
    """Its file's name."""
    title: str
    figure: Figure
    says: str
    """What it shows on this run, computed from the data; plain text."""


@dataclass(frozen=True)
class Skipped:
    """A figure that this run has no data for."""

    name: str
    title: str
    why: str


Outcome = Drawn | Skipped


@contextmanager
def venue(name: str, width: str = "page") -> Iterator[None]:
    """Figures that are drawn inside are as wide as a venue's template wants; KeyError for one that is not known.

    Those of the main result (plans, tradeoff, scores) are as wide as the `width`, one of `WIDTHS`.
    """
    widths, chosen = _WIDTHS.set(VENUES[name]), _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTHS.reset(widths)
        _WIDTH.reset(chosen)


def column() -> float:
    """The width of a column, in inches."""
    return _WIDTHS.get()[0]


def page() -> float:
    """The width of the text on a page, in inches."""
    return _WIDTHS.get()[1]


def in_column() -> bool:
    """Whether the figures of the main result are drawn for one column."""
    return _WIDTH.get() == "column"


def stacked(figure: Figure, n: int) -> list[Axes]:
    """Axes of a figure of the main result, rows in common: side by side on a page, one below the other in a column."""
    axes = figure.subplots(n, 1, squeeze=False) if in_column() else figure.subplots(1, n, sharey=True, squeeze=False)
    return list(axes.flat)


def numbered(name: str, index: int) -> str:
    """The name of a figure that is drawn in several parts, by the index of the part."""
    return name if not index else f"{name}-{index + 1}"


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as `png`, `svg` or `pdf`: the same bytes every time."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        if figure.get_layout_engine() is not None:  # laid out once for all formats
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, **FORMATS[kind])
    return _with_palette(buffer) if kind == "png" else buffer.getvalue()


def images(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], bytes]:
    """What a run keeps of its figures: each that was drawn as `png` and `svg`, by name and kind."""
    drawn = [one for one in outcomes if isinstance(one, Drawn)]
    return {(one.name, kind): rendered(one.figure, kind) for one in drawn for kind in ("png", "svg")}


def _with_palette(png: io.BytesIO) -> bytes:
    """The same picture in 256 colours: a third of the size, and a plot has fewer."""
    smaller = io.BytesIO()
    Image.open(png).convert("RGB").quantize(256).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the function draws in our style."""

    def in_style(*args: Any, **kwargs: Any) -> Any:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    in_style.__doc__ = draw.__doc__
    return in_style


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for every method, the same in all figures; k policies of INLP and seeds have shades of their own."""
    left = [colour for colour in (GREEN, ORANGE, SKY, PURPLE) if colour not in map(METHODS.get, methods)]
    colours = {}
    for index, method in enumerate(one for one in methods if one not in METHODS):
        colours[method] = left[index] if index < len(left) else _shade(index - len(left))
    return {method: METHODS.get(method) or colours[method] for method in methods}


def _shade(index: int) -> str:
    return mpl.colors.to_hex(mpl.colormaps[SEQUENCE](0.15 + 0.7 * (index % 6) / 5))


def intervention_markers(interventions: Sequence[str]) -> dict[str, str]:
    """A marker for every intervention, the same in all figures."""
    spare = [marker for marker in MARKERS if marker not in INTERVENTIONS.values()]
    others = [name for name in interventions if name not in INTERVENTIONS]
    chosen = {name: spare[index % len(spare)] for index, name in enumerate(others)}
    return {name: INTERVENTIONS.get(name) or chosen[name] for name in interventions}


def shades(n: int) -> list[Any]:
    """n ordered colours that are read on light and on dark."""
    return list(mpl.colormaps[SEQUENCE](np.linspace(0.12, 0.85, n)))


def step(plan: Plan) -> str:
    """A plan's intervention with its strength, as labels have it, and where its direction is from, if not the best.

    Of one that edits nothing its label.
    """
    if plan.edits_nothing:
        return plan.label
    if plan.cell:
        return plan.cell.replace(":-", " −").replace(":+", " +") + AT_EQUAL_DAMAGE
    name = plan.intervention if plan.strength is None else f"{plan.intervention}:{number(plan.strength)}"
    component = component_of(plan)
    return name if component is None else f"{name} ({component})"


def spread(n: int) -> list[float]:
    """Offsets within a row of height one, for n dots side by side."""
    return [float(offset) for offset in (np.arange(n) - (n - 1) / 2) * min(0.22, 0.7 / max(1, n - 1))]


def loss_axis(ax: Axes, which: str, least: float) -> None:
    """Increases of the loss from `least` on: linear around zero, logarithmic from a hundredth of a nat."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    scale, limits = (ax.set_xscale, ax.set_xlim) if which == "x" else (ax.set_yscale, ax.set_ylim)
    scale("symlog", linthresh=0.01, linscale=0.7)
    axis.set_ticks([0, 0.01, 0.1, 1, 10], ["0", "0.01", "0.1", "1", "10"])
    axis.set_minor_locator(mpl.ticker.NullLocator())
    limits(min(-0.008, 1.3 * least), 15)


def errors(value: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an error bar's two sides."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def percent_axis(axis: Any) -> None:
    """Shares from 0 to 1 as percentages."""
    axis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0, symbol="\u202f%"))


def swatch(colour: str, label: str, marker: str = "o", line: Any = "", alpha: float = 1.0) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label, markersize=4.5, alpha=alpha)


def unedited_swatches(plans: Sequence[Plan]) -> list[Line2D]:
    """The entry of a legend for other checkpoints and system prompts, where there are some."""
    of_checkpoints, of_prompts = (any(getattr(plan, what) for plan in plans) for what in ("checkpoint", "system"))
    names = [*["another checkpoint"] * of_checkpoints, *["a system prompt"] * of_prompts]
    return [swatch(INK, " or ".join(names), marker=UNEDITED)] if names else []


def destroyed_swatch() -> Line2D:
    """The entry of a legend for the hollow marks."""
    return Line2D([], [], color=GREY, marker="o", markerfacecolor=PAPER, linestyle="", label="destroys the model")


def legend_below(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """One legend for the whole figure, under it, in as many columns as fit, `columns` at most."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for n in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(
            handles=list(handles), loc="outside lower center", ncols=n, columnspacing=1.4, handletextpad=0.5
        )
        if n == 1 or legend.get_window_extent(renderer).width < figure.bbox.width:
            return
        legend.remove()


def tidy(ax: Axes, grid: str = "y") -> None:
    """A light grid behind the data."""
    ax.grid(visible=True, axis=grid)  # type: ignore[arg-type]
