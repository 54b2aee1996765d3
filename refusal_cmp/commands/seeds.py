"""The same comparison with several seeds: a run for each, one after the other, and one page over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from refusal_cmp.config import STAGES
from refusal_cmp.report.figures import images
from refusal_cmp.report.figures.seeds import draw_seeds
from refusal_cmp.report.page.seeds import render_seeds
from refusal_cmp.report.seeds import read_seeds
from refusal_cmp.report.table import summary
from refusal_cmp.report.wording import counted
from refusal_cmp.run.contents import BY_SEED, CALIBRATION, CURVE, PAGE, RESULTS, SUMMARY, figure_file
from refusal_cmp.run.directory import RunDir, cell_name
from refusal_cmp.run.seeds import claim
from refusal_cmp.run.session import Session
from refusal_cmp.stages import check_stages, run_stages


def run_seeds(home: RunDir, sessions: Mapping[int, Session], stages: Sequence[str], say: Callable[[str], None]) -> None:
    """Run these stages with every seed; after the last one, write what holds over all of them.

    Parameters
    ----------
    home
        The folder of all of them.
    sessions
        By seed, each on its own run directory in that folder.
    """
    first = next(iter(sessions.values()))
    check_stages(first, stages)
    claim(home, tuple(sessions))
    for at, (seed, session) in enumerate(sessions.items(), 1):
        say(f"Seed {seed}, {at} of {counted(len(sessions), 'seed')}: {session.run.path}")
        run_stages(session, stages)
        session.release()
    if stages[-1] == STAGES[-1]:
        with home.locked():
            write_over(home, sessions)


def write_over(home: RunDir, sessions: Mapping[int, Session]) -> None:
    """Write the results over seeds, their figures and their page, unless they are there for these results."""
    sources = {
        f"{cell_name(seed)}/{name}": session.run.digest(name)
        for seed, session in sessions.items()
        for name in (RESULTS, CALIBRATION, CURVE)
        if session.run.has(name)
    }
    if home.is_fresh(PAGE, {}, sources):
        return
    data = read_seeds(home.path.resolve().name, sessions)
    outcomes = draw_seeds(data)
    pictures = images(outcomes)
    home.write_table(RESULTS, data.pooled)
    home.write_table(BY_SEED, data.by_seed)
    home.write_table(SUMMARY, summary(data.pooled))
    for (name, kind), image in pictures.items():
        home.write_bytes(figure_file(name, kind), image)
    home.write_bytes(PAGE, render_seeds(data, outcomes, pictures).encode())
    home.record(PAGE, {}, sources, also=[RESULTS, BY_SEED, SUMMARY, *(figure_file(*one) for one in pictures)])
