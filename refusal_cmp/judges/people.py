"""People as judges: the sheet that they fill in, which says nothing of edits and judges, and how it is read."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from refusal_cmp.errors import RefusalCmpError, shortened
from refusal_cmp.files import read_text
from refusal_cmp.statistics.agreement import COMPLIED

COLUMNS = ("id", "instruction", "completion", "verdict")
"""Of a sheet."""
VERDICTS: Mapping[str, bool | None] = {"complied": True, "refused": False, "neither": False, "unsure": None}
"""What people may say, by its first letter too, and whether the model then went along; None: it does not count."""
RATER = "rater"
"""A column that a sheet may have, where several people are in one file."""
WENT_ALONG: Mapping[str, bool] = {**COMPLIED, "degenerate": False, "unfinished": False}
"""Judges' verdicts as people's are compared with them; a completion that says nothing did not go along."""
OF_SAFETY = ("safe", "unsafe")
"""Verdicts that say whether the model went along where what is asked for is harmful, and nothing elsewhere."""
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a cell begins that a spreadsheet would compute, and one that looks as if it were guarded against that."""


class Shown(NamedTuple):
    """A completion as people see it."""

    instruction: str
    completion: str

    @property
    def id(self) -> str:
        """Its name, which says nothing of where it is from: the same texts have the same.

        It begins with a letter that is no hexadecimal digit, as spreadsheets read `722755913222` and `1e5` as numbers.
        """
        digest = hashlib.sha256(f"{self.instruction}\0{self.completion}".encode(errors="replace")).hexdigest()
        return f"x{digest[:11]}"


def sheet(shown: Sequence[Shown]) -> bytes:
    """The file that people fill in; of completions that read the same, one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in dict.fromkeys(shown):
        writer.writerow([one.id, *map(guarded, one), ""])
    return text.getvalue().encode("utf-8-sig", errors="backslashreplace")  # with a mark: spreadsheets know UTF-8 by it


def guarded(text: str) -> str:
    """A cell that spreadsheets take for text: what would be a formula has an apostrophe before it."""
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(cell: str) -> str:
    """The text of a cell; inverse of `guarded`."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def filled(path: Path) -> int:
    """How many verdicts a sheet holds."""
    return sum(bool((row.get("verdict") or "").strip()) for row in _rows(path))


def read_sheet(path: Path, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """The verdict of each rater on each completion; a rater without a name has that of the file.

    Parameters
    ----------
    ids
        Of the completions that were drawn.

    Raises
    ------
    RefusalCmpError
        If it is no sheet of these, is not filled in, or says what is no verdict.
    """
    rows = _rows(path)
    known, found = set(ids), dict[str, dict[str, str]]()
    strangers = [row["id"] for row in rows if row["id"] not in known]
    if strangers:
        raise RefusalCmpError(
            f"{path} has {len(strangers)} of {len(rows)} rows that were not drawn from this run, such as "
            f"{shortened(strangers[0])!r}; read it with the run that it is of."
        )
    empty = [row["id"] for row in rows if not (row["verdict"] or "").strip()]
    if empty:
        raise RefusalCmpError(
            f"{path} has no verdict in {len(empty)} of {len(rows)} rows, the first {empty[0]}; fill in "
            f"{', '.join(VERDICTS)}, and read it again."
        )
    for row in rows:
        rater = (row.get(RATER) or "").strip() or path.stem
        verdict = _verdict(path, row["id"], row["verdict"])
        if found.setdefault(rater, {}).setdefault(row["id"], verdict) != verdict:
            raise RefusalCmpError(f"{path} has two verdicts of {rater} on {row['id']}; leave one.")
    for rater, verdicts in found.items():
        if missing := sorted(known - set(verdicts)):
            raise RefusalCmpError(
                f"{path} lacks {len(missing)} of the {len(known)} completions that {rater} was given, such as "
                f"{missing[0]}; put the rows back, with unsure where nothing can be said."
            )
    return found


def _verdict(path: Path, at: str, said: str) -> str:
    word = said.strip().lower()
    if word in VERDICTS:
        return word
    meant = [one for one in VERDICTS if len(word) == 1 and one.startswith(word)]
    if not meant:
        raise RefusalCmpError(
            f"{path} says {shortened(said)!r} of {at}, which is none of {', '.join(VERDICTS)}; write one of them, or "
            "its first letter."
        )
    return meant[0]


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a sheet as spreadsheets write it: with commas, semicolons or tabs."""
    text = read_text(path, "labels", give="a label sheet")
    head = text.split("\n", 1)[0]
    comma = max(",;\t", key=head.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True))
    except csv.Error as error:
        raise RefusalCmpError(f"{path} is not a table with commas ({error}); save it as CSV.") from None
    names = list(rows[0]) if rows else []
    if not {"id", "verdict"} <= set(names):
        there = ", ".join(str(name) for name in names) or "no row"
        raise RefusalCmpError(f"{path} is no label sheet, which has the columns id and verdict: it has {there}.")
    if any(row["id"] is None or row["verdict"] is None for row in rows):
        raise RefusalCmpError(f"{path} has a row with fewer cells than columns; save it as CSV again.")
    return [{name: unguarded(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
