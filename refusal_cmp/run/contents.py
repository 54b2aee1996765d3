"""What a run directory holds: the name of every artefact, and the reader that gives it its type.

Stages, evaluators, the report and the commands meet here and nowhere else: a stage writes an artefact by the name
that stands here, and everybody reads it by the function beside the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch

from refusal_cmp.config import BUDGET, RunConfig
from refusal_cmp.data import Prompt
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import configured
from refusal_cmp.model.chat import Turns
from refusal_cmp.model.generation import Answer
from refusal_cmp.plan import ALSO, BASELINE, FACTS, PROMPT, Plan, file_name
from refusal_cmp.planning import Selected
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.selection.rule import Selection
from refusal_cmp.selection.scoring import PromptScores
from refusal_cmp.subspace import ClassMeans, Component, SubspaceField

CONFIG = "config.yaml"
"""The run's resolved configuration; `--config` takes it."""

# extract

PROMPTS = "extract/prompts.json"
"""The sampled and filtered prompts of every split, the counts dropped and why, refusal tokens, the template's turns."""


DROPPED = "extract/dropped.jsonl"
"""The prompts whose refusal metric says otherwise than their kind, with that, the model's answer and the verdict."""


def read_dropped(session: Session) -> list[dict[str, Any]]:
    """The dropped prompts: `set`, `instruction`, `category`, `refusal_metric`, `answer`, `verdict`.

    None are known of a run of an older version.
    """
    return session.run.read_lines(DROPPED) if session.run.has(DROPPED) else []


def prompts_file(config: RunConfig, dataset: str) -> str:
    """The artefact that holds the prompts of a test set: the run's own, or one beside them."""
    return f"infer/prompts/{dataset}.json" if dataset in {*config.other_sets, *config.wrapped} else PROMPTS


def read_prompts(session: Session, split: str) -> list[Prompt]:
    """The prompts of a split that were sampled and kept: `harmful_train`."""
    return [Prompt(**row) for row in session.run.read_json(PROMPTS)["prompts"][split]]


def read_refusal_tokens(session: Session) -> tuple[int, ...]:
    """The set R of the refusal metric."""
    return tuple(session.run.read_json(PROMPTS)["refusal_tokens"])


def read_turns(session: Session) -> Turns:
    """What the model's chat template writes around an answer; nothing in a run of an older version."""
    found = session.run.read_json(PROMPTS).get("turns", {"markers": [], "opened": ""})
    return Turns(tuple(found["markers"]), found["opened"])


MEANS = "extract/class_means.safetensors"
"""The mean activations of the two classes at the post-instruction tokens, which the methods share that read there."""


def means_file(method: str) -> str:
    """The artefact that holds the class means of a method that reads other positions."""
    return f"extract/{method}.means.safetensors"


def read_means(session: Session, method: str | None = None) -> ClassMeans:
    """The class means at the post-instruction tokens, or at the positions that a method reads."""
    own = method is not None and session.run.has(means_file(method))
    return ClassMeans.from_tensors(session.run.read_tensors(means_file(str(method)) if own else MEANS)[0])


def subspace_file(method: str) -> str:
    """The artefact that holds a method's subspaces."""
    return f"extract/{method}.safetensors"


def read_field(session: Session, method: str) -> SubspaceField:
    """The subspaces that extract wrote."""
    return SubspaceField.from_tensors(*session.run.read_tensors(subspace_file(method)), read_means(session, method))


def ranks_file(method: str) -> str:
    """The artefact that says how many directions a method finds by other dev splits of the same prompts."""
    return f"extract/{method}.ranks.csv"


def read_ranks(session: Session, method: str) -> pd.DataFrame | None:
    """A row per component and seed of the dev split, with the number of directions `k`; None if it does not vary."""
    return session.run.read_table(ranks_file(method)) if session.run.has(ranks_file(method)) else None


def read_fields(session: Session) -> list[SubspaceField]:
    """The subspaces of every method; of one whose rows have an order, the leading ones by every k policy."""
    config, fields = session.config, []
    for name in config.methods:
        field = read_field(session, name)
        has_k = configured(config, name).has_k
        fields += [_leading(session, field, policy) for policy in config.inlp_k] if has_k else [field]
    return fields


def _leading(session: Session, field: SubspaceField, policy: str) -> SubspaceField:
    return field.first(read_budget(session, field.method)) if policy == BUDGET else field.leading(policy)


# select

SCORES = "select/scores.csv"
SELECTION = "select/selection.json"
BASELINE_SCORES = "select/baseline.json"
"""The unedited model's mean refusal metric on the validation prompts of each kind."""
RANKINGS = "select/rankings.json"
RANKING_RULES = "select/ranking-rules.json"


def budget_file(method: str) -> str:
    """The artefact that holds what the k policy `budget` tried of a method, from the whole subspaces down."""
    return f"select/{method}.budget.csv"


def read_budget(session: Session, method: str) -> dict[Component, int]:
    """How many leading directions of each component stay within the KL budget, of those tried; one where none do."""
    return {at: k for at, (k, _) in budgeted(session.run.read_table(budget_file(method)), session.config.kl_threshold)}


def budgeted(tried: pd.DataFrame, budget: float) -> list[tuple[Component, tuple[int, bool]]]:
    """Of each component the most directions whose KL is within the budget, and True; or the fewest, and False."""
    found: dict[Component, tuple[int, bool]] = {}
    for position, layer, k, kl in tried.sort_values("k", ascending=False).itertuples(index=False):
        at = Component(int(position), int(layer))
        if not found.get(at, (0, False))[1]:
            found[at] = (int(k), kl <= budget)
    return list(found.items())


def scores_file(method: str, reach: str) -> str:
    """The artefact that holds a method's scores of every prompt."""
    return f"select/{method}.{reach}.safetensors"


def read_scores(session: Session, method: str, reach: str) -> tuple[dict[tuple[int, ...], int], PromptScores]:
    """Every prompt's scores, and the row of each (position, layer, number of directions) that was ever scored.

    None is known to be in a file of an older version, which does not say what its rows are.
    """
    tensors = session.run.read_tensors(scores_file(method, reach))[0]
    keys = tensors.pop("scored", torch.empty(0, 3)).tolist()
    return {tuple(key): row for row, key in enumerate(keys)}, PromptScores(**tensors)


def rule_file(method: str, rule: str, reach: str) -> str:
    """The artefact that holds a method's scores by a ranking rule."""
    return f"select/{method}.{rule}-{reach}.safetensors"


def read_rule_scores(
    session: Session, method: str, rule: str, reach: str
) -> tuple[dict[tuple[int, ...], int], torch.Tensor]:
    """The scores, and the row of each (position, layer, number of directions) that was ever scored."""
    tensors = session.run.read_tensors(rule_file(method, rule, reach))[0]
    return {tuple(key): row for row, key in enumerate(tensors["scored"].tolist())}, tensors["score"]


def seconds_of(manifest: Mapping[str, Any], method: str, rule: str, reach: str) -> tuple[float | None, float | None]:
    """How long a rule's scores, and the exact bypass, took on the run's machine; None of what was not made in one go.

    It stands in the manifest, as it is another each time.
    """
    known = manifest.get("seconds", {})
    return known.get(rule_file(method, rule, reach)), known.get(scores_file(method, reach))


def read_choices(run: RunDir) -> dict[str, Selection]:
    """What select chose, by method."""
    rows = run.read_json(SELECTION)["methods"]
    if any("kl_budget" not in row for row in rows):
        raise RefusalCmpError(
            f"{run.path / SELECTION} is of an older version, without kl_budget; run {run.command('select')} again."
        )
    return {row["method"]: Selection(**{**_layers_of(run, row), **row, **_components_of(row)}) for row in rows}


def _layers_of(run: RunDir, row: Mapping[str, Any]) -> dict[str, int]:
    """How many layers a component could be chosen from, for a selection that does not say it yet."""
    if "layers" in row:
        return {}
    return {"layers": int(run.manifest["config"]["prune_layers"] * run.manifest["model"]["n_layers"])}


def _components_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a selection that are components, as such."""
    listed = {name: tuple(Component(*one) for one in row[name]) for name in ("ranking", "kept")}
    return {"selected": Component(*row["selected"]), **listed}


def read_selections(session: Session) -> list[Selection]:
    """What select chose for each of `read_fields`; an error for a method that it has not scored."""
    selections = read_choices(session.run)
    methods = [field.method for field in read_fields(session)]
    for method in methods:
        if method not in selections:
            raise RefusalCmpError(
                f"select has not scored {method} in {session.run.path}, only {', '.join(selections)}; run "
                f"{session.run.command('select')} with the same methods first."
            )
    return [selections[method] for method in methods]


def read_selected(session: Session) -> list[Selected]:
    """The subspaces of every method with the component that was selected."""
    pairs = zip(read_fields(session), read_selections(session), strict=True)
    return [Selected(field, selection.selected) for field, selection in pairs]


def read_choice(run: RunDir) -> str:
    """What readers have to know of a run whose components were not all scored; nothing of others."""
    return run.read_json(SELECTION).get("choice", "") if run.has(SELECTION) else ""


def read_baseline_metric(session: Session) -> dict[str, float]:
    """The unedited model's mean refusal metric on the validation prompts of each kind."""
    return session.run.read_json(SELECTION)["baseline"]


def read_rankings(session: Session) -> list[dict[str, Any]] | None:
    """The ranking study of every method; None if there was none."""
    return session.run.read_json(RANKINGS) if session.run.has(RANKINGS) else None


def read_ranking_rules(session: Session) -> list[dict[str, Any]] | None:
    """How other ranking rules agree with exact scores, and what they cost; None if the run does not ask."""
    asked = bool(session.config.ranking_rules) and session.run.has(RANKING_RULES)
    return session.run.read_json(RANKING_RULES) if asked else None


# stability

STABILITY = "stability"
"""The folder of what `refusal-cmp stability` finds."""
CHOICES = f"{STABILITY}/selection.csv"
"""How often each component is selected when validation prompts are drawn anew."""


def stability_file(method: str) -> str:
    """The artefact that says, draw by draw, what a method finds in other prompts."""
    return f"{STABILITY}/{method}.csv"


class Stability(NamedTuple):
    """What the command found, as far as it is of the run as it is now."""

    directions: pd.DataFrame
    """A row per method, component and draw: `by`, `n`, `draw`, `cosine`, `overlap`, `k`, `why`."""
    choices: pd.DataFrame
    """A row per method and component: `position`, `layer`, `share`."""


def stability_files(session: Session) -> list[str]:
    """The artefacts of it that are there, and of the run as it is now."""
    run = session.run
    names = [CHOICES, *map(stability_file, session.config.methods)]
    return [name for name in names if run.has(name) and run.is_current(name)]


def read_stability(session: Session) -> Stability | None:
    """How stable directions and choices are; None if nobody asked, or the run has changed since."""
    run, names = session.run, stability_files(session)
    if CHOICES not in names or len(names) < 2:
        return None
    methods = [name for name in session.config.methods if stability_file(name) in names]
    tables = [run.read_table(stability_file(name)).assign(method=name) for name in methods]
    there = [table for table in tables if len(table)] or tables[:1]
    return Stability(pd.concat(there, ignore_index=True), run.read_table(CHOICES))


# label

SHEET = "label.csv"
"""What people fill in; it is theirs, so that nobody vouches for it."""
KEY = "label/key.csv"
"""Where each completion of the sheet is from, its weight, and what the judges say."""


def read_labels_agreement(session: Session) -> pd.DataFrame | None:
    """How far judges agree with people; None if they were not asked, or completions or verdicts are others by now."""
    current = session.run.has(LABELS_AGREEMENT) and session.run.is_current(LABELS_AGREEMENT)
    return session.run.read_table(LABELS_AGREEMENT) if current else None


# infer

PLANS = "infer/plans.json"
IN_PLACE = ("checkpoint", "content", "system", "cell")
"""Beside the facts: what a plan that edits nothing has in their place; the cell of one that was calibrated."""


def covariances_file(method: str) -> str:
    """The artefact that holds the class covariances along a method's subspaces, if an intervention needs them."""
    return f"infer/{method}.covariances.safetensors"


CALIBRATION = "infer/calibration.json"
"""For each plan the strength at which its damage meets the budget, and how it was found."""
CALIBRATION_PASSES = "infer/calibration.csv"
"""The same, pass by pass: a row for each strength that was tried."""
CURVE = "infer/curve.jsonl"
"""A line for each plan of a sweep of strengths: its damage, and whether it refuses, prompt by prompt."""


def read_calibration(session: Session) -> dict[str, Any] | None:
    """What was calibrated, if the run is: `measure`, `budget`, `said`, and a row for each plan in `plans`."""
    is_there = session.config.calibrate is not None and session.run.has(CALIBRATION)
    return session.run.read_json(CALIBRATION) if is_there else None


def read_curve(session: Session) -> list[dict[str, Any]] | None:
    """The plans of the sweep, if the run has one; the first is the unedited model."""
    return session.run.read_lines(CURVE) if session.config.curve and session.run.has(CURVE) else None


def answers_file(label: str, dataset: str) -> str:
    """The artefact that holds a plan's completions of a test set."""
    return f"infer/{file_name(label)}/{dataset}.jsonl"


def plan_file(label: str) -> str:
    """The artefact that holds a plan's edits."""
    return f"infer/{file_name(label)}/plan.safetensors"


def plan_row(plan: Plan, same_as: str) -> dict[str, Any]:
    """A plan as `plans.json` has it: its facts, and the label of the plan that is run for it."""
    beside = {name: value for name in IN_PLACE if (value := getattr(plan, name))}
    return {"label": plan.label, "same_as": same_as, **plan.facts(), **beside}


def made_of(plan: Plan) -> dict[str, str]:
    """What vouches for a plan, among the sources of what is made with it: its edits, or what is in their place."""
    return {next((name for name in ("checkpoint", "system") if getattr(plan, name)), "edits"): plan.digest}


def read_plan_facts(session: Session) -> list[tuple[Plan, str]]:
    """The plans of the run without their edits, each with the label of the plan that was run for it."""
    return [
        (Plan(row["label"], {}, **{name: row[name] for name in (*FACTS, *IN_PLACE) if name in row}), row["same_as"])
        for row in session.run.read_json(PLANS)
    ]


def read_plans(session: Session) -> list[tuple[Plan, str]]:
    """The plans of the run, each with the label of the plan that was run for it: itself or an identical one."""
    found = [(plan, _read_plan(session, same_as), same_as) for plan, same_as in read_plan_facts(session)]
    return [(replace(plan, edits=read.edits, tokens=read.tokens), same_as) for plan, read, same_as in found]


def read_answers(session: Session, label: str, dataset: str) -> list[Answer]:
    """A plan's completions of a test set."""
    name = answers_file(label, dataset)
    return [Answer(**row) for row in session.run.read_lines(name)]


def _read_plan(session: Session, label: str) -> Plan:
    """The edits of a plan, without its facts; the baseline, other checkpoints and system prompts have none."""
    if label == BASELINE or label.startswith((ALSO, PROMPT)):
        return Plan(label, {})
    return Plan.from_tensors(*session.run.read_tensors(plan_file(label)))


# evaluate

RESULTS = "results.csv"
"""Every metric of every plan, a row each."""
BY_SEED = "by_seed.csv"
"""The results of several seeds, one below the other, in the folder of all."""
COMPARISONS = "comparisons.csv"
"""Plans compared in pairs on the same examples."""
AGREEMENT = "evaluate/agreement.csv"
"""How far the judges agree."""
LABELS = "evaluate/labels.csv"
"""What people say of the completions that they were given: `id`, `rater`, `verdict`."""
LABELS_AGREEMENT = "evaluate/labels-agreement.csv"
"""How far judges agree with them."""
COLUMNS = ["model", "plan", *FACTS, "seed", "dataset", "metric", "value", "ci_low", "ci_high", "n"]
"""Of `results.csv`."""


def read_results(run: RunDir) -> pd.DataFrame:
    """`results.csv`, with plans by their labels."""
    results = run.read_table(RESULTS)
    if "plan" not in results:
        raise RefusalCmpError(
            f"{run.path / RESULTS} is of an older version: it has no column plan; run {run.command('evaluate')} again."
        )
    return results


def metrics_file(label: str, evaluator: str) -> str:
    """The artefact that holds an evaluator's metrics of a plan."""
    return f"evaluate/{file_name(label)}/{evaluator}.json"


def examples_file(label: str, evaluator: str, dataset: str) -> str:
    """The artefact that holds an evaluator's judgement of every example of a dataset."""
    return f"evaluate/{file_name(label)}/{evaluator}.{file_name(dataset)}.jsonl"


def read_examples(session: Session, label: str, evaluator: str, dataset: str) -> list[dict[str, Any]]:
    """An evaluator's judgement of every example of a dataset; none if it was not asked."""
    name = examples_file(label, evaluator, dataset)
    return session.run.read_lines(name) if session.run.has(name) else []


WEIGHTS = ("weights", "modules")
"""The evaluator that a run with other checkpoints has, asked or not, and what its examples are of."""


# report

SUMMARY = "report/summary.csv"
CURVES = "report/curves.csv"
"""The points of a sweep of strengths."""
FRONTIER = "report/frontier.csv"
"""The area under every method's frontier, and methods compared in pairs."""
PAGE = "report/index.html"


def figure_file(name: str, kind: str) -> str:
    """The artefact that is a figure, as `png` or `svg`."""
    return f"report/figures/{name}.{kind}"
