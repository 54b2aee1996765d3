"""Tables from files: JSON, JSONL, CSV, Parquet, TXT → the names of the columns, and a row each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refusal_cmp.config import SUFFIXES
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import read_bytes, read_text

TEXT = "instruction"
"""The column that strings without one are in."""

MESSAGES = "messages"
"""The column that conversations without one are in."""

Row = Mapping[str, Any]


class Table(NamedTuple):
    """The rows of a file, and the names of its columns: one that stands twice is there twice."""

    names: Sequence[str]
    rows: Sequence[Row]


def read_table(path: Path, needed: Callable[[Sequence[str]], Iterable[str]] = tuple) -> Table:
    """The table of a file.

    Parameters
    ----------
    needed
        Which of the columns are wanted, if there is a row. Others of a Parquet file are not decoded: what is amiss in
        them does no harm.

    Raises
    ------
    RefusalCmpError
        If the file cannot be read, or is not what its ending says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RefusalCmpError(f"{path} is not a file of prompts: it must end in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        return _parquet(path, needed)
    text = read_text(path, "prompts", give="an existing file")
    if suffix == ".csv":
        return _csv(text, path)
    if suffix == ".txt":
        values: Any = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    elif suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        values = [_json(line, f"Line {number} of {path}") for number, line in lines if line.strip()]
    else:
        values = _json(text, str(path))
    if not isinstance(values, list):
        raise RefusalCmpError(f"{path} must hold a list of strings or of rows, and holds {kind_of(values)}.")
    rows = [_row(value, number, path) for number, value in enumerate(values, 1)]
    return Table(names_of(rows), rows)


def _json(text: str, what: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name in found if [key for key, _ in pairs].count(name) > 1)
            raise RefusalCmpError(f"{what} has {twice!r} twice in one object; remove one.")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise RefusalCmpError(f"{what} is not JSON ({error}); mend it.") from None


def _csv(text: str, path: Path) -> Table:
    most = csv.field_size_limit(max(1, len(text)))  # any field may be long
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    names: list[str] = []
    try:
        for fields in reader:
            if not names:
                names = fields
            elif fields:
                rows.append(_fitting(names, fields, f"Row {len(rows) + 1} of {path} (line {reader.line_num})"))
    except csv.Error as error:
        raise RefusalCmpError(f"Line {reader.line_num} of {path} is not CSV ({error}); mend it.") from None
    finally:
        csv.field_size_limit(most)
    return Table(names, rows)


def _fitting(names: Sequence[str], fields: Sequence[str], what: str) -> Row:
    if len(fields) != len(names):
        fewer = "fewer" if len(fields) < len(names) else "more"
        raise RefusalCmpError(
            f"{what} has {fewer} fields ({len(fields)}) than there are columns ({len(names)}); put text with commas or "
            "line breaks in quotes."
        )
    return dict(zip(names, fields, strict=True))


def _parquet(path: Path, needed: Callable[[Sequence[str]], Iterable[str]]) -> Table:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    content = read_bytes(path, "prompts")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        wanted = list(dict.fromkeys(needed(names))) if file.metadata.num_rows else []
        return Table(names, file.read(columns=wanted).to_pylist())
    except (OSError, ValueError, ArithmeticError, LookupError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RefusalCmpError(f"{path} is not Parquet that can be read ({reason}); mend it.") from None


def _row(value: Any, number: int, path: Path) -> Row:
    if isinstance(value, str):
        return {TEXT: value}
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value:
        return {MESSAGES: value}
    what = "and must be a string, an object, or a list of messages"
    raise RefusalCmpError(f"Row {number} of {path} is {kind_of(value)}, {what}.")


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), "text" if isinstance(value, str) else "no text")


def names_of(rows: Sequence[Row]) -> list[str]:
    """The columns that any of the rows has."""
    return list(dict.fromkeys(name for row in rows for name in row))
