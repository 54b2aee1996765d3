"""Two runs with different seeds laid beside each other: do they say the same, as far as chance can tell?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm, spearmanr

from refusal_cmp.commands.compare import made_from, print_made
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import measure_of
from refusal_cmp.report.data import RunData
from refusal_cmp.report.seeds import SeedsData, read_seeds
from refusal_cmp.report.wording import counted, decimal, minus, shown
from refusal_cmp.run.session import open_run
from refusal_cmp.statistics import LEVEL, Estimate, holm
from refusal_cmp.terminal import line

SURE = 1 - LEVEL
Key = tuple[str, str, str]
"""Plan, dataset, metric."""


@dataclass(frozen=True)
class Apart:
    """A number of which chance does not explain how far the runs are apart."""

    key: Key
    one: Estimate
    other: Estimate
    p: float
    """After Holm's correction over all numbers."""


@dataclass(frozen=True)
class Agreement:
    """What two seeds agree on."""

    data: SeedsData
    made: Sequence[tuple[str, str, str]]
    """What the runs were made from that is not the same in both, the seed apart."""
    tested: int
    """Numbers that both have, with an interval."""
    outside: int
    """Of them, those whose difference is outside the interval of a difference by chance, one by one."""
    apart: Sequence[Apart]
    only: tuple[int, int]
    """Numbers that only one has, and only the other."""


def compare_seeds(a: Path, b: Path) -> Agreement:
    """What two runs that differ by their seed agree on.

    Raises
    ------
    RefusalCmpError
        If one is no finished run, or both have the same seed.
    """
    sessions = [open_run(path) for path in (a, b)]
    seeds = [session.config.seed for session in sessions]
    if seeds[0] == seeds[1]:
        raise RefusalCmpError(
            f"Both runs have the seed {seeds[0]}; leave out --another-seed to see whether they are the same."
        )
    data = read_seeds("", dict(zip(seeds, sessions, strict=True)))
    one, other = (numbers(run) for run in data.runs.values())
    both = [key for key in one if key in other and _has_interval(one[key]) and _has_interval(other[key])]
    p = np.array([chance(one[key], other[key]) for key in both])
    corrected = holm(p)
    apart = [
        Apart(key, one[key], other[key], float(value))
        for key, value in zip(both, corrected, strict=True)
        if value < SURE
    ]
    made = [entry for entry in made_from(*(session.run for session in sessions)) if entry[0] != "seed"]
    only = len([key for key in one if key not in other]), len([key for key in other if key not in one])
    return Agreement(data, made, len(both), int((p < SURE).sum()), sorted(apart, key=lambda found: found.p), only)


def numbers(run: RunData) -> Mapping[Key, Estimate]:
    """Every number of every distinct plan."""
    distinct = set(run.run_as.values())
    rows = run.results[run.results["plan"].isin(distinct)]
    rows = rows[["plan", "dataset", "metric", "value", "ci_low", "ci_high", "n"]]
    return {(row[0], row[1], row[2]): Estimate(*row[3:]) for row in rows.itertuples(index=False, name=None)}


def chance(one: Estimate, other: Estimate) -> float:
    """Two-sided p-value of no difference, from the sides of both intervals that face each other.

    Where both runs have the same test prompts, what they share makes their difference smaller than this allows for, so
    that p is too large rather than too small.
    """
    low, high = (one, other) if one.value <= other.value else (other, one)
    reach = float(np.hypot(low.high - low.value, high.value - high.low))
    if reach == 0:
        return 1.0 if low.value == high.value else 0.0
    z = (high.value - low.value) / reach * norm.ppf((1 + LEVEL) / 2)
    return float(2 * norm.sf(z))


def _has_interval(one: Estimate) -> bool:
    return bool(np.isfinite([one.value, one.low, one.high]).all())


def print_agreement(console: Console, found: Agreement, most: int) -> None:
    """What the seeds agree on: their answers, their components, and their numbers."""
    data = found.data
    print_made(console, found.made)
    for seed, ranked in data.standings.items():
        named = ranked[0] if ranked else None
        verdict = "no plan" if named is None else f"{named.plan} ({_state(named.suppresses, named.is_broken)})"
        console.print(line(f"Seed {seed} names {verdict}."), highlight=False)
    console.print(_components(data), highlight=False)
    console.print(
        line(
            f"{counted(found.tested, 'number')} with intervals in both: {found.outside} apart by more than chance "
            f"leaves in {LEVEL:.0%} of cases, taken one by one ({SURE * found.tested:.0f} are to be expected at most); "
            f"{len(found.apart)} after Holm’s correction."
        ),
        highlight=False,
    )
    if any(found.only):
        console.print(line(f"Only in A: {found.only[0]} numbers; only in B: {found.only[1]}."), highlight=False)
    if found.apart:
        console.print(_apart(found.apart[:most]), highlight=False)
    if len(found.apart) > most:
        console.print(f"… and {len(found.apart) - most} more", style="dim", highlight=False)


def _state(suppresses: bool, is_broken: bool) -> str:
    return "suppresses refusal" if suppresses else "destroys the model" if is_broken else "comes nearest"


def _components(data: SeedsData) -> Table:
    """What each method chose with either seed, how alike the directions are, and the rankings of all components."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method")
    for seed in data.seeds:
        table.add_column(f"seed {seed}")
    for heading in ("cosine", "ρ of bypass"):
        table.add_column(heading, justify="right")
    for method in data.first.methods:
        chosen = [data.selection(method, seed) for seed in data.seeds]
        alike, rho = data.alike(method), _rank_correlation(data, method)
        table.add_row(
            line(method),
            *("–" if one is None else line(str(one.selected)) for one in chosen),
            *("–" if value is None else decimal(value) for value in (alike, rho)),
        )
    return table


def _rank_correlation(data: SeedsData, method: str) -> float | None:
    """Spearman's ρ of the components' bypass between the two seeds, over those that both scored."""
    column = f"{data.first.rule.rank_by}_bypass"
    tables = [run.scores[run.scores["method"] == method] for run in data.runs.values()]
    one, other = (table.set_index(["position", "layer"])[column].dropna() for table in tables)
    shared = one.index.intersection(other.index)
    rho = float(spearmanr(one[shared], other[shared]).statistic) if len(shared) > 2 else np.nan
    return rho if np.isfinite(rho) else None


def _apart(entries: Sequence[Apart]) -> Table:
    table = Table(title="apart beyond chance", box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "A", "B"):
        table.add_column(heading, overflow="fold")
    table.add_column("p", justify="right")
    for entry in entries:
        unit = measure_of(entry.key[2]).unit
        values = (minus(shown(value.value, unit)) for value in (entry.one, entry.other))
        table.add_row(line(" · ".join(entry.key)), *values, f"{entry.p:.1g}")
    return table
