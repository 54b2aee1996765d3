"""The figures of finished runs for a paper, as PNG, SVG and PDF.

    python scripts/figures.py NAME|all RUN… [--out FOLDER] [--methods NAME,NAME] [--scope all]
        [--venue neurips] [--width column]

With `--width column` the figures of the main result (plans, tradeoff, scores) are as wide as one column of the
venue's template, panels below each other. `all` draws every figure, and writes the tables and a paragraph on the
method in LaTeX, and the works that it cites in BibTeX; several runs are also drawn side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.report.citations import bibtex, works_of
from refusal_cmp.report.data import RunData, read_run
from refusal_cmp.report.figures import FIGURES, Drawn, Outcome, rendered
from refusal_cmp.report.figures._style import VENUES, WIDTHS, venue
from refusal_cmp.report.figures.plans import across
from refusal_cmp.report.figures.seeds import draw_seeds
from refusal_cmp.report.latex import seeds_tables, tables
from refusal_cmp.report.method_text import method_text, method_text_over_seeds
from refusal_cmp.report.seeds import SeedsData, read_seeds
from refusal_cmp.run.seeds import open_seeds
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
    size: Annotated[
        str, typer.Option("--venue", help=f"Whose template the figures are as wide as: {', '.join(VENUES)}.")
    ] = "any",
    width: Annotated[
        str,
        typer.Option(
            help="page, or column: plans, tradeoff, scores and runs side by side as wide as the venue's column, for "
            "which plans and trade-offs are drawn one panel below the other, in several figures where one would be "
            "taller than a page. Other figures have the width that they need, a column or a page."
        ),
    ] = "page",
    scope: Annotated[str, typer.Option(help="The one scope to show, such as single; by default all are.")] = "",
) -> None:
    """Draw a figure, or all of them with what else a paper takes, of one or several finished runs."""
    if name not in (EVERY, *FIGURES):
        raise unknown_name("figure", name, [EVERY, *FIGURES])
    if size not in VENUES:
        raise unknown_name("venue", size, VENUES)
    if width not in WIDTHS:
        raise unknown_name("width", width, WIDTHS)
    names = FIGURES if name == EVERY else [name]
    over = {path: sessions for path in runs if (sessions := open_seeds(path))}
    found = [read_run(open_run(path)).only(split(methods), split(scope)) for path in runs if path not in over]
    with venue(size, width):
        for path, sessions in over.items():
            write_over_seeds(read_seeds(path.resolve().name, sessions).only(split(methods), split(scope)), names, out)
        for data in found:
            write([outcome for one in names for outcome in FIGURES[one](data)], out / data.name)
            if name == EVERY:
                write_texts(data, out / data.name)
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


def write_over_seeds(data: SeedsData, names: Sequence[str], out: Path) -> None:
    """Write what a folder of runs with several seeds gives: the figures that hold over all of them, and the tables."""
    every = len(names) == len(FIGURES)
    write([one for one in draw_seeds(data) if every or one.name.split("-")[0] in names], out / data.name)
    if every:
        write_sources(seeds_tables(data), method_text_over_seeds(data), data.first, out / data.name)


def write_texts(data: RunData, folder: Path) -> None:
    """Write what goes into a paper beside the figures."""
    write_sources(tables(data), method_text(data), data, folder)


def write_sources(tables: Mapping[str, str], method: str, data: RunData, folder: Path) -> None:
    """Write tables in LaTeX, a paragraph on the method, and the works that it cites."""
    texts = {f"{name}.tex": source for name, source in tables.items()}
    texts |= {"method.tex": method, "references.bib": bibtex(works_of(data.config))}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        typer.echo(folder / name)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RefusalCmpError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
