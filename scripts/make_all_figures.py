"""Every paper figure of one or several runs, as PNG, SVG and PDF, and their tables in LaTeX.

python scripts/make_all_figures.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parent / "figures"))

from _script import Methods, Out, Runs, read_runs, run_script, write

from refusal_cmp.report.figures import draw_all
from refusal_cmp.report.figures.plans import across
from refusal_cmp.report.latex import tables


def main(runs: Runs, out: Out = Path("figures"), methods: Methods = "") -> None:
    """Every figure of one or several runs, as PNG, SVG and PDF, and their tables in LaTeX."""
    found = read_runs(runs, methods, geometry=True)
    for data in found:
        write(draw_all(data), out / data.name)
        for name, source in tables(data).items():
            path = out / data.name / f"{name}.tex"
            path.write_text(source, encoding="utf-8")
            typer.echo(path)
    if len(found) > 1:
        write(across(found), out)


if __name__ == "__main__":
    run_script(main)
