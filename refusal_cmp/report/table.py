"""The summary: a row per plan, a column per measurement."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

PLAN = ["method", "intervention", "strength", "scope", "n_components", "n_layers"]


def summary(results: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """The tidy results as one row per plan, in their order: `harmful_refusal`, …, `tiny-answers_loss`, …

    The column `degenerate` is the share over all test sets together.

    Parameters
    ----------
    labels
        The plans' labels, in the same order.
    """
    keyed = results.assign(
        plan=results.groupby(PLAN, dropna=False, sort=False).ngroup(),
        column=results["dataset"] + "_" + results["metric"],
    )
    wide = keyed.pivot(index="plan", columns="column", values="value")
    of_degenerate = keyed[keyed["metric"] == "degenerate"]
    counts = of_degenerate.assign(hits=of_degenerate["value"] * of_degenerate["n"]).groupby("plan")[["hits", "n"]].sum()
    wide["degenerate"] = counts["hits"] / counts["n"]
    facts = keyed.drop_duplicates("plan").set_index("plan")[PLAN]
    table = facts.join(wide).reset_index(drop=True)
    table.insert(0, "plan", labels)
    return table
