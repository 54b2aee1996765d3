"""select: subspaces → scores of every component → a ranking and a choice for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pandas as pd
import torch

from refusal_cmp.config import BUDGET, CHOOSING, KEEPING, KINDS, STAGES, RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.completion import judge
from refusal_cmp.methods import configured
from refusal_cmp.plan import number
from refusal_cmp.planning import UNIT_METHOD, Chosen, Scope, Setting, make_plan
from refusal_cmp.registry import parse_spec
from refusal_cmp.report.wording import counted, log_odds, span
from refusal_cmp.run.contents import (
    BASELINE_SCORES,
    PROMPTS,
    RANKINGS,
    SCORES,
    SELECTION,
    budget_file,
    budgeted,
    read_choices,
    read_field,
    read_fields,
    read_means,
    read_prompts,
    read_refusal_tokens,
    read_scores,
    scores_file,
    subspace_file,
)
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Missed, Rule, Selection, missed, outcome, ranked_table
from refusal_cmp.selection.among import among, chosen, left_out, said
from refusal_cmp.selection.budget import within_budget
from refusal_cmp.selection.rankings import prediction, spread_out, study
from refusal_cmp.selection.rule import Ruled
from refusal_cmp.selection.scoring import PromptScores, Reach, Scorer
from refusal_cmp.stages.ranking_rules import compare_rules, note_seconds, rule_scores, rules_of, scored_with
from refusal_cmp.subspace import Component, SubspaceField

JUDGED_COMPONENTS = 12
"""Whose removal is also judged on whole completions, in the ranking study."""


def select_stage(session: Session) -> None:
    """Score, filter and rank the components of every method, and compare the rankings if asked."""
    config, run = session.config, session.run
    settings = config.binding("select")
    choosing = config.marked(CHOOSING)
    kept = {name: value for name, value in settings.items() if name not in choosing}
    reaches: list[Reach] = ["local", "global"] if config.compare_rankings or config.rank_by == "global" else ["local"]
    run.check_settings(SCORES, kept)  # before any work
    post, read = read_means(session), [read_field(session, name).means.positions for name in config.methods]
    chosen(config, post.positions, post.n_layers, sorted({at for some in read for at in some} - {*post.positions}))
    scorer = cache(lambda: _scorer(session))
    for name in config.methods:
        if BUDGET in config.inlp_k and configured(config, name).has_k:
            _settle_budget(session, among(read_field(session, name), config), scorer)
    fields = [among(field, config) for field in read_fields(session)]
    choice = said(config)
    if choice:
        session.say(choice)
    unit = _selected_norm(session, fields, reaches, scorer)
    scores = {
        field.method: {reach: _scores(session, field, reach, scorer, unit) for reach in reaches} for field in fields
    }
    rules = {field.method: Rule.of(config, field.extracted_by) for field in fields}
    edits = {field.method: _score_setting(config, field) for field in fields}
    ruled = {
        field.method: {
            which: rule_scores(session, field, which, edits[field.method], scorer, unit)
            for which in rules_of(session, rules[field.method], reaches)
        }
        for field in fields
    }
    tables = [ranked_table(field, scores[field.method], rules[field.method], ruled[field.method]) for field in fields]
    selections = [outcome(table, field, rules[field.method]) for table, field in zip(tables, fields, strict=True)]
    _check_choice(session, choosing, selections, pd.concat(tables, ignore_index=True))
    baseline = _baseline(session, scorer)
    for field, selection, table in zip(fields, selections, tables, strict=True):
        bypass = float(table.loc[table["selected"], f"{config.rank_by}_bypass"].iloc[0])
        unscored = left_out(read_field(session, field.extracted_by), config) if selection.fallback else 0
        _report(session, selection, bypass, unscored)
        _warn(session, selection, missed(table, rules[field.method], baseline["harmful"]), baseline["harmful"])
    run.write_table(SCORES, pd.concat(tables, ignore_index=True))
    run.write_json(
        SELECTION,
        {
            "rank_by": config.rank_by,
            "baseline": baseline,
            "choice": choice,
            "methods": [asdict(one) for one in selections],
        },
    )
    run.record(
        SCORES,
        kept,
        {"choosing": choosing} | {subspace_file(name): run.digest(subspace_file(name)) for name in config.methods},
    )
    sources = {
        scores_file(field.method, reach): run.digest(scores_file(field.method, reach))
        for field in fields
        for reach in reaches
    }
    if choice:
        sources["choice"] = choice
    if config.ranking_rules:
        compare_rules(session, fields, tables, reaches, sources)
    if config.compare_rankings:
        _compare_rankings(session, fields, tables, scores, ruled, rules, edits, sources)


def _check_choice(
    session: Session, choosing: Mapping[str, Any], selections: Sequence[Selection], table: pd.DataFrame
) -> None:
    """Say what another threshold changes: what is chosen, and what is outdated by that.

    Raises
    ------
    RefusalCmpError
        If the command would go on to replace finished completions.
    """
    run = session.run
    record = run.manifest.get("artifacts", {}).get(SCORES)
    before = {} if record is None or "select" in run.force else record["sources"].get("choosing", {})
    changed = [name for name, value in choosing.items() if name in before and before[name] != value]
    if not changed or not run.has(SELECTION):
        return
    how = ", ".join(f"{name.replace('_', '-')} was {before[name]} and is now {choosing[name]}" for name in changed)
    chosen, order = read_choices(run), (before.get("pool", choosing["pool"]), choosing["pool"])
    used = [_directions(run.read_table(SCORES)), _directions(table)]
    moved = [
        one.method
        for one in selections
        if (old := chosen.get(one.method))
        and (old.selected, old.pool(order[0]), used[0].get(one.method))
        != (one.selected, one.pool(order[1]), used[1].get(one.method))
    ]
    finished = [name for name in STAGES[STAGES.index("select") + 1 :] if name in run.manifest.get("stages", {})]
    if moved and finished and "infer" in session.stages:
        raise RefusalCmpError(
            f"{how}, which changes what is chosen with {', '.join(moved)}, and {run.path} has finished work with the "
            f"old choice; keep it and name another run, or choose anew with {run.command('select')} and then run the "
            "later stages again.",
            alias="NAME",
        )
    session.say(f"{how}: the stored scores are ranked again.")
    if not moved:
        session.say("What is chosen stays the same.")
        return
    outdated = run.outdate(finished)
    said = f"The choice is another with {', '.join(moved)}"
    session.say(f"{said}; {', '.join(outdated)} have to be run again." if outdated else f"{said}.")


def _directions(scores: pd.DataFrame) -> dict[str, int]:
    """How many directions every method uses at its selected component."""
    chosen = scores[scores["selected"]]
    return dict(zip(chosen["method"], chosen["k"], strict=True))


def _score_setting(config: RunConfig, field: SubspaceField) -> Setting:
    """That of the plans, but that additions reach as far as removals, at the sites that a method has for scores."""
    sites = config.score_sites_of.get(parse_spec(field.extracted_by)[0], config.sites)
    return replace(Setting.of(config), sites=sites, layers="scope")


def _settle_budget(session: Session, field: SubspaceField, scorer: Callable[[], Scorer]) -> None:
    """Write how many leading directions of a method stay within the KL budget, unless that stands there."""
    config, run = session.config, session.run
    name, edits = budget_file(field.method), _score_setting(config, field)
    settings = {**config.marked(KEEPING), "sites": list(edits.sites)}
    sources = {file: run.digest(file) for file in (PROMPTS, subspace_file(field.method))}
    tried = pd.DataFrame({"position": [], "layer": [], "k": [], "kl": []})
    if run.is_fresh(name, settings, sources):
        tried = run.read_table(name)
    found = dict(budgeted(tried, config.kl_threshold))
    next_k = {at: found[at][0] - 1 if at in found else field[at].k for at in field}
    left = field.first({at: k for at, k in next_k.items() if k > 0 and not found.get(at, (0, False))[1]})
    if len(left):
        tries = [[*at, one.k] for at, one in left.subspaces.items()]
        done = run.journal(name, [settings, sources, config.kl_threshold, tries])
        more = within_budget(scorer(), left, config.kl_threshold, setting=edits, done=done, progress=session.progress)
        run.write_table(name, pd.concat([tried, more]) if found else more)
        run.record(name, settings, sources)
        done.discard()
    found = {at: of for at, of in budgeted(run.read_table(name), config.kl_threshold) if at in field.subspaces}
    k = {at: number for at, (number, _) in found.items()}
    without = sum(not within for _, within in found.values())
    used = span(min(k.values()), max(k.values()))
    its = "first direction is" if used == "1" else f"first {used} directions are"
    session.say(
        f"{field.method}: its {its} used, as many as stay within a KL of {number(config.kl_threshold)} nats; at "
        f"{without} of {counted(len(k), 'component')} not even one does."
    )


def _selected_norm(
    session: Session, fields: list[SubspaceField], reaches: list[Reach], scorer: Callable[[], Scorer]
) -> float | None:
    """The norm of the selected difference in means, where the candidates of the other methods are steered by it."""
    found = [field for field in fields if field.method == UNIT_METHOD]
    if session.config.actadd_norm == "own" or not found:
        return None
    scores = {reach: _scores(session, found[0], reach, scorer, None) for reach in reaches}
    rule, edits = Rule.of(session.config, found[0].extracted_by), _score_setting(session.config, found[0])
    ruled = {
        which: rule_scores(session, found[0], which, edits, scorer, None)
        for which in rules_of(session, rule, ())  # that which ranks, if one does
    }
    table = ranked_table(found[0], scores, rule, ruled)
    return found[0].means.distance(outcome(table, found[0], rule).selected)


def _scores(
    session: Session, field: SubspaceField, reach: Reach, scorer: Callable[[], Scorer], unit: float | None
) -> PromptScores:
    """The per-prompt scores of a method, from its file as far as they stand there and were made from the same things.

    `scorer` is called only if there is something to score; all methods then share its unedited passes. `unit` is the
    selected norm, which a candidate difference in means does not know yet: it is added with the norm that it has.
    """
    config, run = session.config, session.run
    name = scores_file(field.method, reach)
    edits = _score_setting(config, field)
    unit = None if field.method == UNIT_METHOD else unit
    settings, sources = scored_with(session, field, edits, unit)
    scored: dict[tuple[int, ...], int] = {}
    if run.is_fresh(name, settings, sources):
        scored, scores = read_scores(session, field.method, reach)
    left = field.only([at for at, subspace in field.subspaces.items() if (*at, subspace.k) not in scored])
    if len(left):
        new = [(*at, subspace.k) for at, subspace in left.subspaces.items()]
        done = run.journal(name, [settings, sources, new])
        begun, one = bool(done or scored), scorer()
        more = one.score(
            left,
            reach,
            multipliers=config.induce_multipliers,
            setting=edits,
            selected_norm=unit,
            done=done,
            progress=session.progress,
        )
        note_seconds(session, name, None if begun else one.bypass_seconds)
        scores = scores + more if scored else more
        scored |= {key: len(scored) + row for row, key in enumerate(new)}
        tensors = {"bypass": scores.bypass, "induce": scores.induce, "kl": scores.kl, "scored": torch.tensor([*scored])}
        run.write_tensors(name, tensors, {"method": field.method, "reach": reach})
        run.record(name, settings, sources)
        done.discard()
    return scores.at([scored[*at, subspace.k] for at, subspace in field.subspaces.items()])


def _baseline(session: Session, scorer: Callable[[], Scorer]) -> dict[str, float]:
    """The unedited model's mean refusal metric on the validation prompts of each kind."""
    sources = {PROMPTS: session.run.digest(PROMPTS)}
    if not session.run.is_fresh(BASELINE_SCORES, {}, sources):
        means = {"harmful": scorer().baseline("harmful"), "harmless": scorer().baseline("harmless")}
        session.run.write_json(BASELINE_SCORES, {kind: float(metric.mean()) for kind, metric in means.items()})
        session.run.record(BASELINE_SCORES, {}, sources)
    return session.run.read_json(BASELINE_SCORES)


def _scorer(session: Session) -> Scorer:
    harmful, harmless = ([p.instruction for p in read_prompts(session, f"{kind}_val")] for kind in KINDS)
    tokens = read_refusal_tokens(session)
    return Scorer(session.model, harmful, harmless, tokens, kl_epsilon=session.config.kl_epsilon)


def _report(session: Session, selection: Selection, bypass: float, unscored: int) -> None:
    """Say what was chosen, how well it removes, and how many components nobody has looked at."""
    n, kept = len(selection.ranking), len(selection.kept)
    if selection.fallback:
        dropped = ", ".join(f"{name} {count}" for name, count in selection.dropped.items())
        effect = (
            ""
            if bypass < 0
            else f" Its removal leaves refusal likelier than not (a bypass score of {log_odds(bypass)})."
        )
        others = (
            f" Other components ({unscored}) were not scored, and may meet the filters (--layers, --positions)."
            if unscored
            else ""
        )
        session.say(
            f"Warning: {selection.method}: the filters keep none of {counted(n, 'component')} (dropped by {dropped}); "
            f"with {selection.options} they would keep {selection.selected}, which is taken.{effect}{others}"
        )
    else:
        session.say(
            f"{selection.method}: {selection.selected} selected; the filters keep {kept} of {counted(n, 'component')}."
        )
    if selection.nan:
        have = "component has NaN scores and is" if selection.nan == 1 else "components have NaN scores and are"
        session.say(f"Warning: {selection.method}: {selection.nan} {have} not ranked.")


def _warn(session: Session, selection: Selection, other: Missed | None, unedited: float) -> None:
    """Say so where the KL threshold alone decides how much refusal the selected component can remove."""
    if other is not None:
        session.say(
            f"Warning: {selection.method}: {other.sentence(unedited, session.config.kl_threshold)} "
            f"{session.run.command('select --what-if')} says what other thresholds would choose, and `--component "
            "shared` compares all methods at one component."
        )


def _compare_rankings(
    session: Session,
    fields: list[SubspaceField],
    tables: list[pd.DataFrame],
    scores: Mapping[str, Mapping[Reach, PromptScores]],
    ruled: Mapping[str, Ruled],
    rules: Mapping[str, Rule],
    settings: Mapping[str, Setting],
    sources: Mapping[str, Any],
) -> None:
    """Write `select/rankings.json`, unless it was made from the same scores."""
    config, run = session.config, session.run
    choosing = config.marked(CHOOSING)
    made_with = {name: value for name, value in config.binding("select").items() if name not in choosing}
    made_with["max_new_tokens"] = config.max_new_tokens
    sources = {**sources, "choosing": choosing}
    if run.is_fresh(RANKINGS, made_with, sources):
        return
    studies, done = [], run.journal(RANKINGS, [made_with, sources])
    with session.progress("comparing rankings", len(fields) * JUDGED_COMPONENTS) as advance:
        for i, (field, table) in enumerate(zip(fields, tables, strict=True)):
            name = field.method
            of_method = study(field, table, scores[name], rules[name], config.seed, ruled[name])
            bypass, refused = [], []
            for j, row in enumerate(spread_out(table, JUDGED_COMPONENTS)):
                index = i * JUDGED_COMPONENTS + j
                if index not in done:
                    component = Component(int(table.loc[row, "position"]), int(table.loc[row, "layer"]))
                    done[index] = _refused(session, field, component, settings[field.method])
                bypass.append(float(table.loc[row, "local_bypass"]))
                refused.append(done[index])
                advance(1)
            judged = {**prediction(bypass, refused), "bypass": bypass, "refused": refused}
            studies.append({**of_method, "completions": judged})
    run.write_json(RANKINGS, studies)
    run.record(RANKINGS, made_with, sources)
    done.discard()


def _refused(session: Session, field: SubspaceField, component: Component, setting: Setting) -> float:
    """Share of whole completions of harmful prompts that refuse under the local removal edit of a component."""
    instructions = [prompt.instruction for prompt in read_prompts(session, "harmful_val")]
    plan = make_plan("nullspace", Chosen(field, component, (component,)), Scope("single"), setting=setting)
    with session.model.edited(plan):  # the scorer has it in memory: no second engine beside it
        completions = session.model.generate(
            instructions, max_new_tokens=session.config.max_new_tokens, batch_size=session.config.batch_size
        )
    verdicts = [judge(one.text, one.finish, turns=session.model.turns).verdict for one in completions]
    return verdicts.count("refused") / len(verdicts)
