"""Do cheap local scores rank components like expensive global ones? The study behind `--compare-rankings`.

Components are correlated across layers and positions, so the textbook p-value of a rank correlation is too
small. The intervals here come from drawing the validation *prompts* anew and ranking again, and say how the rankings
agree without the noise of a sample of prompts, which `statistics.ranks` explains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import kendalltau, spearmanr

from refusal_cmp.config import RankingRule
from refusal_cmp.selection import Rule
from refusal_cmp.selection.rule import HIGHEST, Ruled
from refusal_cmp.selection.scoring import PromptScores, Reach
from refusal_cmp.selection.stability import choices
from refusal_cmp.statistics.ranks import rank_agreement
from refusal_cmp.subspace import SubspaceField

MIN_COMPONENTS = 3
FEWEST_RANKED = 8
"""Components that it takes for a rank correlation to say anything; that of fewer takes few values, by chance any."""
REPEATS = 100
"""Draws of the prompts behind `selected_again`."""
NOTES = {
    "rho": "the noise of the scores attenuates it: a lower bound where it is below rho_noise_free, which is without, "
    "as is the interval",
    "p": "takes components for independent, which they are not; the interval does not",
}

Array = np.ndarray


def study(
    field: SubspaceField,
    table: pd.DataFrame,
    scores: Mapping[Reach, PromptScores],
    rule: Rule,
    seed: int,
    ruled: Ruled | None = None,
) -> dict[str, Any]:
    """The agreement of one method's local and global ranking, over the kept components and over all.

    Parameters
    ----------
    table
        The ranked table of the method, from `selection.ranked_table`.
    scores
        Per-prompt scores, local and global.
    ruled
        Scores by other rules, where one of them ranks; these stay as they are when prompts are drawn anew.
    """
    rng = np.random.default_rng(seed)
    bypass = {reach: scores[reach].bypass.numpy() for reach in ("local", "global")}
    pools = {
        name: agreement(part, bypass, rng)
        for name, part in (("kept", table[table["kept"]]), ("all", table[table["rank"].notna()]))
    }
    return {
        "method": field.method,
        "notes": NOTES,
        "pools": pools,
        "regret": regret(table),
        "selected_again": _stability(field, table, scores, rule, rng, ruled),
    }


def agreement(
    part: pd.DataFrame, bypass: Mapping[str, Float[Array, "components prompts"]], rng: np.random.Generator
) -> dict[str, Any]:
    """Rank agreement over some components: ρ, its interval and the rankings' reliability, τ, the overlap of the best.

    Parameters
    ----------
    bypass
        Of every component on each prompt, local and global, in the table's order.
    """
    local, all_global = part["local_bypass"].to_numpy(float), part["global_bypass"].to_numpy(float)
    row: dict[str, Any] = {"n": len(part), "rho": None}
    if len(part) < MIN_COMPONENTS:
        return row | {"why": f"fewer than {MIN_COMPONENTS} components"}
    if min(len(set(local)), len(set(all_global))) < 2:
        return row | {"why": "all scores are equal"}
    rows = part.index.to_numpy()
    found = rank_agreement(bypass["local"][rows], bypass["global"][rows], rng)
    return row | {
        "rho": found.rho,
        "rho_noise_free": found.noise_free,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "says_little": len(part) < FEWEST_RANKED,
        "reliability_local": found.reliability[0],
        "reliability_global": found.reliability[1],
        "p": float(spearmanr(local, all_global).pvalue),
        **_order(local, all_global),
    }


def against_exact(table: pd.DataFrame, name: RankingRule, reach: Reach, exact: Reach) -> dict[str, Any]:
    """How a rule's scores rank the components that exact scores rank, and its regret.

    Over the kept ones, over those that the KL filter keeps, whose removal changes little, and over all. ρ is without an
    interval: it says how far an estimate is right about the scores on the same prompts.
    """
    sign = -1.0 if name in HIGHEST else 1.0
    table = table[table["rank"].notna() & table[f"{reach}_{name}"].notna()]
    pools: dict[str, dict[str, Any]] = {}
    small = table[~table["dropped_by"].str.contains("kl")]
    for pool, part in (("kept", table[table["kept"]]), ("within_kl", small), ("all", table)):
        scores, bypass = sign * part[f"{reach}_{name}"].to_numpy(float), part[f"{exact}_bypass"].to_numpy(float)
        if len(part) < MIN_COMPONENTS or min(len(set(scores)), len(set(bypass))) < 2:
            pools[pool] = {"n": len(part), "rho": None, "why": "too few components, or all the same"}
            continue
        rho = float(spearmanr(scores, bypass).statistic)
        pools[pool] = {"n": len(part), "rho": rho, "says_little": len(part) < FEWEST_RANKED, **_order(scores, bypass)}
    among = table[table["kept"]] if table["kept"].any() else table
    first = int((sign * among[f"{reach}_{name}"]).argmin())
    best = among[f"{exact}_bypass"]
    return {"pools": pools, "regret": float(best.iloc[first] - best.min())}


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


def _order(one: Float[Array, " n"], other: Float[Array, " n"]) -> dict[str, Any]:
    """Kendall's τ of two scores, whether the lowest is the same, and how many of the lowest they have in common."""
    first, second = np.argsort(one, kind="stable"), np.argsort(other, kind="stable")
    return {
        "tau": float(kendalltau(one, other).statistic),
        "top1_match": bool(first[0] == second[0]),
        **{f"top{k}_overlap": _overlap(first, second, k) for k in (5, 10)},
    }


def _overlap(a: Int[Array, " n"], b: Int[Array, " n"], k: int) -> float | None:
    """Share of the first k that two orders have in common; None if there are not more than k."""
    return len(set(a[:k]) & set(b[:k])) / k if len(a) > k else None


def _stability(
    field: SubspaceField,
    table: pd.DataFrame,
    scores: Mapping[Reach, PromptScores],
    rule: Rule,
    rng: np.random.Generator,
    ruled: Ruled | None,
) -> float:
    """How often the same component is selected when the prompts of both kinds are drawn anew."""
    selected = int(table["selected"].to_numpy().argmax())
    return [*choices(field, scores, rule, rng, REPEATS, ruled)].count(selected) / REPEATS
