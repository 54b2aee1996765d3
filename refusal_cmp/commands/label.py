"""label: completions drawn for people to judge, blind, and how far the run's judges agree with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.people import OF_SAFETY, VERDICTS, WENT_ALONG, Shown, filled, read_sheet, sheet
from refusal_cmp.report.page.labels import labels_table
from refusal_cmp.run.contents import (
    KEY,
    LABELS,
    LABELS_AGREEMENT,
    SHEET,
    answers_file,
    examples_file,
    read_answers,
    read_examples,
    read_plan_facts,
)
from refusal_cmp.run.files import replacing, writing
from refusal_cmp.run.session import Session
from refusal_cmp.statistics import Estimate
from refusal_cmp.statistics.labels import clustered, inclusion, krippendorff, raw_agreement, systematic, tables
from refusal_cmp.terminal import line

OFTENER = 4.0
"""Times as likely as others is a completion to be drawn that the judges disagree about."""
FEWEST = 10
"""Completions that say something of a judge."""
HARMFUL = "harmful"
EVERY = "all"
"""The plan of agreement over all plans."""


@dataclass(frozen=True)
class Unit:
    """A completion of the run, and what the judges say of it."""

    plan: str
    dataset: str
    row: int
    shown: Shown
    said: Mapping[str, str]
    """By judge: its verdict."""

    def went_along(self, judge: str) -> bool | None:
        """What a judge says as a yes or no; None where its verdict is no answer to that."""
        verdict = self.said[judge]
        if verdict in OF_SAFETY and self.dataset != HARMFUL:
            return None
        return WENT_ALONG.get(verdict)

    @property
    def disputed(self) -> bool:
        """Whether judges disagree."""
        return len({self.went_along(judge) for judge in self.said} - {None}) > 1

    @property
    def stratum(self) -> tuple[bool, tuple[str, ...], str, str]:
        """What it is drawn within."""
        return self.disputed, tuple(self.said.values()), self.dataset, self.plan


def draw(session: Session, n: int, seed: int | None) -> tuple[Path, int, int]:
    """Write the sheet and its key; where the sheet is, how many completions were drawn, and how many texts they are.

    Raises
    ------
    RefusalCmpError
        If there is a sheet already, nothing was judged, or fewer completions are asked for than say anything.
    """
    run, path = session.run, session.run.path / SHEET
    if n < FEWEST:
        raise RefusalCmpError(f"Agreement takes {FEWEST} completions or more, and {n} are asked for; raise it.", n="")
    if path.exists():
        raise RefusalCmpError(
            f"{path} is there already, with {counted_verdicts(path)}; read it with --read, or move it away first."
        )
    units = _units(session)
    rng = np.random.default_rng(session.config.seed if seed is None else seed)
    units = [units[row] for row in rng.permutation(len(units))]
    units.sort(key=lambda one: one.stratum)
    chances = inclusion(np.array([OFTENER if one.disputed else 1.0 for one in units]), n)
    rows = systematic(chances, rng)
    drawn = [units[row] for row in rows]
    key = [
        {"id": one.shown.id, "plan": one.plan, "dataset": one.dataset, "row": one.row, "weight": 1 / chances[row]}
        | {f"judge {name}": verdict for name, verdict in one.said.items()}
        for row, one in zip(rows, drawn, strict=True)
    ]
    shown = list(dict.fromkeys(drawn[place].shown for place in rng.permutation(len(drawn))))
    with run.locked():
        run.write_table(KEY, pd.DataFrame(key))
        run.record(KEY, {}, {"n": n, **_sources(session, drawn)})
        with writing(path), replacing(path) as file:
            file.write(sheet(shown))
        run.save()
    return path, len(drawn), len(shown)


def counted_verdicts(path: Path) -> str:
    """How many verdicts a sheet holds, in words."""
    try:
        n = filled(path)
    except RefusalCmpError:
        return "something else in it"
    return "1 verdict" if n == 1 else f"{n} verdicts" if n else "no verdict yet"


def read(session: Session, sheets: Sequence[Path]) -> pd.DataFrame:
    """The agreement of every judge with people, over all plans and in each; written with the labels.

    People who were read before stay, unless they are read again.

    Raises
    ------
    RefusalCmpError
        If nothing was drawn, a sheet is not one that was, or the run has other completions by now.
    """
    run = session.run
    if not run.has(KEY):
        raise RefusalCmpError(f"No completions were drawn from {run.path} yet; run {run.command('label')} first.")
    if not run.is_current(KEY):
        raise RefusalCmpError(
            f"{run.path} was completed or judged again since its sheet was drawn; move {SHEET} away, and draw another "
            f"with {run.command('label')}."
        )
    key = run.read_table(KEY)
    ids = list(dict.fromkeys(key["id"]))
    found: dict[str, dict[str, str]] = {}
    for path in sheets:
        for rater, verdicts in read_sheet(path, ids).items():
            if rater in found:
                raise RefusalCmpError(
                    f"Two of the sheets are of {rater}; rename one of the files, or name who it is in a column rater."
                )
            found[rater] = verdicts
    with run.locked():
        found = _read_before(session) | found
        units = {(one.plan, one.dataset, one.row): one for one in _units(session)}
        drawn = [units[plan, dataset, row] for plan, dataset, row in key[["plan", "dataset", "row"]].values.tolist()]
        table = _agreement(drawn, key["weight"].tolist(), found)
        labels = [{"id": at, "rater": rater, "verdict": said} for rater, of in found.items() for at, said in of.items()]
        sources = {KEY: run.digest(KEY), **_sources(session, drawn)}
        run.write_table(LABELS, pd.DataFrame(labels))
        run.write_table(LABELS_AGREEMENT, table)
        run.record(LABELS_AGREEMENT, {}, sources, also=[LABELS])
    return table


def _read_before(session: Session) -> dict[str, dict[str, str]]:
    run, found = session.run, dict[str, dict[str, str]]()
    if run.has(LABELS) and run.is_current(LABELS_AGREEMENT):
        for rater, of_rater in run.read_table(LABELS).groupby("rater"):
            found[str(rater)] = dict(zip(of_rater["id"], of_rater["verdict"], strict=True))
    return found


def _sources(session: Session, units: Sequence[Unit]) -> dict[str, str]:
    """The completions and judgements that a sample is of, as they are."""
    files = {answers_file(one.plan, one.dataset) for one in units}
    files |= {examples_file(one.plan, judge, one.dataset) for one in units for judge in one.said}
    return {name: session.run.digest(name) for name in sorted(files)}


def _units(session: Session) -> list[Unit]:
    """Every completion of every distinct plan on every test set that all judges gave a verdict on."""
    plans = [plan.label for plan, same_as in read_plan_facts(session) if plan.label == same_as]
    units = []
    judges = _judges(session, plans)
    for plan in plans:
        for dataset in session.config.test_sets:
            answers = read_answers(session, plan, dataset)
            said = {judge: read_examples(session, plan, judge, dataset) for judge in judges}
            for row, answer in enumerate(answers):
                verdicts = {judge: str(rows[row]["verdict"]) for judge, rows in said.items()}
                units.append(Unit(plan, dataset, row, Shown(answer.instruction, answer.completion), verdicts))
    return units


def _judges(session: Session, plans: Sequence[str]) -> list[str]:
    """The evaluators that gave a verdict on every completion."""
    found = []
    for name in session.config.evals:
        rows = [read_examples(session, plan, name, dataset) for plan in plans for dataset in session.config.test_sets]
        if all(of_plan and all("verdict" in one for one in of_plan) for of_plan in rows):
            found.append(name)
    if not found:
        raise RefusalCmpError(
            f"{session.run.path} has no verdicts of judges on its completions, or not all; run "
            f"{session.run.command('evaluate')} with refusal or guard among its evaluators."
        )
    return found


def _agreement(
    units: Sequence[Unit], weights: Sequence[float], labels: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """A row per judge and plan, and one of people among themselves."""
    people = {at: _majority([VERDICTS[of[at]] for of in labels.values()]) for at in {one.shown.id for one in units}}
    rows = []
    for judge in units[0].said:
        both = [
            (one, weight, said, heard)
            for one, weight in zip(units, weights, strict=True)
            if (said := one.went_along(judge)) is not None and (heard := people[one.shown.id]) is not None
        ]
        plans = sorted({one.plan for one, *_ in both})
        if not both:
            continue
        rows.append(_row(judge, EVERY, both))
        rows += [_row(judge, plan, [each for each in both if each[0].plan == plan]) for plan in plans]
    alpha = krippendorff([[VERDICTS[of[at]] for of in labels.values()] for at in people])
    among = {"judge": "people", "plan": EVERY, "n": len(people), "raters": len(labels), "kappa": alpha}
    return pd.DataFrame([*({**row, "raters": len(labels)} for row in rows), among])


def _row(judge: str, plan: str, both: Sequence[tuple[Unit, float, bool, bool]]) -> dict[str, Any]:
    units, weights, said, heard = zip(*both, strict=True)
    cells = tables(said, heard, weights, [one.shown.instruction for one in units])
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    raw, kappa = clustered(cells) if plan == EVERY else (nothing._replace(value=raw_agreement(cells)), nothing)
    shares = cells.sum(0) / cells.sum()
    return {
        "judge": judge,
        "plan": plan,
        "n": len(both),
        "n_prompts": len(cells),
        "agreement": raw.value,
        "ci_low": raw.low,
        "ci_high": raw.high,
        "kappa": kappa.value,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        **dict(zip(("both", "judge_only", "people_only", "neither"), shares.tolist(), strict=True)),
    }


def _majority(said: Sequence[bool | None]) -> bool | None:
    """What most say; None where nobody says, or as many one thing as the other."""
    votes = Counter(one for one in said if one is not None)
    return None if votes[True] == votes[False] else votes[True] > votes[False]


def print_drawn(console: Console, path: Path, drawn: int, texts: int) -> None:
    """Where the sheet is, and what to do with it."""
    words = ", ".join(VERDICTS)
    console.print(
        line(
            f"{path} holds {texts} texts of {drawn} completions; fill in the column verdict with {words} (or a first "
            f"letter), each rater in a copy of their own, and read them with `refusal-cmp label {path.parent} --read "
            "FILE`."
        ),
        highlight=False,
    )


def print_labels(console: Console, found: pd.DataFrame) -> None:
    """The agreement over all plans, and where it is least."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("judge", "completions", "agreement", "κ", "judge only", "people only"):
        table.add_column(heading)
    shown = labels_table(found)
    for one in shown["judges"]:
        names = ("judge", "n", "agreement", "kappa", "judge_only", "people_only")
        table.add_row(*(line(one[name]) for name in names))
    console.print(table)
    if shown["people"]:
        console.print(line(shown["people"]), highlight=False)
    if shown["plans"]:
        console.print(line(f"Agreement is least under {shown['plans']}."), highlight=False)
