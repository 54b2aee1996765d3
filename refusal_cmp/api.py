"""The short way in from Python: prompts → subspaces → a plan. The stages do the same with files between."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from refusal_cmp.calibration.calibrate import calibrate as calibrated
from refusal_cmp.calibration.curves import Refusal, strengths_within, sweep
from refusal_cmp.calibration.damage import MEASURES, Meter
from refusal_cmp.calibration.search import Found, Tried
from refusal_cmp.calibration.varied import Varied, check_varied, varied
from refusal_cmp.config import RankingRule, load_config
from refusal_cmp.data import SPLITS, Columns, Split
from refusal_cmp.data.sets import load_split
from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.grid import grid_cells
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.judges.completion import refuses
from refusal_cmp.judges.first_tokens import refusal_tokens as find_refusal_tokens
from refusal_cmp.methods import EXTRACTORS, ModelMethod
from refusal_cmp.model import ChatModel
from refusal_cmp.model.reading import class_covariances as read_covariances
from refusal_cmp.model.reading import collect
from refusal_cmp.model.sight import ModelSight
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.planning import Chosen, Scope, Setting, make_plan, where_read
from refusal_cmp.selection import Rule, ranked_table
from refusal_cmp.selection.attribution import attribution
from refusal_cmp.selection.cosmic import cosmic
from refusal_cmp.selection.scoring import Reach, Scorer
from refusal_cmp.subspace import ClassCovariances, Component, SubspaceField


def load_prompts(name: str, split: Split = "test", n: int | None = None, *, column: str | None = None) -> list[str]:
    """The first n instructions, or all, of a split (`train`, `val`, `test`) of a prompt set.

    Parameters
    ----------
    name
        A registered name, as `refusal-cmp datasets` lists them, or the path of a local file.
    column
        Of a local file, the column that the instructions are in; by default one of the usual names.

    Raises
    ------
    RefusalCmpError
        If there is no such set, column or split, or fewer than n instructions.
    """
    if split not in SPLITS:
        raise unknown_name(f"split of {name!r}", split, SPLITS)
    prompts = load_split(name, split, Columns(None if column is None else (column,)), print)
    if n is not None and not 1 <= n <= len(prompts):
        raise RefusalCmpError(
            f"{n} instructions of {name!r} were asked for, and {split} has {len(prompts)}; ask for 1 to that many."
        )
    return [prompt.instruction for prompt in prompts[:n]]


def extract(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    method: str = "diff-in-means",
    *,
    dev_share: float = 0.2,
    seed: int = 42,
    categories: Mapping[str, str] | None = None,
    **options: Any,
) -> SubspaceField:
    """The subspaces of one method at every component of a model.

    Parameters
    ----------
    harmful, harmless
        At least 10 instructions each.
    dev_share
        Of the instructions, held out as the stratified dev split.
    seed
        Of that split.
    categories
        What the instructions are about, by instruction; for methods that look at that.
    options
        Hyper-parameters of the method.
    """
    extractor = EXTRACTORS.create(method, **options)
    positions = extractor.positions(model.positions)
    activations = collect(
        model,
        harmful,
        harmless,
        positions=positions,
        needs=extractor.needs,
        dev_share=dev_share,
        seed=seed,
        categories=categories,
    )
    if isinstance(extractor, ModelMethod):
        prompts = [*dict.fromkeys(harmful), *dict.fromkeys(harmless)]
        return extractor.fit_seeing(ModelSight(model, prompts, activations, refuses, lambda _: None), method)
    return extractor.fit_field(activations, method)


def rank_components(
    model: ChatModel,
    subspaces: SubspaceField,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    rule: Rule | None = None,
    compare: bool = False,
    refusal_tokens: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Every component of one method scored, filtered and ranked, best first; `selected` marks the choice.

    The columns are those of `select/scores.csv`.

    Parameters
    ----------
    harmful, harmless
        Validation instructions; none that the subspaces were extracted from.
    compare
        Whether to score globally beside locally.
    refusal_tokens
        By default those that the model uses on the harmful instructions.
    """
    rule = rule or Rule()
    reaches: list[Reach] = ["local", "global"] if compare or rule.rank_by == "global" else ["local"]
    scorer = Scorer(model, harmful, harmless, refusal_tokens or find_refusal_tokens(model, harmful, say=warnings.warn))
    scores = {reach: scorer.score(subspaces, reach, multipliers=rule.multipliers) for reach in reaches}
    ruled: dict[tuple[RankingRule, Reach], Tensor] = {}
    if rule.rank_key == "cosmic":
        ruled["cosmic", rule.rank_by] = cosmic(scorer, subspaces, rule.rank_by)
    if rule.rank_key == "attribution":
        ruled["attribution", rule.rank_by] = attribution(model, harmful, scorer.refusal_tokens, subspaces, rule.rank_by)
    return ranked_table(subspaces, scores, rule, ruled).sort_values("rank", ignore_index=True)


def class_covariances(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    subspaces: SubspaceField,
    *,
    layer: int,
    position: int = -1,
    direction: str = "best",
    ranking: Sequence[Component] = (),
    dev_share: float = 0.2,
    seed: int = 42,
) -> ClassCovariances:
    """The class covariances along the subspace of one component, at all layers, for interventions that need them.

    Parameters
    ----------
    harmful, harmless, dev_share, seed
        As `extract` was given them.
    direction, ranking
        As `plan_intervention` will be given them: with `own`, along the best of each layer's own.
    """
    chosen = _chosen(subspaces, Component(position, layer), ranking)
    along = {(at, subspaces[at].k, to): subspaces[at].dual for at, to in where_read(chosen, direction)}
    return read_covariances(model, harmful, harmless, along, dev_share=dev_share, seed=seed)


def plan_intervention(
    intervention: str,
    subspaces: SubspaceField,
    *,
    layer: int,
    position: int = -1,
    scope: str = "all",
    strength: float | None = None,
    direction: str = "best",
    ranking: Sequence[Component] = (),
    setting: Setting | None = None,
    covariances: ClassCovariances | None = None,
) -> Plan:
    """One intervention with the subspace of one component, at a scope.

    Parameters
    ----------
    ranking
        Components from best to worst, which a `top:p` scope is taken from; by default the field's own order
        with the given component first.
    covariances
        What `class_covariances` reads, for interventions that need it: `transport`.
    """
    return make_plan(
        intervention,
        replace(_chosen(subspaces, Component(position, layer), ranking), covariances=covariances),
        Scope.parse(scope),
        strength=strength,
        direction=direction,
        setting=setting,
    )


@dataclass(frozen=True)
class Calibrated:
    """A plan that does the damage of a budget, or comes as near as it can, and how it was found."""

    plan: Plan
    found: Found
    """Whether the budget is met, at how many default strengths, and with what damage."""
    tried: tuple[Tried, ...]
    """Every strength that was tried, with its damage."""


def calibrate(
    model: ChatModel,
    intervention: str,
    subspaces: SubspaceField,
    harmless: Sequence[str],
    budget: str | float = "kl=0.1",
    *,
    layer: int,
    position: int = -1,
    scope: str = "all",
    strength: float | None = None,
    over: Literal["strength", "k"] = "strength",
    n_tokens: int = 16,
    direction: str = "best",
    ranking: Sequence[Component] = (),
    setting: Setting | None = None,
    covariances: ClassCovariances | None = None,
) -> Calibrated:
    """One intervention at the strength that does as much damage to the model's own answers as a budget allows.

    Parameters
    ----------
    harmless
        Validation instructions that damage is measured on; none that anything is tested on.
    budget
        MEASURE=BUDGET, as `--calibrate` takes it: `kl=0.1`, `first-kl=0.1`, `loss=0.05`, `change=0.1`.
    strength
        The default strength, from which it is told to which side strengths go: `actadd` at -1 or +1.
    over
        `k`: search the number of leading directions first, and then the strength. For interventions along all
        directions, of a method that has them in an order.
    n_tokens
        Of each answer that damage is measured on.
    layer, position, scope, direction, ranking, setting, covariances
        As `plan_intervention` takes them.
    """
    chosen = replace(_chosen(subspaces, Component(position, layer), ranking), covariances=covariances)
    whole = replace(chosen, whole=subspaces if over == "k" else None)
    cell = _varied(intervention, whole, scope, strength, direction, setting, over)
    if over == "k" and cell.most < 2:
        raise RefusalCmpError(
            f"There is one number of directions that {intervention} can have with {subspaces.method} at "
            f"{chosen.selected}, so that there is none to search; leave out over='k'."
        )
    name, _, most = str(load_config(None, {"calibrate": budget}).calibrate).partition("=")
    (found,) = calibrated([cell], _meter(model, harmless, name, n_tokens, cell), float(most))
    return Calibrated(cell.at(found.found.times, found.found.k), found.found, found.tried)


def curve(
    model: ChatModel,
    intervention: str,
    subspaces: SubspaceField,
    harmless: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
    *,
    layer: int,
    position: int = -1,
    scope: str = "all",
    strength: float | None = None,
    limit: float = 1.0,
    strengths: Sequence[float] | None = None,
    measure: str = "kl",
    n_tokens: int = 16,
    refusal_tokens: Sequence[int] | None = None,
    direction: str = "best",
    ranking: Sequence[Component] = (),
    setting: Setting | None = None,
    covariances: ClassCovariances | None = None,
) -> pd.DataFrame:
    """Refusal against damage along the strengths of one intervention, a row each; the first is the unedited model.

    The columns are `plan`, `times` (default strengths), `damage`, and for each set of prompts the share that the model
    begins to refuse: of which the first token of the answer is likelier a refusal than not.

    Parameters
    ----------
    harmless, n_tokens, strength
        As `calibrate` takes them.
    prompts
        Test instructions by set: `{"harmful": …, "harmless": …}`.
    limit
        Most damage of the sweep, which is spread evenly up to there.
    strengths
        In default strengths, in place of those that the limit allows.
    measure
        Of damage: `kl`, `first-kl`, `loss` or `change`.
    refusal_tokens
        By default those that the model uses on all these prompts.
    layer, position, scope, direction, ranking, setting, covariances
        As `plan_intervention` takes them.
    """
    chosen = replace(_chosen(subspaces, Component(position, layer), ranking), covariances=covariances)
    cell = _varied(intervention, chosen, scope, strength, direction, setting)
    damage = _meter(model, harmless, measure, n_tokens, cell)
    every = [prompt for of_set in prompts.values() for prompt in of_set]
    tokens = refusal_tokens or find_refusal_tokens(model, every, say=warnings.warn)
    refusal = Refusal(model, prompts, tokens, some_tokens=cell.at(1).tokens != "all")
    if strengths is None:
        (strengths,) = strengths_within([cell], damage, limit)
    points = sweep([cell], [[times for times in strengths if 0 < times <= cell.end]], damage, refusal)
    rows = [(BASELINE, 0.0, [0.0], refusal.unedited())]
    rows += [(cell.at(one.times).label, one.times, one.damage, one.refused) for one in points]
    return pd.DataFrame(
        {"plan": plan, "times": times, "damage": _mean(hurt)} | {name: _mean(of) for name, of in refused.items()}
        for plan, times, hurt, refused in rows
    )


def _varied(
    intervention: str,
    chosen: Chosen,
    scope: str,
    strength: float | None,
    direction: str,
    setting: Setting | None,
    over: str = "strength",
) -> Varied:
    """An intervention without its strength."""
    check_varied(intervention)
    first = INTERVENTIONS.create(intervention).strengths or (1.0,)
    strengths = {intervention: (first[0] if strength is None else strength,)}
    scopes = [Scope.parse(scope)]
    cells = grid_cells([chosen], [intervention], scopes, strengths=strengths, direction=direction, setting=setting)
    found = varied(cells, over)
    if not found:
        raise RefusalCmpError(f"{intervention} changes nothing at strength {strength}; give one on either side of it.")
    return found[0]


def _meter(model: ChatModel, harmless: Sequence[str], measure: str, n_tokens: int, cell: Varied) -> Meter:
    if measure not in MEASURES:
        raise unknown_name("measure of damage", measure, MEASURES)
    if not harmless:
        raise RefusalCmpError("Damage is measured on harmless instructions, and none are given; give some.")
    return Meter(model, harmless, measure, n_tokens, some_tokens=cell.at(1).tokens != "all")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _chosen(subspaces: SubspaceField, selected: Component, ranking: Sequence[Component]) -> Chosen:
    """The choice of one component; an error that says why, if it has no subspace."""
    subspaces[selected]
    order = tuple(ranking) or (selected, *(component for component in subspaces if component != selected))
    return Chosen(subspaces, selected, order)
