"""Which component to use: filters and ranking over the scores of every component (DESIGN.md, *Selection*)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.config import RankingRule, RankKey, RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import number
from refusal_cmp.registry import parse_spec
from refusal_cmp.selection.scoring import PromptScores, Reach
from refusal_cmp.subspace import Component, SubspaceField

Aggregate = Literal["max", "median", "one"]
RULES: tuple[RankingRule, ...] = get_args(RankingRule)
"""Scores beside bypass that can rank; each is a column of the table where it was made."""
HIGHEST: tuple[RankingRule, ...] = ("cosmic",)
"""Those of them of which the highest is the best."""
Ruled = Mapping[tuple[RankingRule, Reach], Float[Tensor, "c m"]]
"""Scores of every component by rules: on each prompt, or in parts that are added up."""
STEPS = (1, 2, 5)
"""Where the filters keep nothing the KL budget goes from the threshold through these and their tenfolds."""
SUPPRESSES_WITHIN = 10
"""Times the threshold that it may grow to until a component is within it whose removal suppresses refusal."""

HALF = 0.5
"""Of the refusal that a component might remove: one that removes less is told of, with what it was preferred to."""


@dataclass(frozen=True)
class Rule:
    """What discards a component, and what ranks those that are left."""

    induce_threshold: float = 0.0
    """A component whose addition leaves the mean refusal metric below this does not induce refusal."""
    kl_threshold: float = 0.1
    """A component whose removal changes harmless prompts by more than this, in nats, does too much."""
    prune_layers: float = 0.8
    """Components from layer int(prune_layers × n_layers) on are too close to the output tokens."""
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the activation additions behind the induce score."""
    induce_aggregate: Aggregate = "max"
    """`max` or `median` over the multipliers, or `one`: at multiplier 1 only."""
    rank_by: Reach = "local"
    """Which bypass and KL scores filter and rank; the induce filter stays at the source layer."""
    rank_key: RankKey = "bypass"
    """`accuracy-then-bypass` ranks by the first classifier's dev accuracy, and by bypass among equals, as
    published for INLP; `cosmic` and `attribution` rank by those scores, and by bypass among equals."""

    def __post_init__(self) -> None:
        if not self.kl_threshold > 0:
            raise RefusalCmpError(f"A KL threshold is above 0, or nothing is within it, and is {self.kl_threshold}.")

    @classmethod
    def of(cls, config: RunConfig, method: str) -> Rule:
        """The rule that a run's settings make for a method."""
        return cls(
            induce_threshold=config.induce_threshold,
            kl_threshold=config.kl_threshold,
            prune_layers=config.prune_layers,
            multipliers=config.induce_multipliers,
            induce_aggregate=config.induce_aggregate,
            rank_by=config.rank_by,
            rank_key=config.rank_key_of.get(parse_spec(method)[0], config.rank_key),
        )


@dataclass(frozen=True)
class Selection:
    """The outcome for one method."""

    method: str
    selected: Component
    fallback: bool
    """True if the filters kept nothing and were relaxed."""
    kl_budget: float
    """The KL that the choice was limited to, in nats: the threshold, or what it was relaxed to."""
    relaxed: Mapping[str, float]
    """The settings under which the filters would keep the selected component; none unless they were relaxed."""
    dropped: Mapping[str, int]
    """How many components each filter discards; several may discard the same one."""
    ranking: tuple[Component, ...]
    """All components that have a subspace and a score, best first."""
    kept: tuple[Component, ...]
    """Those of them that the filters keep."""
    missing: int
    """Components without a subspace."""
    nan: int
    """Components with a subspace whose scores are NaN; they are not ranked."""
    layers: int
    """Those below this can be selected from."""

    @property
    def options(self) -> str:
        """`relaxed` as it would be typed."""
        return " ".join(f"--{name.replace('_', '-')} {number(value)}" for name, value in self.relaxed.items())

    @property
    def note(self) -> str:
        """What readers have to know of the choice: how far the filters were relaxed for it, or nothing."""
        words = {"kl_threshold": "KL budget {} nats", "induce_threshold": "induce from {}", "prune_layers": "any layer"}
        how = ", ".join(words[name].format(number(value)) for name, value in self.relaxed.items())
        return f"fallback: {how}" if self.fallback else ""

    def pool(self, order: str, *, everywhere: bool = False) -> tuple[Component, ...]:
        """What scopes take components from: the ranking; or, `kept-first`, those that can be selected, the kept first.

        Where the filters keep none, the selected one is first: the best by bypass may be those that destroy the model.
        `everywhere`: components that cannot be selected, if they were scored, come after them.
        """
        if order == "all":
            return self.ranking
        others = (component for component in self.ranking if everywhere or component.layer < self.layers)
        return tuple(dict.fromkeys((*self.kept, self.selected, *others)))


def ranked_table(
    field: SubspaceField, scores: Mapping[Reach, PromptScores], rule: Rule, ruled: Ruled | None = None
) -> pd.DataFrame:
    """A row per component of one method, scored, filtered and ranked by the rule."""
    return select(score_table(field, scores, rule, ruled), rule, field.means.n_layers)


def score_table(
    field: SubspaceField, scores: Mapping[Reach, PromptScores], rule: Rule, ruled: Ruled | None = None
) -> pd.DataFrame:
    """A row per component of one method: its scores, local and (if there) global, averaged over prompts.

    Parameters
    ----------
    ruled
        Its scores by other rules.
    """
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
            row[f"{reach}_induce"] = _aggregate(induce, rule)
            row[f"{reach}_kl"] = float(per_prompt.kl[index].mean())
            row |= {f"{reach}_induce@{number(m)}": float(v) for m, v in zip(rule.multipliers, induce, strict=True)}
        for (name, reach), score in (ruled or {}).items():
            row[f"{reach}_{name}"] = float(score[index].sum() if name in HIGHEST else score[index].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def select(table: pd.DataFrame, rule: Rule, n_layers: int) -> pd.DataFrame:
    """The table of one method with `key`, `dropped_by`, `kept`, `rank`, `kl_budget` and `selected`."""
    kl, induce = table[f"{rule.rank_by}_kl"], table["local_induce"]
    ruled = [f"{rule.rank_by}_{rule.rank_key}"] if rule.rank_key in RULES else []
    needed = [f"{rule.rank_by}_bypass", f"{rule.rank_by}_kl", "local_induce", *ruled]
    failed = {
        "nan": table[needed].isna().any(axis=1),
        "induce": induce < rule.induce_threshold,
        "kl": kl > rule.kl_threshold,
        "layer": table["layer"] >= int(rule.prune_layers * n_layers),
    }
    table = table.assign(dropped_by=["+".join(n for n, f in failed.items() if f[i]) for i in table.index])
    table["kept"] = table["dropped_by"] == ""
    table["key"] = f"{rule.rank_by}_{rule.rank_key}"
    keys = [f"{rule.rank_by}_bypass", "layer", "position"]
    ascending = [True, True, True]
    if rule.rank_key == "accuracy-then-bypass":
        keys, ascending = ["accuracy", *keys], [False, *ascending]
    elif ruled:
        keys, ascending = [*ruled, *keys], [rule.rank_key not in HIGHEST, *ascending]
    ranked = table[~failed["nan"]].sort_values(keys, ascending=ascending)
    if ranked.empty:
        raise RefusalCmpError(
            f"Every score of {table['method'].iloc[0]} is NaN, so nothing can be selected; "
            "load the model in another precision.",
            dtype="float32 or bfloat16",
        )
    table["rank"] = pd.Series(range(1, len(ranked) + 1), index=ranked.index, dtype="Int64")
    candidates, table["kl_budget"] = _candidates(table, rule)
    table["selected"] = table.index == candidates["rank"].idxmin()
    return table


def _candidates(table: pd.DataFrame, rule: Rule) -> tuple[pd.DataFrame, float]:
    """What the filters keep, and the KL budget; where they keep nothing, what they keep once they are relaxed.

    The KL budget grows until something is within it that meets the induce filter and whose removal suppresses refusal
    (bypass < 0); where nothing does within ten times the threshold, until something meets the induce filter. Where
    nothing meets that at any budget, it is given up, and the budget begins again at the threshold. The layer limit
    stands: the last layers write the output tokens, and their removal is no removal of refusal.
    """
    scored = table[table["rank"].notna()]
    pool = scored[~_drops(scored, "layer")]
    if pool.empty and len(scored) > 1:
        raise RefusalCmpError(
            f"All {len(scored)} components of {table['method'].iloc[0]} are in layers that the setting prune-layers "
            f"({number(rule.prune_layers)}) leaves out, so nothing can be selected; raise it."
        )
    if pool.empty:
        pool = scored  # a direction that was given for one component leaves no choice
    if not _drops(pool, "induce").all():
        pool = pool[~_drops(pool, "induce")]
    kl = pool[f"{rule.rank_by}_kl"]
    if (kl <= rule.kl_threshold).any():
        return pool[kl <= rule.kl_threshold], rule.kl_threshold
    suppressing = kl[(pool[f"{rule.rank_by}_bypass"] < 0) & (kl <= SUPPRESSES_WITHIN * rule.kl_threshold)]
    least = kl.min() if suppressing.empty else suppressing.min()
    budget = next(budget for budget in _budgets(rule.kl_threshold) if budget >= least)
    return pool[kl <= budget], budget


def _budgets(threshold: float) -> Iterator[float]:
    """1, 2, 5, 10, 20, 50, … times the threshold, without end."""
    for decade in count():
        yield from (step * 10**decade * threshold for step in STEPS)


def _drops(table: pd.DataFrame, name: str) -> pd.Series[bool]:
    return table["dropped_by"].str.contains(name)


def outcome(table: pd.DataFrame, field: SubspaceField, rule: Rule) -> Selection:
    """The selection that a table of one method, ranked by a rule, says."""
    ranked = table.dropna(subset="rank").sort_values("rank")
    components = [Component(*map(int, where)) for where in zip(ranked["position"], ranked["layer"], strict=True)]
    selected = ranked[ranked["selected"]].iloc[0]
    reasons = table["dropped_by"].str.split("+").explode()
    return Selection(
        method=field.method,
        selected=Component(int(selected["position"]), int(selected["layer"])),
        fallback=not selected["kept"],
        kl_budget=float(selected["kl_budget"]),
        relaxed=_keeping(selected),
        dropped={str(name): n for name, n in reasons[reasons != ""].value_counts().sort_index().items()},
        ranking=tuple(components),
        kept=tuple(c for c, kept in zip(components, ranked["kept"], strict=True) if kept),
        missing=len(field.missing),
        nan=len(table) - len(ranked),
        layers=int(rule.prune_layers * field.means.n_layers),
    )


class Missed(NamedTuple):
    """A component whose removal takes away much more refusal than the selected one's, and changes more besides."""

    component: Component
    bypass: float
    kl: float
    instead: float
    """The bypass score of the selected component."""

    def sentence(self, unedited: float, threshold: float) -> str:
        """What was selected and what was missed, with a KL threshold at which it would not be."""
        larger = next(budget for budget in _budgets(threshold) if budget >= self.kl)
        return (
            f"Its removal takes the log-odds of refusal from {_digits(unedited)} to {_digits(self.instead)} only; that "
            f"at {self.component} would take them to {_digits(self.bypass)}, at a KL of {_digits(self.kl)} nats "
            f"(--kl-threshold {number(larger)})."
        )


def missed(table: pd.DataFrame, rule: Rule, unedited: float) -> Missed | None:
    """What the KL filter alone keeps from being selected, if the selected component removes not half as much.

    Among components of one method's table that no other filter drops, at up to ten times the KL threshold.

    Parameters
    ----------
    unedited
        The refusal metric that removal begins from: of the unedited model, on harmful validation prompts.
    """
    bypass, kl = f"{rule.rank_by}_bypass", f"{rule.rank_by}_kl"
    selected = table[table["selected"].astype(bool)].iloc[0]
    scored = table[table["rank"].notna() & (table[kl] <= SUPPRESSES_WITHIN * rule.kl_threshold)]
    open_to_it = scored[scored["dropped_by"].fillna("").isin(["", "kl"])]
    if open_to_it.empty:
        return None
    best = open_to_it.sort_values([bypass, "layer"]).iloc[0]
    removed, removable = unedited - float(selected[bypass]), unedited - float(best[bypass])
    if removable <= 0 or removed >= HALF * removable or float(best[kl]) <= float(selected["kl_budget"]):
        return None
    component = Component(int(best["position"]), int(best["layer"]))
    return Missed(component, float(best[bypass]), float(best[kl]), float(selected[bypass]))


def _digits(value: float) -> str:
    """A number to two digits, whatever its size: −0.04 is not 0."""
    return f"{value:.2g}".replace("-", "−")


def _keeping(selected: pd.Series[Any]) -> dict[str, float]:
    """The settings under which the filters that discard the selected component would keep it."""
    settings = {
        "kl": ("kl_threshold", float(selected["kl_budget"])),
        "induce": ("induce_threshold", math.floor(100 * selected["local_induce"]) / 100),
        "layer": ("prune_layers", 1.0),
    }
    return dict(settings[name] for name in selected["dropped_by"].split("+") if name)


def _aggregate(induce: Float[Tensor, " m"], rule: Rule) -> float:
    if rule.induce_aggregate == "one":
        return float(induce[rule.multipliers.index(1)])
    return float(induce.max() if rule.induce_aggregate == "max" else induce.quantile(0.5))
