"""Where activations land under every plan, as the evaluator `geometry` left it in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from refusal_cmp.config import KINDS
from refusal_cmp.evals.geometry import AT_LAST
from refusal_cmp.plan import BASELINE
from refusal_cmp.run.contents import read_examples, read_selections
from refusal_cmp.run.session import Session
from refusal_cmp.subspace import Component

EVALUATOR = "geometry"
PLACES = ("", AT_LAST)
"""At the selected component, and on entry to the last block."""


@dataclass(frozen=True)
class Landing:
    """Where the mean harmful activation lands, as shares of the distance between the two unedited means."""

    along: float
    """How far along the way from the harmless (0) to the harmful mean (1)."""
    to_harmful: float
    """Distance to the unedited harmful mean."""
    to_harmless: float
    """Distance to the unedited harmless mean."""

    @property
    def word(self) -> str:
        """The landing in a word, from `past` the harmful mean to `beyond` the harmless one; `aside` where it is
        further from the line through the two than they are apart, or not finite."""
        if not self.to_harmless**2 - self.along**2 <= 1:
            return "aside"
        for name, least in (("past", 1.2), ("harmful", 0.8), ("between", 0.2), ("harmless", -0.2)):
            if self.along > least:
                return name
        return "beyond"


@dataclass(frozen=True)
class Landings:
    """What the evaluator `geometry` found."""

    planes: Mapping[tuple[str, str], Float[np.ndarray, "2 n 2"]]
    """By method and plan (or `baseline`): harmful and harmless prompts, in the plane of the method."""
    landings: Mapping[str, tuple[Landing, ...]]
    """By plan: at the selected component, and on entry to the last block."""
    components: Mapping[str, Component]
    """By method."""


def read_landings(session: Session, results: pd.DataFrame, labels: Sequence[str]) -> Landings | None:
    """The landings of the distinct plans with these labels; None if the evaluator was not asked.

    Parameters
    ----------
    results
        `results.csv`.
    """
    planes = {
        (method, label): np.array([[row["plane"][method] for row in rows] for rows in of_kinds])
        for label in labels
        for of_kinds in [[read_examples(session, label, EVALUATOR, kind) for kind in KINDS]]
        if all(of_kinds)
        for method in of_kinds[0][0]["plane"]
    }
    if not any(label == BASELINE for _, label in planes):
        return None
    of_metrics = results[results["dataset"] == KINDS[0]].set_index(["plan", "metric"])["value"]
    landings = {
        label: tuple(
            Landing(
                *(float(of_metrics[label, f"landing{what}{place}"]) for what in ("", "_to_harmful", "_to_harmless"))
            )
            for place in PLACES
        )
        for label in labels
        if (label, "landing") in of_metrics.index
    }
    components = {one.method: one.selected for one in read_selections(session)}
    return Landings(planes, landings, components)
