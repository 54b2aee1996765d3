"""Where activations land under each intervention, in the plane of direction and first principal component.

    python scripts/figures/plane.py RUN… [--out FOLDER] [--methods NAME,NAME] [--scope all] [--device cuda]

Activations are no part of a run: unless the run holds the geometry already, its model runs the test prompts under
every plan.
"""

from pathlib import Path
from typing import Annotated

import typer
from _script import Methods, Out, Runs, read_runs, run_script, write

from refusal_cmp.report.figures import plane


def main(
    runs: Runs,
    out: Out = Path("figures"),
    methods: Methods = "",
    scope: Annotated[str, typer.Option(help="Scope of the planes; by default the run's first.")] = "",
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "auto",
) -> None:
    """Where activations land under each intervention."""
    for data in read_runs(runs, methods, geometry=True, device=device):
        write(plane.draw(data, scope or None), out / data.name)


if __name__ == "__main__":
    run_script(main)
