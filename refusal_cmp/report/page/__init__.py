"""The page: a run as one HTML file that works from disk, without a network, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_cmp.report.answer import standings
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures import Outcome, Skipped
from refusal_cmp.report.page.about import about
from refusal_cmp.report.page.completions import side_by_side
from refusal_cmp.report.page.equal_damage import calibration_table, frontier_headline
from refusal_cmp.report.page.filling import filled
from refusal_cmp.report.page.first_screen import first_screen
from refusal_cmp.report.page.images import placed_figures
from refusal_cmp.report.page.labels import labels_table
from refusal_cmp.report.page.stability import stability_section
from refusal_cmp.report.page.tables import (
    category_tables,
    judges_table,
    plans_table,
    ranking_rules_table,
    rankings_table,
    selection_table,
)
from refusal_cmp.report.page.unedited import unedited_section
from refusal_cmp.selection.rankings import FEWEST_RANKED


def render(data: RunData, outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> str:
    """The page as HTML; the same text for the same run.

    Parameters
    ----------
    images
        Each figure by name and kind, `png` and `svg`.
    """
    ranked = standings(data)
    return filled(
        "page.html",
        run=data.name,
        model=data.manifest.get("model", {}),
        answer=first_screen(data, ranked),
        frontier=frontier_headline(data.sweep),
        calibration=calibration_table(data),
        table=plans_table(data, [*ranked, *standings(data, data.unedited)]),
        unedited=unedited_section(data),
        figures=placed_figures(outcomes, images),
        skipped=[one for one in outcomes if isinstance(one, Skipped)],
        selection=selection_table(data),
        choice=data.choice,
        rankings=rankings_table(data),
        ranking_rules=ranking_rules_table(data),
        fewest_ranked=FEWEST_RANKED,
        stability=stability_section(data),
        categories=category_tables(data),
        agreement=judges_table(data),
        labels=None if data.labels is None else labels_table(data.labels),
        completions=side_by_side(data, ranked),
        about=about(data),
    )
