"""A matrix of coloured cells with numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from refusal_cmp.report.figures._style import SEQUENCE

ON_DARK, ON_LIGHT = "#fdfdfd", "#101012"
"""Numbers in cells: neither is swapped where the page is dark, as the cells are not."""
DARK = 0.55
"""Share of the colours that want the first."""
SLANTED = 12
"""Columns that are wide enough for slanted names."""


def matrix(
    ax: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], tuple[float, str]],
    most: float,
) -> None:
    """A cell for every row and column that has a value, from zero to `most`, with what stands in it."""
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (value, written) in cells.items():
        at = rows.index(row), columns.index(column)
        values[at] = min(max(value, 0.0), most)
        colour = ON_DARK if values[at] < DARK * most else ON_LIGHT
        ax.text(at[1], at[0], written, ha="center", va="center", fontsize=5.5, color=colour)
    ax.imshow(values, cmap=SEQUENCE, norm=Normalize(0, most), aspect="auto")
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(columns) <= SLANTED else {"rotation": 90}
    ax.set_xticks(range(len(columns)), columns, fontsize=6, **slanted)
    ax.set_yticks(range(len(rows)), rows, fontsize=6)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
