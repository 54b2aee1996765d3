"""Two runs laid beside each other: what they selected, every score, every metric, every completion.

Numbers are the same if |a − b| ≤ tolerance · max(1, |a|, |b|): absolute up to 1, relative above, because perplexities
of a model that an edit has broken run into the millions. A completion is the same as another, or is not. What one run
has and the other lacks is a difference whatever the tolerance.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from refusal_cmp.config import MachineSettings
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import file_name
from refusal_cmp.run.contents import PLANS, RESULTS, SCORES, SELECTION, answers_file, read_choices, read_results
from refusal_cmp.run.directory import MANIFEST, RunDir, why_no_run
from refusal_cmp.subspace import Component
from refusal_cmp.terminal import line

Part = Literal["run", "selection", "scores", "metrics", "completions"]
PARTS: tuple[Part, ...] = ("selection", "scores", "metrics", "completions")
Outcome = Literal["equal", "within", "beyond", "only in A", "only in B"]
OUTCOMES: tuple[Outcome, ...] = ("equal", "within", "beyond", "only in A", "only in B")

NUMBERS = ("value", "ci_low", "ci_high", "n")
"""Of a metric, in the order in which a difference is told."""
NO_SCORES = ("method", "position", "layer", "key", "dropped_by")
"""Columns of the scores that are no numbers."""
EXCERPT = 48
"""Characters of a completion that are shown."""

Numbers = Mapping[tuple[str, ...], Mapping[str, float]]


@dataclass(frozen=True)
class Tolerance:
    """How far two runs may be apart and still agree."""

    numbers: float = 1e-6
    """Most that a score or a metric differs: absolute up to 1, relative above."""
    completions: float = 0.0
    """Largest share of a plan's completions of one test set that differ."""


@dataclass(frozen=True)
class Entry:
    """One thing that was compared."""

    part: Part
    name: tuple[str, ...]
    """Method; method, component, score; plan, dataset, metric; or plan, test set."""
    outcome: Outcome
    a: str = ""
    """What run A has, as it is shown; of a metric the number that tells the difference."""
    b: str = ""
    size: float = 0.0
    """How far apart the numbers are, or the share of completions that differ."""

    @property
    def agrees(self) -> bool:
        """Whether the runs agree on it, within the tolerance."""
        return self.outcome in ("equal", "within")


@dataclass(frozen=True)
class Diff:
    """Two runs, compared."""

    entries: Sequence[Entry]
    made: Sequence[tuple[str, str, str]]
    """What the runs were made from that is not the same in both: settings, model, device, versions."""

    @property
    def agrees(self) -> bool:
        """Whether the runs agree on everything, within the tolerance."""
        return all(entry.agrees for entry in self.entries)


def compare_runs(a: Path, b: Path, tolerance: Tolerance | None = None) -> Diff:
    """Everything that two run directories can be compared by.

    Raises
    ------
    RefusalCmpError
        If one is not a run directory, has not been evaluated, or holds results of different choices.
    """
    tolerance = tolerance or Tolerance()
    one, other = _open(a), _open(b)
    entries = [
        *_selections(_selected(one), _selected(other)),
        *_numbers("scores", _scores(one), _scores(other), tolerance),
        *_numbers("metrics", _metrics(one), _metrics(other), tolerance),
        *_completions(one, other, tolerance),
    ]
    return Diff(entries, list(made_from(one, other)))


def compare_folders(a: Path, b: Path, tolerance: Tolerance | None = None) -> dict[str, Diff]:
    """The runs in two folders by name, each compared with the run of the same name in the other folder."""
    runs = [sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")) for folder in (a, b)]
    for folder, names in zip((a, b), runs, strict=True):
        if not names:
            raise RefusalCmpError(f"There is no run directory in {folder}; name a folder of runs, such as runs.")
    return {
        name: compare_runs(a / name, b / name, tolerance)
        if name in runs[0] and name in runs[1]
        else Diff([_missing("run", (name,), from_a=name not in runs[0])], [])
        for name in dict.fromkeys([*runs[0], *runs[1]])
    }


def _open(path: Path) -> RunDir:
    if not (path / MANIFEST).is_file():
        hint = "; compare two folders of runs with --all" if any(path.glob(f"*/{MANIFEST}")) else ""
        raise RefusalCmpError(
            f"{path} is not a run directory, as it has no {MANIFEST}; name one, such as runs/tiny-refuser{hint}."
        )
    run = RunDir(path)
    if run.seeds:
        raise RefusalCmpError(f"{path} is not a run directory: {why_no_run(run)}.")
    for name in (SELECTION, SCORES, PLANS, RESULTS):
        run.require(name)
    run.require_finished()
    return run


# What a run says


def _selected(run: RunDir) -> dict[str, str]:
    """The chosen component of every method, as it is shown."""
    return {
        method: ", ".join(part for part in (str(one.selected), one.note) if part)
        for method, one in read_choices(run).items()
    }


def _scores(run: RunDir) -> Numbers:
    """Every score by method, component and column."""
    table = run.read_table(SCORES)
    columns = [name for name in table if name not in NO_SCORES]
    return {
        (row["method"], str(Component(row["position"], row["layer"])), str(name)): {"value": float(row[name])}
        for row in table.to_dict("records")
        for name in columns
    }


def _metrics(run: RunDir) -> Numbers:
    """Every metric with its interval by plan, dataset and name."""
    rows = read_results(run).to_dict("records")
    return {(row["plan"], row["dataset"], row["metric"]): {name: float(row[name]) for name in NUMBERS} for row in rows}


def _answers(run: RunDir) -> dict[tuple[str, str], str]:
    """The file of completions by plan and test set; identical plans have the same one."""
    found: dict[tuple[str, str], str] = {}
    for row in run.read_json(PLANS):
        folder = run.path / "infer" / file_name(row["same_as"])
        names = sorted(path.stem for path in folder.glob("*.jsonl"))
        if not names:
            raise RefusalCmpError(f"{folder} holds no completions; run {run.command('infer')} first.")
        found |= {(row["label"], name): answers_file(row["same_as"], name) for name in names}
    return found


def made_from(a: RunDir, b: RunDir) -> Iterator[tuple[str, str, str]]:
    """What two runs were made from that is not the same in both: its name, and either value."""
    facts = []
    for run in (a, b):
        config = {name: value for name, value in run.manifest["config"].items()
                  if name not in MachineSettings.model_fields}  # fmt: skip
        model = {f"model {name}": value for name, value in run.manifest.get("model", {}).items()}
        facts.append({**config, **model, "device": run.manifest.get("device"), **run.manifest.get("versions", {})})
    for name in dict.fromkeys([*facts[0], *facts[1]]):
        one, other = (of_run.get(name) for of_run in facts)
        if one != other:
            yield name.replace("_", "-"), _shown(one), _shown(other)


# Comparing


def _selections(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Entry]:
    for method in dict.fromkeys([*a, *b]):
        one, other = a.get(method), b.get(method)
        if one is None or other is None:
            yield _missing("selection", (method,), one is None)
        else:
            yield Entry("selection", (method,), "equal" if one == other else "beyond", one, other)


def _numbers(part: Part, a: Numbers, b: Numbers, tolerance: Tolerance) -> Iterator[Entry]:
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            yield _missing(part, name, name not in a)
            continue
        sizes = {which: distance(a[name][which], b[name][which]) for which in a[name]}
        beyond = [which for which, size in sizes.items() if size > tolerance.numbers]
        told = beyond[0] if beyond else max(sizes, key=lambda which: sizes[which])
        full = name if told == "value" else (*name, told)
        outcome: Outcome = "beyond" if beyond else "within" if sizes[told] else "equal"
        yield Entry(part, full, outcome, f"{a[name][told]:.6g}", f"{b[name][told]:.6g}", sizes[told])


def distance(a: float, b: float) -> float:
    """|a − b| / max(1, |a|, |b|): infinite if one is not a number, or they are different infinities."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    size = abs(a - b) / max(1.0, abs(a), abs(b))
    return math.inf if math.isnan(size) else size


def _completions(a: RunDir, b: RunDir, tolerance: Tolerance) -> Iterator[Entry]:
    """An entry per plan and test set; plans that are identical in both runs are compared once."""
    files_a, files_b = _answers(a), _answers(b)
    seen = set()
    for name in dict.fromkeys([*files_a, *files_b]):
        pair = files_a.get(name), files_b.get(name)
        if pair in seen:
            continue
        seen.add(pair)
        if pair[0] is None or pair[1] is None:
            yield _missing("completions", name, pair[0] is None)
        else:
            yield _answered(name, _by_prompt(a, pair[0]), _by_prompt(b, pair[1]), tolerance)


def _answered(name: tuple[str, str], a: Mapping[str, str], b: Mapping[str, str], tolerance: Tolerance) -> Entry:
    prompts = list(dict.fromkeys([*a, *b]))
    differing = [prompt for prompt in prompts if a.get(prompt) != b.get(prompt)]
    if not differing:
        return Entry("completions", name, "equal")
    one, other = a.get(differing[0]), b.get(differing[0])
    size = len(differing) / len(prompts)
    return Entry(
        "completions",
        (*name, f"{len(differing)} of {len(prompts)}"),
        "within" if size <= tolerance.completions else "beyond",
        *_excerpts(one, other),
        size,
    )


def _by_prompt(run: RunDir, file: str) -> dict[str, str]:
    """What was answered to each prompt, with the reason why it ended if that is not a stop token."""
    ends = {"stop": "", "length": " [cut off]"}
    return {
        row["instruction"]: row["completion"] + ends.get(row["finish"], f" [{row['finish']}]")
        for row in run.read_lines(file)
    }


def _excerpts(one: str | None, other: str | None) -> tuple[str, str]:
    """Two texts from shortly before they part."""
    if one is None or other is None:
        return ("no such prompt" if one is None else "there", "no such prompt" if other is None else "there")
    pairs = enumerate(zip(one, other, strict=False))
    parting = next((index for index, (x, y) in pairs if x != y), min(len(one), len(other)))
    start = max(0, parting - EXCERPT // 2)
    return _excerpt(one, start), _excerpt(other, start)


def _excerpt(text: str, start: int) -> str:
    end = start + EXCERPT
    return ("…" if start else "") + re.sub("[ \n\t]+", " ", text[start:end]).strip() + ("…" if len(text) > end else "")


def _missing(part: Part, name: tuple[str, ...], from_a: bool) -> Entry:
    return Entry(part, name, "only in B" if from_a else "only in A", size=math.inf)


# The terminal


def print_diff(console: Console, diff: Diff, most: int) -> None:
    """The summary, and then at most so many of the differences of each part that are beyond the tolerance."""
    print_made(console, diff.made)
    counts = Counter((entry.part, entry.outcome) for entry in diff.entries)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("compared")
    for outcome in OUTCOMES:
        table.add_column({"within": "within tolerance"}.get(outcome, outcome), justify="right")
    for part in PARTS:
        if any(counts[part, outcome] for outcome in OUTCOMES):
            table.add_row(part, *(str(counts[part, outcome]) for outcome in OUTCOMES))
    if table.row_count:
        console.print(table)
    apart = [entry for entry in diff.entries if not entry.agrees]
    for part in PARTS:
        _print_beyond(console, part, [one for one in apart if one.part == part and one.outcome == "beyond"], most)
    _print_missing(console, [one for one in apart if one.outcome != "beyond"], most)


def print_made(console: Console, made: Sequence[tuple[str, str, str]]) -> None:
    """What two runs were made from that is not the same in both, a line each."""
    for name, one, other in made:
        what = "given directions" if name == "given" else name
        which = "other" if what.endswith("s") else "another"
        console.print(line(f"made with {which} {what}: {one} → {other}"), style="dim", highlight=False)


def _print_beyond(console: Console, part: Part, entries: Sequence[Entry], most: int) -> None:
    table = Table(title=part, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "A", "B"):
        table.add_column(heading, overflow="fold")
    table.add_column("apart", justify="right")
    for one in sorted(entries, key=lambda one: -one.size)[:most]:
        size = {"selection": "", "completions": f"{one.size:.0%}"}.get(part, f"{one.size:.2g}")
        table.add_row(line(" · ".join(one.name)), line(one.a), line(one.b), size)
    _print_listed(console, table, len(entries))


def _print_missing(console: Console, entries: Sequence[Entry], most: int) -> None:
    table = Table("", "", "", box=None, show_header=False, padding=(0, 2, 0, 0))
    found: dict[tuple[Outcome, str], Counter[Part]] = {}
    for one in entries:
        found.setdefault((one.outcome, one.name[0]), Counter())[one.part] += 1
    for (outcome, name), counts in list(found.items())[:most]:
        what = ", ".join(f"{part}: {count}" for part, count in counts.items() if part != "run")
        table.add_row(outcome, line(name), what)
    _print_listed(console, table, len(found))


def _print_listed(console: Console, table: Table, n: int) -> None:
    """A table of differences, if there are any, and how many more there are."""
    if n:
        console.print()
        console.print(table, highlight=False)
    if n > table.row_count:
        console.print(f"… and {n - table.row_count} more", style="dim", highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "none"
    return "–" if value is None else str(value)
