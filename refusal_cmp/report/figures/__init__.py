"""The figures of a run; the page and `scripts/figures.py` draw the same ones."""

from __future__ import annotations

from collections.abc import Callable

from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures import (
    curves,
    inlp,
    magnitude,
    methods,
    plane,
    plans,
    rankings,
    rules,
    scores,
    similarity,
    stability,
    strengths,
    tradeoff,
)
from refusal_cmp.report.figures._style import Drawn, Outcome, Skipped, images, rendered

__all__ = ["FIGURES", "Drawn", "Outcome", "Skipped", "draw_all", "images", "rendered"]

FIGURES: dict[str, Callable[[RunData], list[Outcome]]] = {
    "plans": plans.draw,
    "methods": methods.draw,
    "tradeoff": tradeoff.draw,
    "frontier": curves.draw_frontier,
    "curves": curves.draw_curves,
    "plane": plane.draw,
    "scores": scores.draw,
    "rankings": rankings.draw,
    "rules": rules.draw,
    "inlp": inlp.draw,
    "strengths": strengths.draw,
    "similarity": similarity.draw,
    "magnitude": magnitude.draw,
    "stability": stability.draw,
}
"""By name, in the order of the page."""


def draw_all(data: RunData) -> list[Outcome]:
    """Every figure of a run, or why there is none."""
    return [outcome for draw in FIGURES.values() for outcome in draw(data)]
