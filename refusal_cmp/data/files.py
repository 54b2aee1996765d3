"""Prompts from local files: JSON, JSONL, CSV, Parquet, TXT.

A file is a list of rows, or of plain strings. Its rows are divided by a `split` column or by the files beside it
(`x_train.csv`, `x_val.csv`, `x_test.csv`); a file without either is one list.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refusal_cmp.config import SUFFIXES
from refusal_cmp.data import SPLITS, Columns, Prompt, Split
from refusal_cmp.errors import RefusalCmpError

PROMPT_COLUMNS = (
    "instruction", "prompt", "goal", "behavior", "forbidden_prompt", "question", "request", "query", "text",
)  # fmt: skip
"""Usual names of the column that prompts are in, whatever their case; the first that a file has is read."""
CATEGORY_COLUMNS = ("category", "semanticcategory", "type", "topic")
SPLIT_COLUMN = "split"
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SIBLING = re.compile(rf"(?P<before>.*[._-])?(?P<split>{'|'.join(SPLIT_NAMES)})", re.IGNORECASE)

Row = Mapping[str, Any]


def read_splits(path: Path, columns: Columns, say: Callable[[str], None]) -> dict[Split, list[Prompt]]:
    """The prompts of a file by split; a file that is one list has it as `test`.

    Raises
    ------
    RefusalCmpError
        If a file cannot be read, has no such column, or holds no prompt.
    """
    splits: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    files = _siblings(path)
    for split, file in files.items():
        rows = read_rows(file)
        column = _column(rows, (SPLIT_COLUMN,)) if len(files) == 1 else None
        for row, prompt in _prompts(rows, columns, file, say):
            splits[_split_of(row.get(column), file) if column else split].append(prompt)
    if not any(splits.values()):
        raise RefusalCmpError(f"{path} holds no prompt; give a file with at least one.")
    return splits


def digests(path: Path) -> dict[str, str]:
    """A hash of the file, and of those that hold its other splits, by path."""
    return {str(file): hashlib.sha256(_bytes(file)).hexdigest()[:16] for file in _siblings(path).values()}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; strings become rows with an `instruction`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RefusalCmpError(f"{path} is not a file of prompts: it must end in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        return _parquet(path)
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusalCmpError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    if suffix == ".csv":
        return _csv(text, path)
    if suffix == ".txt":
        values: Any = [line.strip() for line in text.split("\n") if line.strip()]
    elif suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        values = [_json(line, f"Line {number} of {path}") for number, line in lines if line.strip()]
    else:
        values = _json(text, str(path))
    if not isinstance(values, list):
        raise RefusalCmpError(f"{path} must hold a list of strings or of rows, and holds {_kind(values)}.")
    return [_row(value, number, path) for number, value in enumerate(values, 1)]


def prompts_of(rows: Sequence[Row], columns: Columns, where: Path | str) -> list[Prompt]:
    """The prompts of rows whose columns are known."""
    return [prompt for _, prompt in _prompts(rows, columns, where, lambda _: None)]


def _prompts(
    rows: Sequence[Row], columns: Columns, where: Path | str, say: Callable[[str], None]
) -> list[tuple[Row, Prompt]]:
    if not rows:
        return []
    column = _column(rows, columns.prompt or PROMPT_COLUMNS)
    names = ", ".join(rows[0])
    if column is None:
        wanted = " or ".join(columns.prompt) if columns.prompt else f"one of {', '.join(PROMPT_COLUMNS)}"
        raise RefusalCmpError(
            f"{where} has no column called {wanted}; its columns are {names}: name one of them.", column="NAME"
        )
    category = _column(rows, (columns.category,) if columns.category else CATEGORY_COLUMNS)
    if columns.category and category is None:
        raise RefusalCmpError(
            f"{where} has no column called {columns.category}; its columns are {names}: name one of them.",
            category_column="NAME",
        )
    found = []
    for number, row in enumerate(rows, 1):
        text = _text(row.get(column), f"{column} of row {number} of {where}")
        if text:
            found.append((row, Prompt(text, "" if category is None else _label(row.get(category)))))
    if len(found) < len(rows):
        say(f"{where}: {len(rows) - len(found)} of {len(rows)} rows have no prompt and are left out.")
    return found


def _column(rows: Sequence[Row], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that the rows have, whatever its case."""
    there = {name.lower(): name for row in rows for name in row}
    return next((there[name.lower()] for name in wanted if name.lower() in there), None)


def _text(value: Any, what: str) -> str:
    if value is None or value != value:  # NaN: what a table has where a value is missing
        return ""
    if not isinstance(value, str):
        raise RefusalCmpError(f"The {what} is {_kind(value)}, and must be text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusalCmpError(f"The {what} holds half a character (a lone surrogate); mend it.") from None
    return value.strip()


def _label(value: Any) -> str:
    """A category as text; what is neither text nor a number is none."""
    return str(value).encode(errors="replace").decode().strip() if isinstance(value, str | int | float) else ""


def _split_of(value: Any, file: Path) -> Split:
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise RefusalCmpError(f"The split column of {file} says {value!r}, and must say train, val or test.")
    return split


def _siblings(path: Path) -> dict[Split, Path]:
    """The files of every split, if there are others beside one that is named for a split; else this one alone."""
    match = _SIBLING.fullmatch(path.stem)
    if match is None:
        return {"test": path}
    found: dict[Split, Path] = {}
    for name, split in SPLIT_NAMES.items():
        sibling = path.with_name(f"{match['before'] or ''}{name}{path.suffix}")
        if sibling.is_file():
            found.setdefault(split, sibling)
    found[SPLIT_NAMES[match["split"].lower()]] = path
    return found if len(found) > 1 else {"test": path}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RefusalCmpError(f"Cannot read the prompts {path}: {reason}; give an existing file.") from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusalCmpError(f"{what} is not JSON ({error}); mend it.") from None


def _csv(text: str, path: Path) -> list[Row]:
    reader: csv.DictReader[str] = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows: list[Row] = list(reader)
    except csv.Error as error:
        raise RefusalCmpError(f"Line {reader.reader.line_num} of {path} is not CSV ({error}); mend it.") from None
    for number, row in enumerate(rows, 1):
        if None in row:
            raise RefusalCmpError(
                f"Row {number} of {path} has more fields than there are columns; put text with commas in quotes."
            )
    return rows


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    _bytes(path)
    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RefusalCmpError(f"{path} is not Parquet ({str(error).splitlines()[0]}); mend it.") from None
    return rows


def _row(value: Any, number: int, path: Path) -> Row:
    if isinstance(value, str):
        return {PROMPT_COLUMNS[0]: value}
    if isinstance(value, dict):
        return value
    raise RefusalCmpError(f"Row {number} of {path} is {_kind(value)}, and must be a string or an object.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), "text" if isinstance(value, str) else "no text")
