"""What the command line shows: live progress with time left, the summary table, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from textwrap import wrap

import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from refusal_cmp.config import CONTRAST, KINDS
from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.progress import Progress
from refusal_cmp.report.answer import standings
from refusal_cmp.report.data import read_run
from refusal_cmp.report.page.first_screen import PLAN, UNASKED, first_screen
from refusal_cmp.report.page.seeds import seed_rows, seeds_answer
from refusal_cmp.report.seeds import SeedsData
from refusal_cmp.report.table import Column, columns, language_column, summary
from refusal_cmp.run.contents import RANKING_RULES, RANKINGS, RESULTS, read_choice, read_results
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.terminal import line, lines, visible

FIRST: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("refusal", KINDS),
    ("in_language", ("",)),
    ("degenerate", ("",)),
    ("loss", ()),
    ("refusal", (CONTRAST,)),
    ("guard_unsafe", ("harmful",)),
    ("acc", ()),
)
"""Metrics that matter most, with their datasets (by default all): they are shown first, and others if there is room."""
EVERY_SET = "all sets"
"""What is said of a column that holds all test sets together."""
WIDEST = 8
"""Letters of a heading's line."""
EMBEDDED = ("tiny-", "world_", "everyday-", "everyday_")
"""Begin the names of our own texts and tasks; there is no room to say so."""

RANKINGS_LEGEND = (
    "Intervals draw the validation prompts anew and rank again; p takes components for independent, which they are "
    "not, and is too small. Regret: global bypass of the local choice minus the best."
)
RULES_LEGEND = (
    "Spearman's ρ with exact bypass of the same reach and prompts, over what all filters keep, what the KL filter "
    "keeps, and all. Regret: exact bypass of the rule's choice, of what the filters keep, minus the best. Passes: of "
    "the validation prompts of a class through all blocks; beside them those of exact bypass."
)


EVERY = 60.0
"""Seconds from one line of progress to the next, where there is no terminal."""


@contextmanager
def live_progress(console: Console) -> Iterator[Progress]:
    """Progress with time left: bars in a terminal; a line now and then in a pipe, a log file or a batch system."""
    with _bars(console) if console.is_terminal else nullcontext(_Log(console)) as progress:
        yield progress


class _Log:
    """Work that is under way, in lines: no more than one every so often, and none of what is soon done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: list[_Task] = []
        self.last = time.monotonic()

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A task, or a part of the one that is under way; one without steps is soon done, and is not shown."""
        if not total:
            yield lambda steps: None
            return
        task = _Task(visible(description), total)
        self.tasks.append(task)

        def advance(steps: int) -> None:
            task.done += steps
            if time.monotonic() - self.last >= EVERY:
                self._print(f"{', '.join(map(str, self.tasks))}; {self.tasks[0].times}")

        try:
            yield advance
        finally:
            self.tasks.remove(task)
            if not self.tasks and task.done and task.seconds >= EVERY:
                self._print(f"{task} in {_clock(task.seconds)}")

    def _print(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.print(line(text), highlight=False, soft_wrap=True)


@dataclass
class _Task:
    description: str
    total: int
    done: int = 0
    began: float = field(default_factory=lambda: time.monotonic())

    def __str__(self) -> str:
        return f"{self.description}: {self.done} of {self.total}"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def times(self) -> str:
        left = (
            f"about {_clock(self.seconds * (self.total - self.done) / self.done)}" if self.done else "an unknown time"
        )
        return f"{_clock(self.seconds)} gone, {left} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A line stays when its work is done, unless it was a part of another's."""
    bars = Bars(
        TextColumn("{task.description:<34}", markup=False),
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
        task = bars.add_task(visible(description), total=total, visible=total > 0)
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
            row: list[RenderableType] = [line(one["method"]), line(name), str(pool["n"])]
            if pool["rho"] is None:
                table.add_row(*row, "–", line(pool["why"]))
                continue
            interval = f"{pool['ci_low']:.2f}…{pool['ci_high']:.2f}"
            top = "–" if pool["top5_overlap"] is None else f"{pool['top5_overlap']:.0%}"
            same = "same" if pool["top1_match"] else "other"
            table.add_row(*row, f"{pool['rho']:.2f}", interval, f"{pool['p']:.1g}", f"{pool['tau']:.2f}", same, top,
                          f"{one['regret']:.2f}")  # fmt: skip
    console.print(table)
    console.print(RANKINGS_LEGEND, style="dim", highlight=False)


def print_ranking_rules(console: Console, run: RunDir) -> None:
    """How far other ranking rules agree with exact bypass of their own reach, and what they cost."""
    table = Table(
        title="Other ranking rules against bypass",
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for heading in ("method", "rule", "reach", "kept", "within KL", "all", "regret", "passes", "bypass"):
        text = heading in ("method", "rule", "reach")
        table.add_column(heading, justify="left" if text else "right", no_wrap=heading in ("method", "rule"))
    for one in run.read_json(RANKING_RULES):
        own = one["against"][one["reach"]]
        table.add_row(
            *map(line, (one["method"], one["rule"], one["reach"])),
            *("–" if pool["rho"] is None else f"{pool['rho']:.2f}" for pool in own["pools"].values()),
            f"{own['regret']:.2f}",
            f"{one['passes']:.1f}",
            f"{one['exact_passes']:.1f}",
        )
    console.print(table)
    console.print(RULES_LEGEND, style="dim", highlight=False)


def print_summary(console: Console, run: RunDir) -> None:
    """The summary of a run as a table, methods apart, with the columns that fit."""
    results = read_results(run)
    rows = summary(results)
    found = (language_column(results), *columns(results))
    there = [one for one in found if one.name in rows and one.dataset != ON_DISTRIBUTION]
    shown = _fitting(there, rows, console.width - max(map(len, rows["plan"])) - len("  layers"))
    table = Table(
        title=line(str(run.path), "table.title"),
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 0, 0, 1),
    )
    table.add_column("plan", no_wrap=True, vertical="bottom")
    table.add_column("layers", justify="right", vertical="bottom")
    for column in shown:
        table.add_column(lines(_heading(column)), justify="right", vertical="bottom")
    method = None
    for _, row in rows.iterrows():
        if method not in (None, row["method"]):
            table.add_row()
        method = row["method"]
        layers = "" if pd.isna(row["n_layers"]) else str(int(row["n_layers"]))
        table.add_row(line(row["plan"]), layers, *(_cell(column, row) for column in shown))
    console.print(table)
    measures = dict.fromkeys(column.measure for column in shown if column.measure.meaning)
    legend = [f"{measure.title.lower()}: {measure.meaning}" for measure in measures]
    console.print(line("; ".join([*legend, "layers: how many are edited"]) + "."), style="dim", highlight=False)
    if choice := read_choice(run):
        console.print(line(choice), style="dim", highlight=False)
    console.print(line(f"Every number with its interval: {run.path / RESULTS}"), highlight=False, soft_wrap=True)


def print_answer(console: Console, session: Session) -> None:
    """What the page's first screen says, in words: the plan that it names, at what cost, and what to beware of."""
    data = read_run(session)
    answer = first_screen(data, standings(data))
    if answer is None:
        return
    console.print(line(answer["plan"].join(answer["headline"]), "bold"), highlight=False)
    console.print(line(" ".join(filter(None, [answer["unasked"], *answer["sentences"]]))), highlight=False)
    if answer["broken"]:
        names = ", ".join(answer["broken"])
        console.print(line(f"Low refusal that is no success, as these destroy the model: {names}."), highlight=False)


def print_answer_over_seeds(console: Console, data: SeedsData) -> None:
    """What the first screen over seeds says, in words, and what each seed says alone."""
    answer = seeds_answer(data)
    if answer is None:
        return
    console.print(line(answer["headline"].replace(PLAN, answer["plan"]), "bold"), highlight=False)
    if 0 < answer["broken"] < answer["n"]:
        destroys = f"With {answer['broken']} of {answer['n']} seeds it destroys the model."
        console.print(line(destroys), highlight=False)
    unasked = "" if data.first.asks_for_language else UNASKED
    console.print(line(" ".join(filter(None, [unasked, *answer["sentences"]]))), highlight=False)
    for one in seed_rows(data):
        said = f"Seed {one['seed']} alone: {one['plan'] or 'no plan'} {one['state']}, {one['answered']} answered."
        console.print(line(" ".join(said.split())), highlight=False)


def _fitting(there: Sequence[Column], rows: pd.DataFrame, width: int) -> list[Column]:
    """The first columns that fit side by side, what matters most before the others."""
    fitting = []
    for column in sorted(there, key=_place):
        lines = [*_heading(column).split("\n"), *(_cell(column, row) for _, row in rows.iterrows())]
        width -= 1 + max(map(len, lines))
        if width < 0:
            break
        fitting.append(column)
    return fitting


def _place(column: Column) -> int:
    """Where a column stands among those that matter most, or after them."""
    fits = (column.metric == metric and (not datasets or column.dataset in datasets) for metric, datasets in FIRST)
    return next((place for place, is_it in enumerate(fits) if is_it), len(FIRST))


def _heading(column: Column) -> str:
    """What is measured, and under it what on, in lines as narrow as words allow."""
    dataset = column.dataset
    for start in EMBEDDED:
        dataset = dataset.removeprefix(start)
    return "\n".join([*wrap(column.measure.heading, WIDEST), visible(dataset) or EVERY_SET])


def _cell(column: Column, row: pd.Series) -> str:
    return column.text(row[column.name]).replace("\u202f", "")
