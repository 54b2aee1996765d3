"""What the command line shows: live progress with time left, and the summary table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from refusal_cmp.progress import Progress
from refusal_cmp.report.answer import ON_DISTRIBUTION
from refusal_cmp.report.data import summary_of
from refusal_cmp.run.contents import RANKINGS, RESULTS
from refusal_cmp.run.directory import RunDir

REFUSALS = {"harmful_refusal": "harmful", "harmless_refusal": "harmless", "degenerate": "broken"}
TEXTS = {"tiny-answers_loss": "answers", "tiny-general_loss": "text"}
OTHERS = {"contrast_refusal": "contrast", "harmful_guard_unsafe": "unsafe"}
MEANINGS = {
    "_refusal": "share of completions that refuse",
    "degenerate": "share that is no language",
    "_unsafe": "share of completions of harmful prompts that the guard calls unsafe",
    "_loss": "loss, nats a token",
    "_acc": "accuracy",
}
"""Of the columns whose names end so."""

RANKINGS_LEGEND = (
    "Intervals draw the validation prompts anew and rank again; p takes components for independent, which they are "
    "not, and is too small. Regret: global bypass of the local choice minus the best."
)


@contextmanager
def live_progress(console: Console) -> Iterator[Progress]:
    """Progress bars with time left; a line stays when its work is done, unless it was a part of another's."""
    bars = Bars(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )

    running: list[TaskID] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        task = bars.add_task(description, total=total, visible=total > 0)
        running.append(task)
        try:
            yield lambda steps: bars.advance(task, steps)
        finally:
            running.remove(task)
            if running:
                bars.remove_task(task)

    with bars:
        yield progress


def print_rankings(console: Console, run: RunDir) -> None:
    """How far local and global rankings agree, a row per method and pool."""
    table = Table(
        title="Local against global ranking, by bypass",
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for heading in ("method", "pool", "n", "ρ", "95 %", "p", "τ", "top 1", "top 5", "regret"):
        table.add_column(
            heading, justify="left" if heading in ("method", "pool") else "right", no_wrap=heading == "method"
        )
    for one in run.read_json(RANKINGS):
        for name, pool in one["pools"].items():
            row = [escape(one["method"]), name, str(pool["n"])]
            if pool["rho"] is None:
                table.add_row(*row, "–", pool["why"])
                continue
            interval = f"{pool['ci_low']:.2f}…{pool['ci_high']:.2f}"
            top = "–" if pool["top5_overlap"] is None else f"{pool['top5_overlap']:.0%}"
            same = "same" if pool["top1_match"] else "other"
            table.add_row(*row, f"{pool['rho']:.2f}", interval, f"{pool['p']:.1g}", f"{pool['tau']:.2f}", same, top,
                          f"{one['regret']:.2f}")  # fmt: skip
    console.print(table)
    console.print(RANKINGS_LEGEND, style="dim", highlight=False)


def print_summary(console: Console, run: RunDir) -> None:
    """The summary of a run as a table, methods apart, with the columns that fit."""
    rows = summary_of(run)
    shown = _fitting(_columns(rows), console.width - max(map(len, rows["plan"])) - len("  layers"))
    table = Table(title=str(run.path), title_justify="left", header_style="bold", box=None, padding=(0, 0, 0, 1))
    table.add_column("plan", no_wrap=True)
    table.add_column("layers", justify="right")
    for heading, _ in shown.values():
        table.add_column(heading, justify="right")
    method = None
    for _, row in rows.iterrows():
        if method not in (None, row["method"]):
            table.add_row()
        method = row["method"]
        cells = ["–" if pd.isna(row[name]) else how.format(row[name]) for name, (_, how) in shown.items()]
        layers = "" if pd.isna(row["n_layers"]) else str(int(row["n_layers"]))
        table.add_row(escape(row["plan"]), layers, *cells)
    console.print(table)
    console.print(_legend(shown), style="dim", highlight=False)
    console.print(f"Every number with its interval: {run.path / RESULTS}", highlight=False, soft_wrap=True)


Shown = dict[str, tuple[str, str]]
"""By column of the summary: its heading, and how its values are written."""


def _columns(rows: pd.DataFrame) -> Shown:
    """Everything that may be shown, what matters most first."""
    names = [str(name) for name in rows]
    losses = [name for name in names if name.endswith("_loss") and not name.endswith("_unedited_loss")]
    found = {name: (heading, "{:.0%}") for name, heading in REFUSALS.items()}
    for name in losses:
        if not name.startswith(ON_DISTRIBUTION):
            found[name] = (TEXTS.get(name, name.removesuffix("_loss")), "{:.2f}")
    found |= {name: (heading, "{:.0%}") for name, heading in OTHERS.items()}
    for name in names:
        if name.endswith("_acc"):
            found[name] = (name.removesuffix("_acc").removeprefix("world_"), "{:.0%}")
    return {name: how for name, how in found.items() if name in names}


def _fitting(columns: Shown, width: int) -> Shown:
    """The first columns that fit side by side."""
    fitting: Shown = {}
    for name, (heading, how) in columns.items():
        width -= 1 + max(len(heading), len("100%"))
        if width < 0:
            break
        fitting[name] = (heading, how)
    return fitting


def _legend(shown: Shown) -> str:
    parts = []
    for suffix, meaning in MEANINGS.items():
        headings = [heading for name, (heading, _) in shown.items() if name.endswith(suffix)]
        if headings:
            parts.append(f"{', '.join(headings)}: {meaning}")
    return f"{'; '.join(parts)}; layers: how many are edited."
