"""One comparison with several seeds: every number over all of them, and what each of them alone would have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations

import pandas as pd
import torch

from refusal_cmp.evals import measure_of
from refusal_cmp.plan import FACTS, Plan, component_of
from refusal_cmp.report.answer import Standing, answers_already, costs, destroyed, standings
from refusal_cmp.report.data import RunData, read_run
from refusal_cmp.report.seeds_at_equal_damage import calibration_over, named_alike
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Selection
from refusal_cmp.statistics import Estimate, fewest, over_seeds
from refusal_cmp.subspace import Component

OVER = ["model", "plan", *FACTS, "n_seeds", "dataset", "metric", "value", "sd", "ci_low", "ci_high", "n"]
"""Columns of `results.csv` over seeds."""


SHARED = "shared"
"""What the component is called that all methods use."""


@dataclass(frozen=True)
class Verdict:
    """A plan by what the runs of all seeds say of it."""

    plan: str
    method: str
    suppresses: int
    """Seeds with which it suppresses refusal."""
    broken: int
    """Seeds with which it destroys the model."""
    measured: int
    """Seeds with which there is such a plan."""
    cost: float | None
    """Mean of what is lost, by the cost that decides."""
    answered: float
    """Mean share of harmful prompts that it answers."""


@dataclass(frozen=True)
class SeedsData:
    """Runs that differ by their seed, on the same test prompts."""

    name: str
    runs: Mapping[int, RunData]
    """By seed."""

    def only(self, methods: Sequence[str] = (), scopes: Sequence[str] = ()) -> SeedsData:
        """The runs as if they had these methods and scopes alone; by default all of them."""
        return replace(self, runs={seed: run.only(methods, scopes) for seed, run in self.runs.items()})

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order in which they were given."""
        return tuple(self.runs)

    @property
    def first(self) -> RunData:
        """The run of the first seed, which the others differ from in nothing but the seed."""
        return next(iter(self.runs.values()))

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """`results.csv` over seeds, a row per plan and metric."""
        return pooled([data.results for data in self.runs.values()])

    @cached_property
    def by_seed(self) -> pd.DataFrame:
        """The results of all seeds, one below the other."""
        return pd.concat([data.results for data in self.runs.values()], ignore_index=True)

    @cached_property
    def as_run(self) -> RunData:
        """All seeds as if they were one run, with the numbers over them, for what is drawn from numbers alone."""
        plans: dict[str, Plan] = {}
        for data in self.runs.values():
            for plan in data.plans:
                plans.setdefault(plan.label, plan)
        return replace(
            self.first,
            name=self.name,
            results=self.pooled,
            plans=list(plans.values()),
            run_as={label: self._same_everywhere(label) for label in plans},
            comparisons=None,
            calibration=calibration_over([data.calibration for data in self.runs.values()]),
            destroyed_with_some_seed=frozenset(chain.from_iterable(map(destroyed, self.runs.values()))),
        )

    def _same_everywhere(self, label: str) -> str:
        """The plan that a plan is the same as with every seed, or itself."""
        found = {data.run_as.get(label) for data in self.runs.values()}
        return found.pop() or label if len(found) == 1 else label

    @cached_property
    def standings(self) -> dict[int, list[Standing]]:
        """The plans of every seed by its own measure, best first."""
        return {seed: standings(data) for seed, data in self.runs.items()}

    @property
    def answers_already(self) -> bool:
        """Whether there is nothing to suppress, by every seed."""
        return all(map(answers_already, self.runs.values()))

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The plans by how many seeds they suppress refusal with, then by the mean of what they cost.

        Those that suppress it with none stand by how much they answer; last are those that destroy a model. Of plans
        that do the same at the same cost, within its tie, the first in the table is first, as it is with one seed.
        """
        found: dict[str, list[Standing]] = {}
        for one in chain.from_iterable(self.standings.values()):
            found.setdefault(one.plan, []).append(one)
        order = [plan.label for plan in self.as_run.edited]
        ranked = sorted((_verdict(plan, found[plan]) for plan in order if plan in found), key=_order)
        tie = next((cost.tie for cost in costs(self.first)), 0.0)
        same = [verdict for verdict in ranked if _is_as_good(verdict, ranked[0], tie)]
        others = [verdict for verdict in ranked if verdict not in same]
        return sorted(same, key=lambda verdict: order.index(verdict.plan)) + others

    @property
    def too_few(self) -> bool:
        """Whether there are too few harmful test prompts for any plan to be known to suppress refusal."""
        return all(ranked and ranked[0].answered.n < fewest(ranked[0].among) for ranked in self.standings.values())

    def sd(self, plan: str, dataset: str, metric: str) -> float | None:
        """How far a number moves from seed to seed, or None if it was not measured with two."""
        return self._spread.get((plan, dataset, metric))

    @cached_property
    def _spread(self) -> dict[tuple[str, str, str], float]:
        rows = self.pooled[["plan", "dataset", "metric", "sd"]].dropna(subset="sd")
        return {(row[0], row[1], row[2]): row[3] for row in rows.itertuples(index=False, name=None)}

    def selection(self, method: str, seed: int) -> Selection | None:
        """What a method chose with a seed."""
        return next((one for one in self.runs[seed].selections if one.method == method), None)

    def shared(self, seed: int) -> Component | None:
        """The component that all methods share with a seed; None where no plan uses one."""
        for plan in self.runs[seed].edited:
            if component_of(plan) == SHARED and plan.position is not None and plan.layer is not None:
                return Component(plan.position, plan.layer)
        return None

    def alike(self, method: str) -> float | None:
        """Mean cosine of the directions that a method chose, over pairs of seeds; None if it had none twice."""
        chosen = [(data, self.selection(method, seed)) for seed, data in self.runs.items()]
        directions = [
            data.fields[data.extracted_by[method]][one.selected].direction for data, one in chosen if one is not None
        ]
        cosines = [float(torch.dot(a, b) / (a.norm() * b.norm())) for a, b in combinations(directions, 2)]
        return sum(cosines) / len(cosines) if cosines else None


def read_seeds(name: str, sessions: Mapping[int, Session]) -> SeedsData:
    """Everything that tables, figures and the page over seeds are made from."""
    return SeedsData(name, {seed: named_alike(read_run(session)) for seed, session in sessions.items()})


def pooled(results: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Every metric of every plan over runs that differ by their seed; facts in which they differ are left out."""
    table = pd.concat(results, ignore_index=True)
    rows = []
    for (plan, dataset, metric), of_metric in table.groupby(["plan", "dataset", "metric"], sort=False):
        estimates = [Estimate(*row) for row in of_metric[["value", "ci_low", "ci_high", "n"]].itertuples(index=False)]
        measure = measure_of(str(metric))
        found = over_seeds(estimates, positive=measure.positive)
        mean = measure.within(found.mean)
        row: dict[str, object] = {name: _common(of_metric[name]) for name in ("model", *FACTS)}
        row |= {"plan": plan, "dataset": dataset, "metric": metric, "sd": found.sd, "n_seeds": found.n_seeds}
        row |= {"value": mean.value, "ci_low": mean.low, "ci_high": mean.high, "n": mean.n}
        rows.append(row)
    whole = dict.fromkeys(("k", "n_components", "n_layers", "position", "layer"), "Int64")
    return pd.DataFrame(rows)[OVER].astype(whole)


def _common(values: pd.Series) -> object:
    """The one value that all rows have, or none."""
    found = values.unique()
    return found[0] if len(found) == 1 else None


def _verdict(plan: str, those: Sequence[Standing]) -> Verdict:
    found = [one.cost for one in those if one.cost is not None]
    return Verdict(
        plan=plan,
        method=those[0].method,
        suppresses=sum(one.suppresses for one in those),
        broken=sum(one.is_broken for one in those),
        measured=len(those),
        cost=sum(found) / len(found) if found else None,
        answered=sum(one.answered.value for one in those) / len(those),
    )


def _is_as_good(one: Verdict, best: Verdict, tie: float) -> bool:
    if (one.suppresses, one.broken) != (best.suppresses, best.broken):
        return False
    if not best.suppresses and one.answered != best.answered:
        return False
    return one.cost is not None and best.cost is not None and abs(one.cost - best.cost) <= tie


def _order(one: Verdict) -> tuple[bool, int, float, float]:
    cost = float("inf") if one.cost is None else one.cost
    by = (cost, -one.answered) if one.suppresses else (-one.answered, cost)
    return (one.broken > 0 and not one.suppresses, -one.suppresses, *by)
