"""What figures and the page are made from: everything a run directory says, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from refusal_cmp.calibration.damage import MEASURES
from refusal_cmp.config import file_label, is_path
from refusal_cmp.errors import unknown_name
from refusal_cmp.plan import ALSO, BASELINE, Plan
from refusal_cmp.planning import Setting
from refusal_cmp.report.curves import Sweep
from refusal_cmp.report.landings import Landings, read_landings
from refusal_cmp.report.table import PART
from refusal_cmp.run.contents import (
    AGREEMENT,
    COMPARISONS,
    PROMPTS,
    SCORES,
    WEIGHTS,
    Stability,
    prompts_file,
    read_answers,
    read_baseline_metric,
    read_calibration,
    read_choice,
    read_curve,
    read_dropped,
    read_examples,
    read_field,
    read_fields,
    read_labels_agreement,
    read_plan_facts,
    read_ranking_rules,
    read_rankings,
    read_ranks,
    read_results,
    read_selections,
    read_stability,
)
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Rule, Selection
from refusal_cmp.selection.among import scored
from refusal_cmp.statistics import Estimate
from refusal_cmp.subspace import Component, SubspaceField

Row = Mapping[str, Any]
ANSWERED = ("effective_compliance", "compliance")
"""Metrics of what suppressing refusal is about: what complies and is language, or complies where that was not asked."""


@dataclass(frozen=True)
class RunData:
    """A run that has been evaluated."""

    name: str
    manifest: Mapping[str, Any]
    results: pd.DataFrame
    """`results.csv`."""
    plans: Sequence[Plan]
    """Their labels and facts, without the edits, in order; the baseline is the first."""
    run_as: Mapping[str, str]
    """For each plan's label that of the plan that was run for it: itself or an identical one."""
    scores: pd.DataFrame
    """`select/scores.csv`."""
    selections: Sequence[Selection]
    choice: str
    """What is to be said where not all components were scored."""
    scored: Sequence[Component]
    """The components that are scored, wherever a method has a subspace."""
    baseline_metric: Mapping[str, float]
    """The unedited model's mean refusal metric on the validation prompts of each kind."""
    rule: Rule
    setting: Setting
    """What edits are made by."""
    fields: Mapping[str, SubspaceField]
    """By extractor, without INLP's k policies: those are the first rows of the same subspaces."""
    extracted_by: Mapping[str, str]
    """For each method, k policies apart, the name of its subspaces in `fields`."""
    prompts: Mapping[str, Any]
    """`extract/prompts.json`, with the counts of the other test sets."""
    dropped: Sequence[Row]
    """The prompts whose refusal metric says otherwise than their kind, as `read_dropped` has them."""
    answers: Mapping[tuple[str, str], Sequence[Row]]
    """By distinct plan and test set: completions, each with its `verdict` where it was judged."""
    test_sources: Mapping[str, str]
    """For each test set the registered name or path that its prompts are from."""
    ranks: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By extractor whose rank depends on the dev split: `position`, `layer`, `seed` of the split, `k`."""
    rankings: Sequence[Row] | None = None
    ranking_rules: Sequence[Row] | None = None
    """How other ranking rules agree with exact bypass, a row per method, rule and reach."""
    comparisons: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    """Cohen's κ of every pair of judges on the completions of harmful prompts."""
    labels: pd.DataFrame | None = None
    """How far judges agree with people, if they were asked."""
    magnitude: pd.DataFrame | None = None
    """A row per prompt and method: `dataset`, `method`, `projection`, `refusal_metric`, `refused`."""
    landings: Landings | None = None
    """Where activations land under every plan."""
    weights: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """By plan that is another checkpoint and was run: every weight, and how it differs."""
    calibration: Mapping[str, Any] | None = None
    """What was calibrated, as `read_calibration` has it."""
    sweep: Sweep | None = None
    """A sweep of strengths, if the run has one."""
    stability: Stability | None = None
    """What other prompts would have given, if that was asked."""
    destroyed_with_some_seed: frozenset[str] | None = None
    """Of runs over seeds that stand here as one: the labels of the plans that destroy the model with one or more."""

    def only(self, methods: Sequence[str] = (), scopes: Sequence[str] = ()) -> RunData:
        """The run as if it had these methods and scopes alone; by default all of them.

        Raises
        ------
        RefusalCmpError
            If the run has no such method or scope.
        """
        for kind, names, known in (("method", methods, self.methods), ("scope", scopes, self.scopes)):
            for name in names:
                if name not in known:
                    raise unknown_name(kind, name, known)
        methods, scopes = methods or self.methods, scopes or self.scopes
        plans = [
            plan
            for plan in self.plans
            if plan.label == BASELINE or plan.edits_nothing or (plan.method in methods and plan.scope in scopes)
        ]
        labels = [plan.label for plan in plans]
        bases = {self.extracted_by[method] for method in methods}
        return replace(
            self,
            plans=plans,
            results=self.results[self.results["plan"].isin(labels)],
            scores=self.scores[self.scores["method"].isin(methods)],
            selections=[one for one in self.selections if one.method in methods],
            fields={name: field for name, field in self.fields.items() if name in bases},
            sweep=self.sweep and self.sweep.only(methods, scopes),
            rankings=self.rankings and [one for one in self.rankings if one["method"] in methods],
            ranking_rules=self.ranking_rules and [one for one in self.ranking_rules if one["method"] in methods],
            magnitude=None if self.magnitude is None else self.magnitude[self.magnitude["method"].isin(methods)],
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.manifest["config"]

    @cached_property
    def methods(self) -> list[str]:
        """The methods of the plans, k policies apart, in order."""
        return list(dict.fromkeys(plan.method for plan in self.edited))

    @cached_property
    def scopes(self) -> list[str]:
        """The scopes of the plans, in order."""
        return list(dict.fromkeys(plan.scope for plan in self.edited))

    @cached_property
    def edited(self) -> list[Plan]:
        """All plans that are edits, without the baseline, other checkpoints and system prompts."""
        return [plan for plan in self.plans if plan.label != BASELINE and not plan.edits_nothing]

    @cached_property
    def unedited(self) -> list[Plan]:
        """The plans beside the baseline that edit nothing: other checkpoints and system prompts."""
        return [plan for plan in self.plans if plan.edits_nothing]

    @cached_property
    def checkpoints(self) -> list[Plan]:
        """The plans that are other checkpoints."""
        return [plan for plan in self.plans if plan.checkpoint]

    @cached_property
    def system_prompts(self) -> list[Plan]:
        """The plans that are other system prompts."""
        return [plan for plan in self.plans if plan.system]

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], Estimate]:
        rows = self.results[["plan", "dataset", "metric", "value", "ci_low", "ci_high", "n"]]
        return {(row[0], row[1], row[2]): Estimate(*row[3:]) for row in rows.itertuples(index=False, name=None)}

    def get(self, plan: str, dataset: str, metric: str) -> Estimate | None:
        """One number of one plan, or None if it was not measured."""
        return self._cells.get((plan, dataset, metric))

    def distinct(self, labels: Sequence[str]) -> list[str]:
        """The first of every set of identical plans among these."""
        first: dict[str, str] = {}
        for label in labels:
            first.setdefault(self.run_as[label], label)
        return list(first.values())

    def chosen(self, method: str) -> dict[str, Any]:
        """The component that was selected for a method, as in `select/scores.csv`, and the scores that it is ranked by:
        `bypass` and `kl` at the reach that ranks, and `induce`, which is always local."""
        of_method = self.scores[(self.scores["method"] == method) & self.scores["selected"].astype(bool)]
        row = {str(name): value for name, value in of_method.iloc[0].items()}
        scores = {name: row[f"{self.rule.rank_by}_{name}"] for name in ("bypass", "kl")}
        return row | scores | {"induce": row["local_induce"]}

    @cached_property
    def answered_by(self) -> str:
        """The metric that says how many harmful prompts are answered, the first of `ANSWERED` that was measured."""
        return next((metric for metric in ANSWERED if self.get(BASELINE, "harmful", metric) is not None), ANSWERED[0])

    @property
    def asks_for_language(self) -> bool:
        """Whether only answers in language count as answers: `coherence` was run."""
        return self.answered_by == ANSWERED[0]

    def answered(self, plan: str) -> Estimate | None:
        """Share of harmful prompts that the plan answers."""
        return self.get(plan, "harmful", self.answered_by)

    def no_language(self, plan: str, dataset: str) -> float | None:
        """Share of a plan's completions that are no language, or say nothing where that was not asked."""
        fluent, silent = self.get(plan, dataset, "in_language"), self.get(plan, dataset, "degenerate")
        if fluent is not None:
            return 1 - fluent.value
        return None if silent is None else silent.value

    def datasets(self, metric: str) -> list[str]:
        """What a metric was measured on, parts of test sets apart."""
        found = self.results.loc[self.results["metric"] == metric, "dataset"].unique()
        return [str(dataset) for dataset in found if PART not in dataset]

    def categories(self, dataset: str, metric: str) -> list[str]:
        """The parts of a test set that a metric was measured on."""
        start = dataset + PART
        found = self.results.loc[self.results["metric"] == metric, "dataset"].unique()
        return sorted(str(one).removeprefix(start) for one in found if one.startswith(start))

    def versus_baseline(self, plan: str, dataset: str, metric: str) -> tuple[Estimate, float] | None:
        """The paired difference to the baseline and its p-value after Holm's correction, if it was tested."""
        return self._differences.get((self.run_as[plan], dataset, metric))

    @cached_property
    def _differences(self) -> dict[tuple[str, str, str], tuple[Estimate, float]]:
        if self.comparisons is None:
            return {}
        rows = self.comparisons[self.comparisons["against"] == BASELINE]
        rows = rows[["plan", "dataset", "metric", "difference", "ci_low", "ci_high", "n", "p_holm"]]
        return {
            (row[0], row[1], row[2]): (Estimate(*row[3:7]), row[7]) for row in rows.itertuples(index=False, name=None)
        }


def read_run(session: Session) -> RunData:
    """Everything that figures and the page are made from.

    Raises
    ------
    RefusalCmpError
        If a part of it is missing, or of a stage that is to be run again: selections would be new, and results old.
    """
    run, config = session.run, session.config
    run.require_finished()
    results, plans = read_results(run), read_plan_facts(session)
    fields = {name: read_field(session, name) for name in config.methods}
    scored_of = {field.means.positions: field.means.n_layers for field in fields.values()}
    distinct = [plan.label for plan, same_as in plans if plan.label == same_as]
    return RunData(
        name=run.path.resolve().name,
        manifest=run.manifest,
        results=results,
        plans=[plan for plan, _ in plans],
        run_as={plan.label: same_as for plan, same_as in plans},
        scores=run.read_table(SCORES),
        selections=read_selections(session),
        choice=read_choice(run),
        scored=[at for positions, n_layers in scored_of.items() for at in scored(config, positions, n_layers)],
        baseline_metric=read_baseline_metric(session),
        rule=Rule.of(config, config.methods[0]),
        setting=Setting.of(config),
        fields=fields,
        extracted_by={field.method: field.extracted_by for field in read_fields(session)},
        prompts=_prompts(session),
        dropped=read_dropped(session),
        answers={(plan, name): _answers(session, plan, name) for plan in distinct for name in config.test_sets},
        test_sources={name: config.test_source(name) for name in config.test_sets},
        ranks={name: ranks for name in config.methods if (ranks := read_ranks(session, name)) is not None},
        rankings=read_rankings(session),
        ranking_rules=read_ranking_rules(session),
        comparisons=run.read_table(COMPARISONS) if run.has(COMPARISONS) else None,
        agreement=run.read_table(AGREEMENT) if run.has(AGREEMENT) else None,
        labels=read_labels_agreement(session),
        magnitude=_magnitude(session),
        landings=read_landings(session, results, distinct),
        calibration=read_calibration(session),
        sweep=_sweep(session),
        weights={plan: read_examples(session, plan, *WEIGHTS) for plan in distinct if plan.startswith(ALSO)},
        stability=read_stability(session),
    )


def _sweep(session: Session) -> Sweep | None:
    rows = read_curve(session)
    if not rows:
        return None
    measure = MEASURES[(session.config.calibrate or next(iter(MEASURES))).partition("=")[0]]
    said = measure.said(session.config.calibrate_tokens)
    return Sweep.of(rows, said, measure.unit, session.config.curve_limit)


def _prompts(session: Session) -> dict[str, Any]:
    """`extract/prompts.json` with the counts of the other test sets, by role and source: `harmful: jailbreakbench`."""
    run, config = session.run, session.config
    prompts = run.read_json(PROMPTS)
    counts = prompts["counts"]
    for role, source in config.other_sets.items():
        name = file_label(source) if is_path(source) else source
        heading = name if role == name else f"{role}: {name}"
        counts[heading] = run.read_json(prompts_file(config, role))["counts"]
    return prompts


def _answers(session: Session, label: str, dataset: str) -> list[dict[str, Any]]:
    """A plan's completions of a test set, with their verdicts if they were judged."""
    answers = read_answers(session, label, dataset)
    verdicts = [row["verdict"] for row in read_examples(session, label, "refusal", dataset)]
    return [
        {
            "instruction": answer.instruction,
            "category": answer.category,
            "completion": answer.completion,
            "verdict": verdicts[index] if len(verdicts) == len(answers) else "",
        }
        for index, answer in enumerate(answers)
    ]


def _magnitude(session: Session) -> pd.DataFrame | None:
    """The magnitude study's prompts, a row for each with each method."""
    rows = []
    for dataset in session.config.test_sets:
        for row in read_examples(session, BASELINE, "magnitude", dataset):
            for method, projection in row["projection"].items():
                rows.append({**row, "dataset": dataset, "method": method, "projection": projection})
    return pd.DataFrame(rows) if rows else None
