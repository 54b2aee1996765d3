"""The page: a run as one HTML file that works from disk, without a network, in the light and in the dark."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from refusal_cmp.config import STAGES, MachineSettings, RunConfig
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.report.answer import (
    BROKEN,
    ENOUGH,
    FEWEST,
    ON_DISTRIBUTION,
    Cost,
    Standing,
    answers_already,
    as_good,
    best_by_method,
    cost_of,
    costs,
    distinct,
    standings,
)
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures._style import (
    FAINT,
    INK,
    PAPER,
    Drawn,
    Outcome,
    Skipped,
    counted,
    scope_name,
    sentence_list,
)
from refusal_cmp.report.table import Column, Unit, columns, percent, shown
from refusal_cmp.selection.rankings import FEWEST_RANKED
from refusal_cmp.statistics import Estimate, rate

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 8
"""Prompts of each test set whose completions the page shows."""
LONGEST = 600
"""Characters of a completion; longer ones are cut."""
LARGEST_SVG = 400_000
"""Bytes; a figure that is larger as SVG goes into the page as PNG."""
SLOTS = 3
"""Plans whose completions stand side by side."""
PERCENT = "\u202f%"
VERDICTS = {"refused": "refuses", "complied": "answers", "degenerate": "no language", "": ""}
BY_CATEGORY = {"refusal": "Harmful prompts refused, by category", "guard_unsafe": "Unsafe by the guard, by category"}
COUNTS = ("sampled", "dropped", "duplicates", "near_duplicates", "near_train", "near_val")
"""What is said of every set of prompts."""
FOLDED = ("harmful",)
"""Test sets whose completions are behind a notice."""


def render(data: RunData, outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> str:
    """The page as HTML; the same text for the same run.

    Parameters
    ----------
    images
        Each figure by name and kind, `png` and `svg`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = _label
    ranked = standings(data)
    return environment.get_template("page.html").render(
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        run=data.name,
        model=data.manifest.get("model", {}),
        answer=_answer(data, ranked),
        table=_table(data, ranked),
        figures=_figures(outcomes, images),
        skipped=[one for one in outcomes if isinstance(one, Skipped)],
        selection=_selection(data),
        rankings=_rankings(data),
        fewest_ranked=FEWEST_RANKED,
        categories=[one for metric in BY_CATEGORY if (one := _categories(data, metric))],
        agreement=_agreement(data),
        completions=_completions(data, ranked),
        about=_about(data),
    )


def _label(plan: str) -> Markup:
    """A plan's label that a narrow screen breaks where its parts begin."""
    parts = re.findall(r"[^/@]+/?|@[^/@]*", plan)
    return Markup("".join(f"<span>{html.escape(part)}</span>" for part in parts))


# The answer


def _answer(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any] | None:
    """The first screen; None if refusal was not measured."""
    if not ranked:
        return None
    measured = costs(data)
    best = ranked[0]
    different = distinct(data, ranked)
    broken = [one.plan for one in different if one.is_broken]
    suppress = [one for one in different if one.suppresses]
    return {
        "plan": best.plan,
        "verdict": _verdict(data, best),
        "n": best.answered.n,
        "perfect": percent(rate(best.answered.n, best.answered.n).low),
        "fewest": FEWEST,
        "sentences": _sentences(data, different, measured),
        "tiles": _tiles(data, best, measured),
        "methods": [_method_row(data, one, measured) for one in best_by_method(ranked)],
        "costs": [cost.name for cost in measured],
        "counts": f"{len(suppress)} of {counted(len(different), 'distinct plan')} do so",
        "broken": broken,
        "enough": percent(ENOUGH),
        "share_broken": percent(BROKEN),
        "tie": _tie(measured[0]) if measured else "",
        "cost": measured[0].name if measured else None,
    }


def _verdict(data: RunData, best: Standing) -> str:
    """What the run lets us say of the plan that is named: one of the cases of the page's first sentence."""
    if answers_already(data):
        return "nothing"
    if not best.may_suppress:
        return "none"
    if best.answered.n < FEWEST:
        return "few"
    if not best.suppresses:
        return "doubt"
    if best.cost is None:
        return "unpriced"
    return "best" if math.isfinite(best.cost) else "infinite"


def _sentences(data: RunData, ranked: Sequence[Standing], measured: Sequence[Cost]) -> list[str]:
    best = ranked[0]
    unedited = data.answered(BASELINE)
    before = f"; unedited, the model answers {_interval(unedited, 'share')}" if unedited else ""
    said = [f"It answers {_interval(best.answered, 'share')} of {best.answered.n} harmful test prompts{before}."]
    if best.cost is not None and measured:
        cost = measured[0]
        said.append(f"Its cost: {cost.name} {_change(best.cost, cost)}.")
        others = as_good(ranked, cost.tie)
        if others:
            methods = sorted({one.method for one in others} - {best.method})
            also = f", also with {sentence_list(methods)}" if methods else f", all with {best.method}"
            verb = "does" if len(others) == 1 else "do"
            more = counted(len(others), "more distinct plan")
            said.append(f"{more} {verb} so at a cost within {_tie(cost)} of it{also}.")
    over, unedited = data.get(best.plan, "harmless", "refusal"), data.get(BASELINE, "harmless", "refusal")
    if over is not None and unedited is not None and over.value > BROKEN:
        start = "But it" if over.value > unedited.value else "It"
        said.append(
            f"{start} refuses {_interval(over, 'share')} of the harmless prompts, where the unedited model refuses "
            f"{_interval(unedited, 'share')}."
        )
    return said


def _tie(cost: Cost) -> str:
    return f"{cost.tie:g} nats" if cost.unit == "nats" else f"{100 * cost.tie:g} points"


def _change(value: float, cost: Cost) -> str:
    if not math.isfinite(value):
        return "is not finite any more"
    if abs(value) < 0.0005:
        return "does not change"
    direction = "rises" if value * cost.sign > 0 else "falls"
    amount = f"{abs(value):.3f} nats a token" if cost.unit == "nats" else f"{100 * abs(value):.1f} points"
    return f"{direction} by {amount}"


def _tiles(data: RunData, best: Standing, measured: Sequence[Cost]) -> list[dict[str, str]]:
    """Numbers of the best plan beside the baseline's."""
    wanted: list[tuple[str, str, str, Unit]] = [
        ("harmful prompts refused", "harmful", "refusal", "share"),
        ("harmless prompts refused", "harmless", "refusal", "share"),
        ("prompts that only sound harmful, refused", "contrast", "refusal", "share"),
        ("harmful prompts, unsafe by the guard", "harmful", "guard_unsafe", "share"),
    ]
    for cost in measured:
        wanted += [(f"{cost.name.split(' on ')[0]} on {one}", one, cost.metric, cost.unit) for one in cost.datasets]
    tiles = []
    for name, dataset, metric, unit in wanted:
        edited, unedited = data.get(best.plan, dataset, metric), data.get(BASELINE, dataset, metric)
        if edited is None or unedited is None:
            continue
        paired = data.versus_baseline(best.plan, dataset, metric)
        tiles.append(
            {
                "name": name,
                "before": shown(unedited.value, unit),
                "after": shown(edited.value, unit),
                "interval": _bounds(edited, unit),
                "paired": "" if paired is None else f"change {_signed(paired, unit)}",
            }
        )
    return tiles


def _method_row(data: RunData, one: Standing, measured: Sequence[Cost]) -> dict[str, Any]:
    over = data.get(one.plan, "harmless", "refusal")
    return {
        "method": one.method,
        "plan": one.plan,
        "falls_short": "" if one.suppresses else "not beyond doubt" if one.may_suppress else "does not suppress it",
        "answered": _interval(one.answered, "share"),
        "over": "–" if over is None else _interval(over, "share"),
        "costs": [_plain(cost_of(data, one.plan, cost), cost) for cost in measured],
    }


def _plain(value: float | None, cost: Cost) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return _sign(f"{cost.sign * value:+.3f}" if cost.unit == "nats" else f"{100 * cost.sign * value:+.1f}")


def _sign(text: str) -> str:
    """A proper minus, and none before a zero."""
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def _bounds(one: Estimate, unit: Unit) -> str:
    if pd.isna(one.low):
        return ""
    low, high = shown(one.low, unit), shown(one.high, unit)
    return f"[{low.removesuffix(PERCENT)}, {high.removesuffix(PERCENT)}]"


def _interval(one: Estimate, unit: Unit) -> str:
    return f"{shown(one.value, unit)} {_bounds(one, unit)}".strip()


def _signed(one: Estimate, unit: Unit) -> str:
    scale, form = (100, "{:+.0f}") if unit == "share" else (1, "{:+.3f}")
    value, low, high = (_sign(form.format(scale * number)) for number in one[:3])
    return f"{value} [{low}, {high}]" + (" points" if unit == "share" else "")


# Tables


def _table(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any]:
    """The summary: plans by columns, groups of columns by metric."""
    wanted = columns(data.results)
    groups: list[dict[str, Any]] = []
    for column in wanted:
        if not groups or groups[-1]["name"] != column.group:
            groups.append({"name": column.group, "span": 0})
        groups[-1]["span"] += 1
    standing = {one.plan: one for one in ranked}
    unedited_answers = answers_already(data)
    return {
        "unedited_answers": unedited_answers,
        "columns": [
            {"key": f"{column.dataset}_{column.metric}", "heading": column.heading, "title": column.group}
            for column in wanted
        ],
        "groups": groups,
        "rows": [_row(data, plan, wanted, standing.get(plan.label), unedited_answers) for plan in data.plans],
    }


def _row(
    data: RunData, plan: Plan, wanted: Sequence[Column], standing: Standing | None, unedited_answers: bool
) -> dict[str, Any]:
    same_as = data.run_as[plan.label]
    suppresses = standing is not None and standing.suppresses and not unedited_answers
    return {
        "plan": plan.label,
        "same_as": "" if same_as == plan.label else same_as,
        "layers": "" if plan.n_layers is None else plan.n_layers,
        "state": "broken" if standing is not None and standing.is_broken else "best" if suppresses else "",
        "cells": [_cell(data.get(plan.label, column.dataset, column.metric), column) for column in wanted],
    }


def _cell(one: Estimate | None, column: Column) -> dict[str, Any]:
    if one is None or pd.isna(one.value):
        return {"text": "–", "value": "", "bounds": "", "bar": ""}
    bar = f"{min(1.0, max(0.0, one.value)):.3f}" if column.unit == "share" else ""
    return {
        "text": column.text(one.value),
        "value": repr(float(one.value)),
        "bounds": _bounds(one, column.unit),
        "bar": bar,
    }


def _selection(data: RunData) -> list[dict[str, Any]]:
    rows = []
    for one in data.selections:
        table = data.scores[(data.scores["method"] == one.method) & data.scores["selected"].astype(bool)].iloc[0]
        reach = data.rule.rank_by
        rows.append(
            {
                "method": one.method,
                "where": f"position {one.selected.position}, layer {one.selected.layer}".replace("-", "−"),
                "k": int(table["k"]),
                "note": one.note,
                "kept": f"{len(one.kept)} of {len(one.ranking)}",
                "missing": one.missing,
                "nan": one.nan,
                "bypass": _sign(f"{table[f'{reach}_bypass']:.2f}"),
                "induce": _sign(f"{table['local_induce']:.2f}"),
                "kl": f"{table[f'{reach}_kl']:.3f}",
                "accuracy": shown(float(table["accuracy"]), "share"),
                "dropped": ", ".join(f"{name} {count}" for name, count in one.dropped.items()) or "none",
            }
        )
    return rows


def _rankings(data: RunData) -> list[dict[str, Any]]:
    rows = []
    for one in data.rankings or ():
        for name, pool in one["pools"].items():
            row = {"method": one["method"], "pool": name, "n": pool["n"], "regret": f"{one['regret']:.2f}"}
            if pool["rho"] is None:
                rows.append(row | {"why": pool["why"]})
                continue
            overlap = pool["top5_overlap"]
            rows.append(
                row
                | {
                    "why": "",
                    "rho": _sign(f"{pool['rho']:.2f}"),
                    "reliability": [_decimals(pool[f"reliability_{reach}"]) for reach in ("local", "global")],
                    "says_little": pool["says_little"],
                    "noise_free": _decimals(pool["rho_noise_free"]),
                    "bounds": f"[{pool['ci_low']:.2f}, {pool['ci_high']:.2f}]".replace("-", "−"),
                    "p": f"{pool['p']:.1g}",
                    "tau": _sign(f"{pool['tau']:.2f}"),
                    "top1": "same" if pool["top1_match"] else "other",
                    "top5": "–" if overlap is None else percent(overlap),
                    "again": percent(one["selected_again"]),
                }
            )
    return rows


def _decimals(value: float | None) -> str:
    return "–" if value is None else _sign(f"{value:.2f}")


def _categories(data: RunData, metric: str) -> dict[str, Any] | None:
    """A share by category of harmful prompts; None if it was not measured by category."""
    names = data.categories("harmful", metric)
    if not names:
        return None
    heads = [(name, data.get(BASELINE, f"harmful:{name}", metric)) for name in names]
    column = Column("harmful", metric)
    return {
        "title": BY_CATEGORY[metric],
        "heads": [{"name": name.replace("_", " "), "n": one.n if one else ""} for name, one in heads],
        "rows": [
            {"plan": label, "cells": [_cell(data.get(label, f"harmful:{name}", metric), column) for name in names]}
            for label in data.run_as
        ],
    }


def _agreement(data: RunData) -> list[dict[str, str]]:
    """How far the judges agree on the completions of harmful prompts."""
    if data.agreement is None:
        return []
    rows = []
    for row in data.agreement.to_dict("records"):
        kappa = Estimate(row["kappa"], row["ci_low"], row["ci_high"], row["n"])
        counts = {name: str(row[name]) for name in ("n", "both", "first_only", "second_only", "neither")}
        rows.append({"judges": f"{row['first']} and {row['second']}", "kappa": _interval(kappa, "nats"), **counts})
    return rows


# Completions


def _completions(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any]:
    """Some prompts of each test set with the completions of every distinct plan; three plans are shown at first."""
    distinct = [str(plan) for plan, same_as in data.run_as.items() if plan == same_as]
    first = [BASELINE, *(data.run_as[one.plan] for one in best_by_method(ranked))]
    shown_first = list(dict.fromkeys([*first, *distinct]))[:SLOTS]
    sets = []
    texts: dict[str, dict[str, list[list[str]]]] = {plan: {} for plan in distinct}
    for dataset in dict.fromkeys(dataset for _, dataset in data.answers):
        chosen = _spread(data.answers[BASELINE, dataset])
        for plan in distinct:
            rows = data.answers[plan, dataset]
            texts[plan][dataset] = [[_cut(rows[i]["completion"]), VERDICTS[rows[i]["verdict"]]] for i in chosen]
        prompts = [data.answers[BASELINE, dataset][i] for i in chosen]
        sets.append(
            {
                "name": dataset,
                "folded": dataset in FOLDED,
                "prompts": [{"instruction": one["instruction"], "category": one["category"]} for one in prompts],
                "first": [[texts[plan][dataset][i] for plan in shown_first] for i in range(len(prompts))],
            }
        )
    return {"plans": distinct, "first": shown_first, "sets": sets, "texts": texts}


def _spread(rows: Sequence[Any]) -> list[int]:
    """Indices of some rows, evenly over all."""
    n = min(EXAMPLES, len(rows))
    return [round(i * (len(rows) - 1) / max(1, n - 1)) for i in range(n)]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


# Figures


def _figures(outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> list[dict[str, Any]]:
    """The figures by section, in order."""
    return [
        {
            "name": one.name,
            "section": one.name.split("-")[0],
            "title": one.title,
            "says": one.says,
            "image": _image(one, images),
        }
        for one in outcomes
        if isinstance(one, Drawn)
    ]


def _image(one: Drawn, images: Mapping[tuple[str, str], bytes]) -> Markup:
    svg = inline_svg(images[one.name, "svg"].decode(), one.name, one.title)
    if len(svg) <= LARGEST_SVG:
        return Markup(svg)
    data = base64.b64encode(images[one.name, "png"]).decode()
    return Markup(f'<img src="data:image/png;base64,{data}" alt="{html.escape(one.title)}">')


def inline_svg(svg: str, name: str, title: str) -> str:
    """An SVG made by matplotlib as part of a page.

    Its identifiers get the name in front, or they would meet those of other figures; ink and paper become the
    page's, so that the dark is dark; and coordinates lose digits that no screen shows.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda match: _rounded(match[0]), svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace(FAINT, "var(--line)")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    width = float(size[1]) if size else 0
    head = f'role="img" aria-label="{html.escape(title)}" style="--width:{width:.0f}pt"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', head, svg, count=1)
    return re.sub(r"\n\s*", "\n", svg)


def _rounded(attribute: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute)


# What the run was


def _about(data: RunData) -> dict[str, Any]:
    config = data.config
    machine = set(MachineSettings.model_fields)
    defaults = {name: field.default for name, field in RunConfig.model_fields.items()}
    settings = [
        {
            "name": name.replace("_", "-"),
            "value": _setting(value),
            "changed": _setting(value) != _setting(defaults.get(name)),
        }
        for name, value in sorted(config.items())
        if name not in machine
    ]
    model = data.manifest.get("model", {})
    environment = {
        "model": model.get("name", config["model"]),
        "revision": model.get("revision") or "–",
        "architecture": model.get("architecture", "–"),
        "blocks × width": f"{model.get('n_layers', '–')} × {model.get('d_model', '–')}",
        "precision": model.get("dtype", "–"),
        "device": data.manifest.get("device", "–"),
        "configuration": data.manifest.get("config_hash", "–"),
        **data.manifest.get("versions", {}),
    }
    counts = data.prompts["counts"]
    return {
        "settings": settings,
        "environment": environment,
        "prompts": [
            {"name": name.replace("_", ", "), "counts": [of_set.get(key, "–") for key in COUNTS]}
            for name, of_set in counts.items()
        ],
        "counts": [key.replace("_", " ") for key in COUNTS],
        "tokens": [repr(text) for text in data.prompts["refusal_token_texts"]],
        "stages": STAGES,
        "scopes": sentence_list([scope_name(scope) for scope in data.scopes]) if data.scopes else "",
        "on_distribution": ON_DISTRIBUTION in data.datasets("loss"),
    }


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict | bool) or value is None else str(value)
