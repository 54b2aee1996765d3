"""What the figure scripts share: the command line, and writing every format for every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import RunData, read_run
from refusal_cmp.report.figures import Drawn, Outcome, rendered
from refusal_cmp.run.session import open_run
from refusal_cmp.stages.report import measure_geometry

FORMATS = ("png", "svg", "pdf")

Runs = Annotated[list[Path], typer.Argument(help="Run directories, such as runs/tiny-refuser.")]
Out = Annotated[Path, typer.Option(help="Folder to write to; every run has a folder of its own in it.")]
Methods = Annotated[str, typer.Option(help="Methods to show, joined by commas; by default all.")]


def figure_script(
    draw: Callable[[RunData], list[Outcome]],
    about: str | None,
    *,
    across: Callable[[Sequence[RunData]], list[Outcome]] | None = None,
) -> None:
    """Run as a script: parse the command line, draw for every run, and write PNG, SVG and PDF.

    Parameters
    ----------
    about
        The script's docstring.
    across
        What to draw of several runs together.
    """

    def command(runs: Runs, out: Out = Path("figures"), methods: Methods = "") -> None:
        found = read_runs(runs, methods)
        for data in found:
            write(draw(data), out / data.name)
        if across is not None and len(found) > 1:
            write(across(found), out)

    command.__doc__ = about
    run_script(command)


def run_script(command: Callable[..., None]) -> None:
    """Run a command; a mistake that the user can mend is one sentence and exit code 2."""
    try:
        typer.run(command)
    except RefusalCmpError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None


def read_runs(
    runs: Sequence[Path], methods: str = "", *, geometry: bool = False, device: str = "auto"
) -> list[RunData]:
    """What the run directories say, of all methods or of those named.

    Parameters
    ----------
    geometry
        Whether to know where activations land; where a run does not hold it, its model runs on `device`.
    """
    found = []
    for path in runs:
        session = open_run(path, device=device)
        session.say = lambda message: typer.echo(message, err=True)
        data = read_run(session, measure_geometry(session) if geometry else None)
        found.append(data.only(methods.split(",")) if methods else data)
    return found


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
