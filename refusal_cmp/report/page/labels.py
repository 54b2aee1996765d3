"""How far judges agree with people, where they were asked, for the page and the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusal_cmp.report.wording import bracketed, counted, decimal, percent

EVERY = "all"
LEAST = 3
"""Plans that are named, of those under which judge and people agree least."""
FEWEST = 3
"""Completions of a plan that it takes."""


def labels_table(found: pd.DataFrame) -> dict[str, Any]:
    """A row per judge, a sentence on people among themselves, and the plans of the least agreement."""
    over = found[(found["plan"] == EVERY) & (found["judge"] != "people")]
    among = found[found["judge"] == "people"].iloc[0]
    return {
        "judges": [
            {
                "judge": str(one["judge"]),
                "n": f"{one['n']:.0f} ({counted(int(one['n_prompts']), 'prompt')})",
                "agreement": f"{percent(one['agreement'])} [{100 * one['ci_low']:.0f}, {100 * one['ci_high']:.0f}]",
                "kappa": _kappa(one),
                "judge_only": percent(one["judge_only"]),
                "people_only": percent(one["people_only"]),
            }
            for one in over.to_dict("records")
        ],
        "people": _people(among.to_dict()),
        "plans": ", ".join(_least(found)),
    }


def _kappa(row: dict[Any, Any]) -> str:
    if pd.isna(row["kappa"]):
        return "–"
    if pd.isna(row["kappa_low"]):
        return decimal(row["kappa"])
    return f"{decimal(row['kappa'])} {bracketed(row['kappa_low'], row['kappa_high'])}"


def _people(row: dict[Any, Any]) -> str:
    if row["raters"] < 2:
        return f"One rater, {counted(int(row['n']), 'text')}."
    alpha = "undefined, as all say the same" if pd.isna(row["kappa"]) else decimal(row["kappa"])
    return f"{row['raters']:.0f} raters, {counted(int(row['n']), 'text')}; Krippendorff’s α among them: {alpha}."


def _least(found: pd.DataFrame) -> list[str]:
    plans = found[(found["plan"] != EVERY) & (found["n"] >= FEWEST) & (found["agreement"] < 1)]
    worst = plans.sort_values(["agreement", "plan"]).head(LEAST)
    return [f"{row['plan']} ({row['judge']}, {percent(row['agreement'])})" for row in worst.to_dict("records")]
