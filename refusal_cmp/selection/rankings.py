"""Do cheap local scores rank components like expensive global ones? The study behind `--compare-rankings`.

Components are correlated across layers and positions, so the textbook p-value of a rank correlation is too
small. The intervals here come from drawing the validation *prompts* anew and ranking again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import kendalltau, rankdata, spearmanr

from refusal_cmp.selection import Rule, ranked_table
from refusal_cmp.selection.scoring import PromptScores, Reach
from refusal_cmp.subspace import SubspaceField

MIN_COMPONENTS = 3
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
P_NOTE = "p takes components for independent, which they are not; the interval does not"

Array = np.ndarray


def study(
    field: SubspaceField, table: pd.DataFrame, scores: Mapping[Reach, PromptScores], rule: Rule, seed: int
) -> dict[str, Any]:
    """The agreement of one method's local and global ranking, over the kept components and over all.

    Parameters
    ----------
    table
        The ranked table of the method, from `selection.ranked_table`.
    scores
        Per-prompt scores, local and global.
    """
    rng = np.random.default_rng(seed)
    n = scores["local"].bypass.shape[1]
    draws = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    drawn = {reach: draws @ scores[reach].bypass.numpy().T for reach in ("local", "global")}  # (resamples, components)
    pools = {
        name: agreement(part, drawn)
        for name, part in (("kept", table[table["kept"]]), ("all", table[table["rank"].notna()]))
    }
    return {
        "method": field.method,
        "note": P_NOTE,
        "pools": pools,
        "regret": regret(table),
        "selected_again": _stability(field, table, scores, rule, rng),
    }


def agreement(part: pd.DataFrame, drawn: Mapping[str, Float[Array, "b c"]]) -> dict[str, Any]:
    """Rank agreement over some components: ρ with its interval, τ, and the overlap of the best.

    Parameters
    ----------
    drawn
        Mean bypass of every component, in the table's order, for each resample of the prompts.
    """
    local, all_global = part["local_bypass"].to_numpy(float), part["global_bypass"].to_numpy(float)
    row: dict[str, Any] = {"n": len(part), "rho": None}
    if len(part) < MIN_COMPONENTS:
        return row | {"why": f"fewer than {MIN_COMPONENTS} components"}
    if min(len(set(local)), len(set(all_global))) < 2:
        return row | {"why": "all scores are equal"}
    rho, tau = spearmanr(local, all_global), kendalltau(local, all_global)
    columns = part.index.to_numpy()
    low, high = np.nanpercentile(_spearman(drawn["local"][:, columns], drawn["global"][:, columns]), INTERVAL)
    best = {name: np.argsort(values, kind="stable") for name, values in (("local", local), ("global", all_global))}
    return row | {
        "rho": float(rho.statistic),
        "ci_low": float(low),
        "ci_high": float(high),
        "p": float(rho.pvalue),
        "tau": float(tau.statistic),
        "top1_match": bool(best["local"][0] == best["global"][0]),
        **{f"top{k}_overlap": _overlap(best["local"], best["global"], k) for k in (5, 10)},
    }


def regret(table: pd.DataFrame) -> float:
    """What selecting locally costs: global bypass of the local choice minus the best, over the kept components."""
    pool = table[table["kept"]] if table["kept"].any() else table[table["rank"].notna()]
    chosen = pool.sort_values(["local_bypass", "layer", "position"])["global_bypass"].iloc[0]
    return float(chosen - pool["global_bypass"].min())


def spread_out(table: pd.DataFrame, n: int) -> Int[Array, " n"]:
    """Row numbers of n components from the best to the worst local bypass, evenly."""
    order = table["local_bypass"].dropna().sort_values().index.to_numpy()
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def prediction(bypass: Sequence[float], refused: Sequence[float]) -> dict[str, Any]:
    """Does bypass at the first token predict judged refusal of whole completions? Rank correlation."""
    row: dict[str, Any] = {"n": len(bypass), "rho": None}
    if len(bypass) < MIN_COMPONENTS or min(len(set(bypass)), len(set(refused))) < 2:
        return row | {"why": "too few components, or all the same"}
    rho = spearmanr(bypass, refused)
    return row | {"rho": float(rho.statistic), "p": float(rho.pvalue)}


def _spearman(a: Float[Array, "b c"], b: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Spearman's ρ of each pair of rows: Pearson's r of their ranks."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    norms = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(1) / norms


def _overlap(a: Int[Array, " n"], b: Int[Array, " n"], k: int) -> float | None:
    """Share of the first k that two orders have in common; None if there are not more than k."""
    return len(set(a[:k]) & set(b[:k])) / k if len(a) > k else None


def _stability(
    field: SubspaceField,
    table: pd.DataFrame,
    scores: Mapping[Reach, PromptScores],
    rule: Rule,
    rng: np.random.Generator,
) -> float:
    """How often the same component is selected when the prompts of both kinds are drawn anew."""
    selected, same, repeats = int(table["selected"].to_numpy().argmax()), 0, RESAMPLES // 10
    for _ in range(repeats):
        harmful, harmless = (
            rng.integers(n, size=n) for n in (scores["local"].bypass.shape[1], scores["local"].kl.shape[1])
        )
        drawn = {
            reach: PromptScores(one.bypass[:, harmful], one.induce[..., harmless], one.kl[:, harmless])
            for reach, one in scores.items()
        }
        again = ranked_table(field, drawn, rule)
        same += int(again["selected"].to_numpy().argmax()) == selected
    return same / repeats
