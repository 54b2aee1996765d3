"""stability: what methods find, and what is selected, when other prompts are drawn; from one read of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_cmp.activations import Activations
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import Extractor, ModelMethod, configured
from refusal_cmp.model.reading import collect
from refusal_cmp.report.figures import images
from refusal_cmp.report.figures.stability import drawn
from refusal_cmp.report.stability import DIGITS, Steadiness, named, selected_again, steadiness, where_selected
from refusal_cmp.report.wording import decimal, percent
from refusal_cmp.run.contents import (
    CHOICES,
    PROMPTS,
    SCORES,
    SELECTION,
    figure_file,
    read_field,
    read_fields,
    read_prompts,
    read_scores,
    read_selections,
    read_stability,
    scores_file,
    stability_file,
    subspace_file,
)
from refusal_cmp.run.session import Session
from refusal_cmp.selection.rule import Rule
from refusal_cmp.selection.scoring import PromptScores, Reach
from refusal_cmp.selection.shared import shared
from refusal_cmp.selection.stability import Draws, Pool, alike, chosen_again, is_by_prompt, planned, refitted
from refusal_cmp.stages.prompts import KINDS
from refusal_cmp.subspace import Component, SubspaceField
from refusal_cmp.terminal import line, lines

SAME = 0.99
"""Cosine that a direction which is fitted again has with the run's own, on whatever machine."""
BY_CHANCE = "draws its directions by chance, other ones each time, whatever the prompts are"
COLUMNS = ["position", "layer", "by", "n", "draw", "cosine", "overlap", "k", "why"]
"""Of a method's file, which has no rows where its directions are drawn by chance."""
KEPT_DIGITS = 5
"""Of cosines and overlaps, in files with thousands of them; three are shown."""
FEWEST_DRAWS = 20
"""That an interval of 95 % can be read off."""


class Found(NamedTuple):
    """What the command shows."""

    rows: list[Steadiness]
    choices: pd.DataFrame
    left_out: Mapping[str, str]
    """By method or choice that was not looked at: why."""


def measure(session: Session, draws: int, seed: int | None) -> Found:
    """Find out what was not found yet, write it, and draw the figure.

    Raises
    ------
    RefusalCmpError
        If nothing was selected yet, the draws are too few, or the model is no longer the one that was read.
    """
    if draws < FEWEST_DRAWS:
        raise RefusalCmpError(
            f"An interval takes {FEWEST_DRAWS} draws or more, and {draws} are asked for; raise it.", draws=""
        )
    run, config = session.run, session.config
    run.require(SELECTION)
    methods = {name: configured(config, name) for name in config.methods}
    left_out = {name: why for name, method in methods.items() if (why := _why_not(method))}
    fitted = {name: method for name, method in methods.items() if isinstance(method, Extractor)}
    if not fitted:
        raise RefusalCmpError(
            f"No method of {run.path} is fitted to activations: {', '.join(f'{k} {v}' for k, v in left_out.items())}."
        )
    drawn_with = {"draws": draws, "seed": config.seed if seed is None else seed}
    with run.locked():
        where = _components(session, list(fitted))
        _measure_directions(session, fitted, where, drawn_with)
        left_out |= _measure_choices(session, drawn_with)
        found = read_stability(session)
        assert found is not None, "it has just been written"
        rows = steadiness(found, _selected(session))
        left_out |= {name: BY_CHANCE for name in fitted if name not in {row.method for row in rows}}
        pictures = [drawn(rows, found.choices, _first_selected(session))] if rows else []
        for (name, kind), image in images(pictures).items():
            run.write_bytes(figure_file(name, kind), image)
        run.save()
    return Found(rows, found.choices, left_out)


def _why_not(method: object) -> str:
    if isinstance(method, ModelMethod):
        return "finds its directions by what the model does under edits, so that every draw would be a run of its own"
    return "" if isinstance(method, Extractor) else "has directions that were given, and fits none"


def _selected(session: Session) -> dict[str, set[Component]]:
    """The components that were selected with each method's subspaces, by whatever k policy."""
    extracted_by = {field.method: field.extracted_by for field in read_fields(session)}
    return where_selected(extracted_by, read_selections(session))


def _first_selected(session: Session) -> dict[str, Component]:
    """What was selected, by method with its k policy."""
    return {one.method: one.selected for one in read_selections(session)}


def _components(session: Session, names: Sequence[str]) -> dict[str, list[Component]]:
    """Where each method is fitted: at its own selected components, and at the one that all could share."""
    selected = _selected(session)
    try:
        common = [shared(read_selections(session))]
    except RefusalCmpError:  # no component has a subspace of every method
        common = []
    return {
        name: [at for at in dict.fromkeys((*sorted(selected[name]), *common)) if at in read_field(session, name)]
        for name in names
    }


def _measure_directions(
    session: Session,
    methods: Mapping[str, Extractor],
    where: Mapping[str, Sequence[Component]],
    drawn_with: Mapping[str, Any],
) -> None:
    """Write a file for each method that has none of these draws yet."""
    run, config = session.run, session.config
    sources = {
        name: {**drawn_with, **{file: run.digest(file) for file in (PROMPTS, subspace_file(name), SELECTION)}}
        for name in methods
    }
    missing = [name for name in methods if not run.is_fresh(stability_file(name), {}, sources[name])]
    if not missing:
        return
    activations = _read(session, sorted({at.position for name in missing for at in where[name]}))
    pools: dict[Component, tuple[Pool, list[Draws]]] = {}
    for name in missing:
        field, tables = read_field(session, name), []
        for at in where[name]:
            if at not in pools:
                pool = Pool.at(activations, at)
                pools[at] = pool, planned(pool, config.dev_share, drawn_with["seed"], drawn_with["draws"])
            pool, plans = pools[at]
            if _is_by_chance(methods[name], pool):
                break
            _check_same(session, methods[name], pool, field, at)
            total = sum(len(one) for _, _, those in plans for one in those)
            with session.progress(f"drawing prompts for {name} at {at}", total) as advance:
                found = alike(methods[name], pool, field[at], plans, advance)
            tables.append(found.assign(position=at.position, layer=at.layer))
        table = pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)
        run.write_table(stability_file(name), table.round(dict.fromkeys(("cosine", "overlap"), KEPT_DIGITS)))
        run.record(stability_file(name), {}, sources[name])


def _read(session: Session, positions: Sequence[int]) -> Activations:
    """The activations of the run's own training prompts, as extract read them; they were not kept."""
    config = session.config
    train = [read_prompts(session, f"{kind}_train") for kind in KINDS]
    return collect(
        session.model,
        *[[prompt.instruction for prompt in prompts] for prompts in train],
        positions=tuple(positions),
        dev_share=config.dev_share,
        seed=config.seed,
        batch_size=config.batch_size,
        categories={prompt.instruction: prompt.category for prompts in train for prompt in prompts},
        folder=session.run.path,
        progress=session.progress,
    )


def _is_by_chance(method: Extractor, pool: Pool) -> bool:
    """Whether a method finds another direction each time in the same prompts."""
    one, other = refitted(method, pool, [pool.strata()] * 2)
    return not isinstance(one, str) and not isinstance(other, str) and float(one.direction @ other.direction) < SAME


def _check_same(session: Session, method: Extractor, pool: Pool, field: SubspaceField, at: Component) -> None:
    """RefusalCmpError where the prompts that the run drew give another direction now than they gave it."""
    (again,) = refitted(method, pool, [pool.strata()])
    cosine = 0.0 if isinstance(again, str) else float(again.direction @ field[at].direction)
    if cosine < SAME:
        raise RefusalCmpError(
            f"The model {session.config.model} does not give {session.run.path} the direction of {field.method} at "
            f"{at} again (a cosine of {cosine:.2f}), so it is another than the run was made with; give that, or run "
            f"{session.run.command('run')} again."
        )


def _measure_choices(session: Session, drawn_with: Mapping[str, Any]) -> dict[str, str]:
    """Write how often each component is selected; the choices that cannot be looked at, and why."""
    run, config = session.run, session.config
    fields = read_fields(session)
    rules = {field.method: Rule.of(config, field.extracted_by) for field in fields}
    left_out = {
        f"the choice with {name}": f"is by {rule.rank_key}, which is no mean over prompts"
        for name, rule in rules.items()
        if not is_by_prompt(rule)
    }
    reach: tuple[Reach, ...] = ("local",) if config.rank_by == "local" else ("local", "global")
    by_prompt = [field for field in fields if is_by_prompt(rules[field.method])]
    files = [SELECTION, SCORES, *(scores_file(field.method, one) for field in by_prompt for one in reach)]
    sources = {**drawn_with, **{file: run.digest(file) for file in files}}
    if run.is_fresh(CHOICES, {}, sources):
        return left_out
    tables = []
    with session.progress("drawing validation prompts", len(by_prompt)) as advance:
        for field in by_prompt:
            those, scores = _scored(session, field, reach)
            again = chosen_again(those, scores, rules[field.method], drawn_with["seed"], drawn_with["draws"])
            tables.append(again.assign(method=field.method))
            advance(1)
    columns = ["method", "position", "layer", "share"]
    found = pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
    run.write_table(CHOICES, found)
    run.record(CHOICES, {}, sources)
    return left_out


def _scored(
    session: Session, field: SubspaceField, reaches: Sequence[Reach]
) -> tuple[SubspaceField, dict[Reach, PromptScores]]:
    """The components that were scored with as many directions as are used, and their scores on every prompt."""
    known = {reach: read_scores(session, field.method, reach) for reach in reaches}
    those = field.only([at for at in field if all((*at, field[at].k) in rows for rows, _ in known.values())])
    if not len(those):
        raise RefusalCmpError(
            f"The scores of {field.method} in {session.run.path} do not say which components they are of, as they are "
            f"of an older version; run {session.run.command('select')} again, with --force."
        )
    return those, {
        reach: scores.at([rows[*at, those[at].k] for at in those]) for reach, (rows, scores) in known.items()
    }


def print_stability(console: Console, session: Session, found: Found) -> None:
    """Three tables: directions, the sample-size curve, and choices."""
    _print_directions(console, found.rows)
    _print_curve(console, found.rows)
    _print_choices(console, found.choices, _first_selected(session))
    for name, why in found.left_out.items():
        console.print(line(f"Left out: {name} {why}."), highlight=False)
    console.print(
        line(
            f"{session.run.path / figure_file('stability', 'png')} shows it; `{_report(session)}` puts it on the page."
        ),
        style="dim",
        highlight=False,
    )


def _report(session: Session) -> str:
    return session.run.command("report").strip("`")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=None, header_style="bold", title_justify="left", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "method")
    return table


def _print_directions(console: Console, rows: Sequence[Steadiness]) -> None:
    headings = ("method", "at", "bootstrap", "halves", "overlap", "directions (splits)")
    table = _table("Cosines and overlaps: medians, and between what 95 % of the draws are", *headings)
    for one in rows:
        at = f"{one.component}" + ("" if one.chosen else "\nshared")
        spreads = [str(of).replace(" [", "\n[") for of in (one.bootstrap, one.halves, one.overlap)]
        table.add_row(line(one.method), lines(at), *map(lines, spreads), line(one.rank))
    console.print(table)


def _print_curve(console: Console, rows: Sequence[Steadiness]) -> None:
    sizes = sorted({n for one in rows for n in one.curve})
    if not sizes:
        return
    title = "Median cosine between draws of so many prompts of each class without one in common"
    table = _table(title, "method", "at", *map(str, sizes))
    for one in rows:
        pairs = [one.curve.get(n, (None, None))[1] for n in sizes]
        cells = ["–" if pair is None or not pair.found else decimal(pair.middle, DIGITS) for pair in pairs]
        table.add_row(line(one.method), line(str(one.component)), *map(line, cells))
    console.print(table)


def _print_choices(console: Console, choices: pd.DataFrame, selected: Mapping[str, Component]) -> None:
    table = _table("Choices with validation prompts drawn anew", "method", "selected", "selected again", "most often")
    for method, at in selected.items():
        if (choices["method"] == method).any():
            share = percent(selected_again(choices, method, at))
            table.add_row(line(method), line(str(at)), share, line(named(choices, method)))
    console.print(table)
