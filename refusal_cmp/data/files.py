"""Prompts from local files.

A file is read as it is named, whatever lies beside it: one list, unless it has a `split` column. The files of a set by
split are given together: `x_train.csv`, `x_val.csv` and `x_test.csv` in `my` as `my/x`, `train.csv`, … as their folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from refusal_cmp.config import SUFFIXES
from refusal_cmp.data import SPLITS, Columns, Label, Prompt, Split, plain
from refusal_cmp.data.conversations import Turn, conversation, turns_of, written
from refusal_cmp.data.tables import TEXT, Row, kind_of, names_of, read_table
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import read_bytes

PROMPT_COLUMNS = (
    TEXT, "prompt", "goal", "behavior", "forbidden_prompt", "question", "request", "query", "text",
    "messages", "conversation", "conversations",
)  # fmt: skip
"""Usual names of the column that prompts are in, whatever their case; the first that a file has is read."""
PREFILL_COLUMN = "prefill"
"""How the answer to a prompt begins."""
CONTEXT_COLUMNS = {"instruction": ("input", "context"), "behavior": ("contextstring",), "question": ("context",)}
"""By prompt column, that of what some prompts are about: a part of the prompt in Alpaca, Dolly, HarmBench, SQuAD."""
CATEGORY_COLUMNS = ("category", "semanticcategory", "type", "topic")
SPLIT_COLUMN = "split"
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


SHOWN_LABELS = 8
"""Values of a label's column that an error names."""
SEEMING_LABELS = (2, 5)
"""Fewest and most values of a column that may tell kinds apart."""
LONGEST_LABEL = 20
"""Letters of such a value."""
RAREST_LABEL = 0.1
"""Least share of the rows that has it."""


class Read(NamedTuple):
    """The columns of a file that are read, where it has them."""

    prompt: str
    context: str | None
    category: str | None
    split: str | None
    label: str | None
    prefill: str | None

    @classmethod
    def of(cls, names: Sequence[str], columns: Columns, where: Path | str) -> Read:
        """Those of a file with these columns; RefusalCmpError if a wanted one is missing, or stands twice."""

        def found(*wanted: str) -> str | None:
            return _column(names, wanted, where)

        prompt = found(*(columns.prompt or PROMPT_COLUMNS))
        there = ", ".join(map(str, names))
        if prompt is None:
            wanted = " or ".join(columns.prompt) if columns.prompt else f"one of {', '.join(PROMPT_COLUMNS)}"
            raise RefusalCmpError(
                f"{where} has no column called {wanted}; its columns are {there}: name one of them.", column="NAME"
            )

        def required(wanted: str | None, setting: str) -> str | None:
            name = None if wanted is None else found(wanted)
            if wanted is not None and name is None:
                raise RefusalCmpError(
                    f"{where} has no column called {wanted}; its columns are {there}: name one of them.",
                    **{setting: "NAME"},
                )
            return name

        return cls(
            prompt=prompt,
            context=found(*CONTEXT_COLUMNS.get(prompt.lower(), ())),
            category=required(columns.category, "category_column") or found(*CATEGORY_COLUMNS),
            split=required(columns.split, "split_column") or found(SPLIT_COLUMN),
            label=required(None if columns.label is None else columns.label.column, "label_column"),
            prefill=found(PREFILL_COLUMN),
        )


def read_splits(path: Path, columns: Columns, say: Callable[[str], None]) -> dict[Split, list[Prompt]]:
    """The prompts of a file, or of the files of a set, by split; a file that is one list has it as `test`.

    Parameters
    ----------
    path
        Of a file; or of a folder of files that are named for splits, or what the names of such files begin with.
    say
        Told of rows that are left out, of columns that are joined, and of files of other splits that are not read.

    Raises
    ------
    RefusalCmpError
        If a file cannot be read, has no such column, or holds no prompt.
    """
    splits: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
    for named, file in _files(path).items():
        for split, prompt in _divided(file, named, columns, say):
            splits[split].append(prompt)
    if not any(splits.values()):
        raise RefusalCmpError(f"{path} holds no prompt; give a file with at least one.")
    if whole := _set_of(path):
        say(f"{path} is read alone; {whole} is the set with the files of the other splits beside it.")
    return splits


class Seeming(NamedTuple):
    """A column that may tell kinds of prompts apart."""

    file: Path
    column: str
    values: Counter[str]
    """How often it has each."""

    def __str__(self) -> str:
        return f"{self.file} has a column {self.column} with the values {_counted(self.values)}"


def seeming_label(path: Path, columns: Columns) -> Seeming | None:
    """A column that looks like a label where none is named: few values, each short and in many rows.

    None where there is no such column, or where a file cannot be read, which `read_splits` reports.
    """
    with suppress(RefusalCmpError):
        for file in _files(path).values():
            names, rows = read_table(file)
            read = Read.of(names, columns, file)
            for name in names if rows else ():
                if name in (read.prompt, read.context, read.split):
                    continue
                found = _few_values(rows, name)
                if found and (len(found) == 2 or name != read.category):
                    return Seeming(file, name, found)
    return None


def digests(path: Path) -> dict[str, str]:
    """A hash of the file, or of each file of the set, by path."""
    return {str(file): hashlib.sha256(read_bytes(file, "prompts")).hexdigest()[:16] for file in _files(path).values()}


def prompts_of(rows: Sequence[Row], columns: Columns, where: Path | str) -> list[Prompt]:
    """The prompts of rows whose columns are known."""
    read = Read.of(names_of(rows), columns, where) if rows else None
    return [prompt for _, prompt in _prompts(rows, read, columns, where, lambda _: None)] if read else []


def _divided(
    file: Path, named: Split | None, columns: Columns, say: Callable[[str], None]
) -> list[tuple[Split, Prompt]]:
    """The prompts of one file, each with its split; `named` is that of a file that is one of several."""
    names, rows = read_table(file, lambda names: filter(None, Read.of(names, columns, file)))
    if not rows:
        return []
    read = Read.of(names, columns, file)
    if columns.label is not None:
        rows = _labelled(rows, read, columns.label, file)
    return [(_split_of(row, read, named, file), prompt) for row, prompt in _prompts(rows, read, columns, file, say)]


def _labelled(rows: Sequence[Row], read: Read, label: Label, file: Path) -> list[Row]:
    """The rows with the label; RefusalCmpError if there are none."""
    column = read.label or label.column
    found = [row for row in rows if label.fits(row.get(column))]
    if not found:
        values = _counted(Counter(plain(row.get(column)) for row in rows))
        wanted = f"{'anything but ' * label.others}{' or '.join(sorted(label.values))}"
        raise RefusalCmpError(
            f"{file} has no row whose {column} is {wanted}; what it is: {values}. Name one of them.",
            harmful_label="VALUE",
            harmless_label="VALUE",
        )
    return found


def _few_values(rows: Sequence[Row], column: str) -> Counter[str] | None:
    """How often a column has each of its values, if they are as few and as frequent as labels."""
    found = Counter(plain(row.get(column)) for row in rows)
    fewest, most = SEEMING_LABELS
    if fewest <= len(found) <= most and max(map(len, found)) <= LONGEST_LABEL:
        return found if min(found.values()) >= max(2, RAREST_LABEL * len(rows)) else None
    return None


def _counted(values: Counter[str]) -> str:
    """`bad (66), fine (66)`."""
    return ", ".join(f"{value or 'nothing'} ({count})" for value, count in values.most_common(SHOWN_LABELS))


def _prompts(
    rows: Sequence[Row], read: Read, columns: Columns, where: Path | str, say: Callable[[str], None]
) -> list[tuple[Row, Prompt]]:
    """The rows that have a prompt, each with it."""
    found, about, answered = [], 0, 0
    for number, row in enumerate(rows, 1):
        at = f"row {number} of {where}"
        turns = _turns(row.get(read.prompt), f"{read.prompt} of {at}")
        text = "" if turns or row.get(read.prompt) == [] else _text(row.get(read.prompt), f"{read.prompt} of {at}")
        context = _text(row.get(read.context), f"{read.context} of {at}") if text and read.context else ""
        about += bool(context)
        if context and columns.prompt is None:
            text = f"{text}\n\n{context}"
        prefill = _text(row.get(read.prefill), f"{read.prefill} of {at}") if read.prefill else ""
        if turns and turns[-1].role == "assistant":
            answered += 1
            turns = turns[:-1]
        if text and prefill:
            turns = [Turn("user", text)]
        if turns:
            text = _written([*turns, *[Turn("assistant", prefill)] * bool(prefill)], at)
        if text:
            category = _label(row.get(read.category), f"{read.category} of {at}") if read.category else ""
            found.append((row, Prompt(text, category)))
    if answered:
        say(
            f"{where}: the last answer of {answered} of {len(rows)} conversations is left out, as the model gives its "
            f"own; how it is to begin stands in a column {PREFILL_COLUMN}."
        )
    if len(found) < len(rows):
        say(f"{where}: {len(rows) - len(found)} of {len(rows)} rows have no prompt and are left out.")
    if about and columns.prompt is None:
        say(
            f"{where}: {read.context} is put after {read.prompt} in the {about} of {len(rows)} rows that have both; "
            f"to read {read.prompt} alone, name it in the setting column."
        )
    elif about:
        say(f"Warning: {where}: {read.prompt} is read without {read.context}, which {about} of {len(rows)} rows have.")
    return found


def _column(names: Sequence[str], wanted: Sequence[str], where: Path | str) -> str | None:
    """The first of the wanted columns that there is: as it is written, else in another case or spacing."""
    for want in wanted:
        alike = [name for name in names if name.strip().lower() == want.lower()]
        found = [name for name in alike if name == want] or alike
        if len(found) > 1:
            raise RefusalCmpError(f"{where} has {len(found)} columns called {want}; rename or remove all but one.")
        if found:
            return found[0]
    return None


def _text(value: Any, what: str) -> str:
    if value is None or value != value:  # NaN: what a table has where a value is missing
        return ""
    if not isinstance(value, str):
        raise RefusalCmpError(f"The {what} is {kind_of(value)}, and must be text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusalCmpError(f"The {what} holds half a character (a lone surrogate); mend it.") from None
    if "\0" in value:
        raise RefusalCmpError(f"The {what} holds a NUL character; mend it.")
    return value.strip()


def _turns(value: Any, what: str) -> list[Turn]:
    """The turns of a conversation, as a list or as the text of one; none of other text."""
    if isinstance(value, str):
        turns = turns_of(value.strip())
        return list(turns) if turns[0].text != value.strip() else []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return []
    try:
        turns = turns_of(conversation(value)) if value else ()
    except RefusalCmpError as error:
        raise RefusalCmpError(f"The {what} is no conversation. {error}") from None
    return [Turn(turn.role, _text(turn.text, what)) for turn in turns]


def _written(turns: Sequence[Turn], at: str) -> str:
    try:
        return written(turns)
    except RefusalCmpError as error:
        raise RefusalCmpError(f"In {at} is no conversation. {error}") from None


def _label(value: Any, what: str) -> str:
    """A category as text in one line; what is neither text nor a number is none."""
    if isinstance(value, int | float) and value == value:
        value = str(value)
    return " ".join(_text(value, what).split()) if isinstance(value, str) else ""


def _split_of(row: Row, read: Read, named: Split | None, file: Path) -> Split:
    """The split that a row is in: as its column says, and its file, if it is one of several."""
    if read.split is None:
        return named or "test"
    value = row.get(read.split)
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise RefusalCmpError(f"The split column of {file} says {value!r}, and must say train, val or test.")
    if named not in (None, split):
        raise RefusalCmpError(
            f"The split column of {file} says {value!r}, and the file is named for {named}; mend one."
        )
    return split


def _files(path: Path) -> dict[Split | None, Path]:
    """The file itself, of no split; or, where there is none, the file of each split of the set."""
    if path.suffix.lower() in SUFFIXES or os.path.isfile(path):
        return {None: path}
    found: dict[Split | None, Path] = {}
    for file, split in _named_for_splits(path):
        if split in found:
            raise RefusalCmpError(f"{path} has two {split} files, {found[split]} and {file}; remove one.")
        found[split] = file
    if not found:
        raise RefusalCmpError(
            f"There are no prompts at {path}: neither a file, nor files such as {path}_train.json or "
            f"{path / 'train.json'}; give what there is."
        )
    return {split: found[split] for split in SPLITS if split in found}


def _named_for_splits(path: Path) -> list[tuple[Path, Split]]:
    """The files in a folder that are named for splits, and those whose names go on with a split after this path."""
    found = []
    for folder, start in ((path, ""), (path.parent, f"{re.escape(path.name)}[._-]")):
        name = re.compile(rf"{start}(?i:({'|'.join(SPLIT_NAMES)})({'|'.join(map(re.escape, SUFFIXES))}))")
        with suppress(OSError, ValueError):
            matches = [(file, name.fullmatch(file)) for file in sorted(os.listdir(folder))]
            found += [(folder / file, SPLIT_NAMES[match[1].lower()]) for file, match in matches if match]
    return found


def _set_of(path: Path) -> str:
    """What gives the set of a file that is named for a split, if there are files of others beside it."""
    name = re.fullmatch(rf"(?:(.+)[._-])?(?:{'|'.join(SPLIT_NAMES)})", path.stem, re.IGNORECASE)
    if name is None or path.suffix.lower() not in SUFFIXES:
        return ""
    whole = f"{path.parent}/{name[1] or ''}"
    return whole if len(_named_for_splits(Path(whole))) > 1 else ""
