"""select: subspaces → scores of every component → a ranking and a choice for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache

import pandas as pd

from refusal_cmp.config import RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Selected
from refusal_cmp.interventions import Setting
from refusal_cmp.registry import parse_spec
from refusal_cmp.scoring import PromptScores, Reach, Scorer
from refusal_cmp.selection import Rule, Selection, outcome, ranked_table
from refusal_cmp.session import Session
from refusal_cmp.stages.compare import compare_rankings
from refusal_cmp.stages.extract import KINDS, PROMPTS, read_field, read_prompts, subspace_file
from refusal_cmp.subspace import Component, SubspaceField

SCORES = "select/scores.csv"
SELECTION = "select/selection.json"
BASELINE = "select/baseline.json"


def select_stage(session: Session) -> None:
    """Score, filter and rank the components of every method, and compare the rankings if asked."""
    config, run = session.config, session.run
    settings = config.binding("select")
    reaches: list[Reach] = ["local", "global"] if config.compare_rankings or config.rank_by == "global" else ["local"]
    fields = read_fields(session)
    run.is_fresh(SCORES, settings, {})  # a changed setting is an error before any work
    scorer = cache(lambda: _scorer(session))
    scores = {field.method: {reach: _scores(session, field, reach, scorer) for reach in reaches} for field in fields}
    rules = {field.method: _rule(config, field) for field in fields}
    tables = [ranked_table(field, scores[field.method], rules[field.method]) for field in fields]
    selections = [outcome(table, field) for table, field in zip(tables, fields, strict=True)]
    for selection in selections:
        _report(session, selection)
    run.write_table(SCORES, pd.concat(tables, ignore_index=True))
    baseline = _baseline(session, scorer)
    run.write_json(
        SELECTION,
        {"rank_by": config.rank_by, "baseline": baseline, "methods": [asdict(one) for one in selections]},
    )
    run.record(SCORES, settings, {subspace_file(name): run.digest(subspace_file(name)) for name in config.methods})
    if config.compare_rankings:
        sources = {_file(field, reach): run.digest(_file(field, reach)) for field in fields for reach in reaches}
        edits = {field.method: _score_setting(config, field) for field in fields}
        compare_rankings(session, fields, tables, scores, rules, edits, baseline, sources)


def read_fields(session: Session) -> list[SubspaceField]:
    """The subspaces of every method, with every k policy of INLP."""
    config = session.config
    fields = []
    for name in config.methods:
        field = read_field(session, name)
        of_inlp = parse_spec(name)[0] == "inlp"
        fields += [field.leading(policy) for policy in config.inlp_k] if of_inlp else [field]
    return fields


def read_selections(session: Session) -> list[Selection]:
    """What select chose for each of `read_fields`; an error for a method that it has not scored."""
    session.run.require(SELECTION, "select")
    selections = {}
    for row in session.run.read_json(SELECTION)["methods"]:
        row |= {name: tuple(Component(*c) for c in row[name]) for name in ("ranking", "kept")}
        selections[row["method"]] = Selection(**{**row, "selected": Component(*row["selected"])})
    methods = [field.method for field in read_fields(session)]
    for method in methods:
        if method not in selections:
            raise RefusalCmpError(
                f"select has not scored {method} in {session.run.path}, only {', '.join(selections)}; run "
                "`refusal-cmp select` with the same methods first."
            )
    return [selections[method] for method in methods]


def read_selected(session: Session) -> list[Selected]:
    """The subspaces of every method with the component that was selected."""
    pairs = zip(read_fields(session), read_selections(session), strict=True)
    return [Selected(field, selection.selected) for field, selection in pairs]


def setting(config: RunConfig) -> Setting:
    """The choices that hold for all interventions of a run."""
    return Setting(sites=config.sites, spread=config.spread, compose=config.compose, norm=config.actadd_norm)


def _score_setting(config: RunConfig, field: SubspaceField) -> Setting:
    """That of the plans, with other sites where the method has its own for scores."""
    sites = config.score_sites_of.get(parse_spec(field.extracted_by)[0], config.sites)
    return replace(setting(config), sites=sites)


def _rule(config: RunConfig, field: SubspaceField) -> Rule:
    return Rule(
        induce_threshold=config.induce_threshold,
        kl_threshold=config.kl_threshold,
        prune_layers=config.prune_layers,
        multipliers=config.induce_multipliers,
        induce_aggregate=config.induce_aggregate,
        rank_by=config.rank_by,
        rank_key=config.rank_key_of.get(parse_spec(field.extracted_by)[0], config.rank_key),
    )


def _scores(session: Session, field: SubspaceField, reach: Reach, scorer: Callable[[], Scorer]) -> PromptScores:
    """The per-prompt scores of a method, from its file if that was made from the same things.

    `scorer` is called only if there is something to score; all methods then share its unedited passes.
    """
    config, run = session.config, session.run
    name = _file(field, reach)
    edits = _score_setting(config, field)
    settings = config.binding("select")
    settings = {key: settings[key] for key in ("induce_multipliers", "kl_epsilon", "spread", "actadd_norm")}
    settings["sites"] = list(edits.sites)
    sources = {file: run.digest(file) for file in (PROMPTS, subspace_file(field.extracted_by))}
    if not run.is_fresh(name, settings, sources):
        scores = scorer().score(
            field,
            reach,
            multipliers=config.induce_multipliers,
            setting=edits,
            progress=session.progress,
        )
        tensors = {"bypass": scores.bypass, "induce": scores.induce, "kl": scores.kl}
        run.write_tensors(name, tensors, {"method": field.method, "reach": reach})
        run.record(name, settings, sources)
    return PromptScores(**run.read_tensors(name)[0])


def _file(field: SubspaceField, reach: Reach) -> str:
    return f"select/{field.method}.{reach}.safetensors"


def _baseline(session: Session, scorer: Callable[[], Scorer]) -> dict[str, float]:
    """The unedited model's mean refusal metric on the validation prompts of each kind."""
    sources = {PROMPTS: session.run.digest(PROMPTS)}
    if not session.run.is_fresh(BASELINE, {}, sources):
        means = {"harmful": scorer().baseline("harmful"), "harmless": scorer().baseline("harmless")}
        session.run.write_json(BASELINE, {kind: float(metric.mean()) for kind, metric in means.items()})
        session.run.record(BASELINE, {}, sources)
    return session.run.read_json(BASELINE)


def _scorer(session: Session) -> Scorer:
    harmful, harmless = ([p.instruction for p in read_prompts(session, f"{kind}_val")] for kind in KINDS)
    tokens: Sequence[int] = session.run.read_json(PROMPTS)["refusal_tokens"]
    return Scorer(session.model, harmful, harmless, tokens, kl_epsilon=session.config.kl_epsilon)


def _report(session: Session, selection: Selection) -> None:
    n, kept = len(selection.ranking), len(selection.kept)
    if selection.fallback:
        session.say(
            f"Warning: {selection.method}: the filters keep none of {n} components; the best of all by bypass, "
            f"{selection.selected}, is taken."
        )
    else:
        session.say(f"{selection.method}: {selection.selected} selected; the filters keep {kept} of {n} components.")
    if selection.nan:
        session.say(f"Warning: {selection.method}: {selection.nan} components have NaN scores and are not ranked.")
