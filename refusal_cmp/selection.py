"""Which component to use: filters and ranking over the scores of every component (DESIGN.md, *Selection*)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import number
from refusal_cmp.scoring import PromptScores, Reach
from refusal_cmp.subspace import Component, SubspaceField

Aggregate = Literal["max", "median", "one"]


@dataclass(frozen=True)
class Filters:
    """What discards a component, and how induce scores of several multipliers become one."""

    induce_threshold: float = 0.0
    """A component whose addition leaves the mean refusal metric below this does not induce refusal."""
    kl_threshold: float = 0.1
    """A component whose removal changes harmless prompts by more than this, in nats, does too much."""
    prune_layers: float = 0.8
    """Components from layer int(prune_layers × n_layers) on are too close to the output tokens."""
    induce_aggregate: Aggregate = "max"
    """`max` or `median` over the multipliers, or `one`: at multiplier 1 only."""


@dataclass(frozen=True)
class Selection:
    """The outcome for one method."""

    method: str
    selected: Component
    fallback: bool
    """True if the filters kept nothing and the best of all was taken."""
    ranking: tuple[Component, ...]
    """All components that have a subspace and a score, best first."""
    kept: tuple[Component, ...]
    """Those of them that the filters keep."""
    missing: int
    """Components without a subspace."""
    nan: int
    """Components with a subspace whose scores are NaN; they are not ranked."""


def score_table(
    field: SubspaceField,
    scores: Mapping[Reach, PromptScores],
    multipliers: Sequence[float],
    aggregate: Aggregate,
) -> pd.DataFrame:
    """A row per component of one method: its scores, local and (if there) global, averaged over prompts."""
    rows = []
    for index, (component, subspace) in enumerate(field.subspaces.items()):
        row: dict[str, object] = {
            "method": field.method,
            "position": component.position,
            "layer": component.layer,
            "k": subspace.k,
            "accuracy": float(subspace.evidence[0]),
        }
        for reach, per_prompt in scores.items():
            induce = per_prompt.induce[index].mean(-1)
            row[f"{reach}_bypass"] = float(per_prompt.bypass[index].mean())
            row[f"{reach}_induce"] = _aggregate(induce, multipliers, aggregate)
            row[f"{reach}_kl"] = float(per_prompt.kl[index].mean())
            row |= {f"{reach}_induce@{number(m)}": float(v) for m, v in zip(multipliers, induce, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def select(table: pd.DataFrame, filters: Filters, *, n_layers: int, rank_by: Reach = "local") -> pd.DataFrame:
    """The table of one method with `dropped_by`, `kept`, `rank` and `selected`.

    Parameters
    ----------
    rank_by
        Which bypass and KL scores filter and rank; the induce filter stays at the source layer.
    """
    bypass, kl = table[f"{rank_by}_bypass"], table[f"{rank_by}_kl"]
    induce = table["local_induce"]
    failed = {
        "nan": bypass.isna() | kl.isna() | induce.isna(),
        "induce": induce < filters.induce_threshold,
        "kl": kl > filters.kl_threshold,
        "layer": table["layer"] >= int(filters.prune_layers * n_layers),
    }
    table = table.assign(dropped_by=["+".join(n for n, f in failed.items() if f[i]) for i in table.index])
    table["kept"] = table["dropped_by"] == ""
    ranked = table[~failed["nan"]].sort_values([f"{rank_by}_bypass", "layer", "position"])
    table["rank"] = pd.Series(range(1, len(ranked) + 1), index=ranked.index, dtype="Int64")
    candidates = table[table["kept"]] if table["kept"].any() else ranked
    if ranked.empty:
        raise RefusalCmpError(
            f"Every score of {table['method'].iloc[0]} is NaN, so nothing can be selected; "
            "load the model in another precision (--dtype float32 or bfloat16)."
        )
    table["selected"] = table.index == table.loc[candidates.index, "rank"].idxmin()
    return table


def outcome(table: pd.DataFrame, field: SubspaceField) -> Selection:
    """The selection that a ranked table of one method says."""
    ranked = table.dropna(subset="rank").sort_values("rank")
    components = [Component(*map(int, where)) for where in zip(ranked["position"], ranked["layer"], strict=True)]
    return Selection(
        method=field.method,
        selected=next(c for c, chosen in zip(components, ranked["selected"], strict=True) if chosen),
        fallback=not bool(ranked["kept"].any()),
        ranking=tuple(components),
        kept=tuple(c for c, kept in zip(components, ranked["kept"], strict=True) if kept),
        missing=len(field.missing),
        nan=len(table) - len(ranked),
    )


def _aggregate(induce: Float[Tensor, " m"], multipliers: Sequence[float], aggregate: Aggregate) -> float:
    if aggregate == "one":
        return float(induce[list(multipliers).index(1)])
    return float(induce.max() if aggregate == "max" else induce.quantile(0.5))
