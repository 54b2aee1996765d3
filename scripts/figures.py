"""The figures of finished runs for a paper, as PNG, SVG and PDF.

    python scripts/figures.py NAME|all RUN… [--out FOLDER] [--methods NAME,NAME] [--scope all]

`all` draws every figure and writes the tables in LaTeX; several runs are also drawn side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.report.data import RunData, read_run
from refusal_cmp.report.figures import FIGURES, Drawn, Outcome, rendered
from refusal_cmp.report.figures.plans import across
from refusal_cmp.report.latex import tables
from refusal_cmp.run.session import open_run

EVERY = "all"
FORMATS = ("png", "svg", "pdf")


def main(
    name: Annotated[str, typer.Argument(help=f"{EVERY}, {', '.join(FIGURES)}.")],
    runs: Annotated[list[Path], typer.Argument(help="Run directories, such as runs/tiny-refuser.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; every run has a folder of its own in it.")] = Path(
        "figures"
    ),
    methods: Annotated[str, typer.Option(help="Methods to show, joined by commas; by default all.")] = "",
    scope: Annotated[str, typer.Option(help="The one scope to show, such as single; by default all are.")] = "",
) -> None:
    """Draw a figure, or all of them with the tables in LaTeX, of one or several finished runs."""
    if name not in (EVERY, *FIGURES):
        raise unknown_name("figure", name, [EVERY, *FIGURES])
    names = FIGURES if name == EVERY else [name]
    found = [read_run(open_run(path)).only(split(methods), split(scope)) for path in runs]
    for data in found:
        write([outcome for one in names for outcome in FIGURES[one](data)], out / data.name)
        if name == EVERY:
            write_tables(data, out / data.name)
    if len(found) > 1 and "plans" in names:
        write(across(found), out)


def split(names: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in names.split(",") if name]


def write(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write figures in every format; say what they show, and why one was not drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in outcomes:
        if not isinstance(one, Drawn):
            typer.echo(f"{one.title}: not drawn, {one.why}.")
            continue
        for kind in FORMATS:
            (folder / f"{one.name}.{kind}").write_bytes(rendered(one.figure, kind))
        typer.echo(f"{folder / one.name}.{{{','.join(FORMATS)}}}: {one.says}")


def write_tables(data: RunData, folder: Path) -> None:
    """Write the tables in LaTeX."""
    for name, source in tables(data).items():
        path = folder / f"{name}.tex"
        path.write_text(source, encoding="utf-8")
        typer.echo(path)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RefusalCmpError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
