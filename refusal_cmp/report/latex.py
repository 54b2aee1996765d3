"""Tables for papers, in LaTeX with booktabs and adjustbox."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.plan import Plan, number
from refusal_cmp.report.answer import BROKEN, RUIN, destroyed
from refusal_cmp.report.data import RunData
from refusal_cmp.report.latex_phrases import best_has, escaped, on_test_prompts, public_name, tt, where_scored
from refusal_cmp.report.seeds import SHARED, SeedsData
from refusal_cmp.report.table import Column, columns
from refusal_cmp.report.wording import bounds, bracketed, decimal, log_odds, minus, sentence_list, shown
from refusal_cmp.statistics import Estimate

METRICS = ("refusal", "in_language", "guard_unsafe", "loss", "acc", "kl")
"""What the table of plans has of the summary: refusal, language, safety, and what is lost."""
RANKINGS_CAPTION = (
    "Agreement of local and global rankings of components by bypass. Intervals draw the validation prompts anew and "
    "rank again; regret is the global bypass of the local choice minus the best."
)
DESTROYS = "†"
"""What marks a plan that destroys the model."""
SIGNS = str.maketrans({"\u202f": r"\,", "–": "--", "−": "$-$", "±": r"$\pm$", DESTROYS: r"$\dagger$"})
"""Characters of ours that LaTeX has commands for."""


def tables(data: RunData) -> dict[str, str]:
    """LaTeX source by name: every plan, the selected components, and (if it was studied) the rank agreement."""
    found = {
        "plans": floating(tabular(_plans(data)), f"plans-{data.name}", _plans_caption(data)),
        "selection": floating(tabular(_selection(data)), f"selection-{data.name}", _selection_caption(data)),
    }
    if data.rankings is not None:
        rankings = tabular(_rankings(data), text_columns=2)
        found["rankings"] = floating(rankings, f"rankings-{data.name}", RANKINGS_CAPTION)
    return found


def seeds_tables(data: SeedsData) -> dict[str, str]:
    """LaTeX source by name: every plan over all seeds, and what each method chose with each of them."""
    return {
        "plans": floating(tabular(_plans(data.as_run, data)), f"plans-{data.name}", _seeds_caption(data)),
        "selection": floating(
            tabular(_selection_by_seed(data)), f"selection-{data.name}", _selection_by_seed_caption(data)
        ),
    }


def tabular(table: pd.DataFrame, text_columns: int = 1) -> str:
    """A booktabs table; the first columns hold text, the others numbers. Cells are escaped."""
    style = table.style.hide(axis="index").format(escape="latex").format_index(axis="columns", escape="latex")
    layout = "l" * text_columns + "r" * (table.shape[1] - text_columns)
    return style.to_latex(hrules=True, column_format=layout).translate(SIGNS)


def floating(table: str, label: str, caption: str) -> str:
    """A table with its caption above it, and a label; as wide as the page at most (package `adjustbox`)."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            r"\begin{adjustbox}{max width=\textwidth}",
            table.rstrip("\n"),
            r"\end{adjustbox}",
            r"\end{table}",
            "",
        ]
    )


def _plans_caption(data: RunData) -> str:
    return f"{_what_plans_do(data)} Brackets are 95\\,\\% intervals.{_marks(data)}"


def _what_plans_do(data: RunData) -> str:
    return (
        r"What every plan (\texttt{method/intervention:strength@scope}) does to "
        f"{escaped(public_name(data.config['model']))}, on {on_test_prompts(data)} test prompts.{_own_answers(data)}"
    )


def _own_answers(data: RunData) -> str:
    """What the text set is whose name does not say it, where the table has it."""
    if ON_DISTRIBUTION not in data.datasets("loss"):
        return ""
    return f" The text set {tt(ON_DISTRIBUTION)} is the unedited model's own answers to the harmless prompts."


def _marks(data: RunData) -> str:
    """What the marks behind plans mean, of those that are there."""
    said = []
    if data.system_prompts:
        names = [f"{tt(plan.label)} (``{escaped(plan.system)}'')" for plan in data.system_prompts]
        said.append(f" System prompts, the model unedited: {sentence_list(names)}.")
    if data.checkpoints:
        names = [f"{tt(plan.label)} ({escaped(public_name(plan.checkpoint))})" for plan in data.checkpoints]
        said.append(f" Other checkpoints of the model, unedited: {sentence_list(names)}.")
    if data.distinct([plan.label for plan in data.plans]) != [plan.label for plan in data.plans]:
        said.append(" The sign = stands before a plan that does exactly the same.")
    if destroyed(data):
        seeds = "" if data.destroyed_with_some_seed is None else " with some seed"
        said.append(
            f" {DESTROYS} destroys the model{seeds}: more than {100 * BROKEN:.0f}\\,\\% of the completions, beside "
            f"those of the unedited model, are no language, or the loss on a text rises by more than {number(RUIN)} "
            "nat a token."
        )
    return "".join(said).translate(SIGNS)


def _selection_caption(data: RunData) -> str:
    rule = data.rule
    where = where_scored(data) if data.choice else ""
    scored = f" Only components{where} were scored." if where else ""
    return (
        f"The component of each method on {escaped(public_name(data.config['model']))}: {best_has(data)}, among those "
        f"with an induce score from {number(rule.induce_threshold)} on, a KL of at most {number(rule.kl_threshold)} "
        f"nats, and a layer in the first {100 * rule.prune_layers:.0f}\\,\\%; kept is how many these filters keep."
        f"{scored}{_fallbacks([data])}"
    )


def _fallbacks(runs: Collection[RunData]) -> str:
    """What a fallback is, where there is one."""
    if not any(one.fallback for data in runs for one in data.selections):
        return ""
    return " Fallback: the filters keep no component of the method, and were relaxed as said."


def _seeds_caption(data: SeedsData) -> str:
    seeds = sentence_list([str(seed) for seed in data.seeds])
    return (
        f"{_what_plans_do(data.as_run)} Means over the seeds {seeds}, "
        r"$\pm$ standard deviation between seeds. Brackets are 95\,\% hierarchical intervals, of seeds and prompts."
        f"{_marks(data.as_run)}"
    )


def _selection_by_seed_caption(data: SeedsData) -> str:
    name = tt(f"component={SHARED}")
    shared = f" Plans labelled {name} use one component for all methods." if any(map(data.shared, data.seeds)) else ""
    return (
        f"The component of each method on {escaped(public_name(data.first.config['model']))} (position, layer; number "
        "of directions) by seed, and the mean cosine of the chosen directions over pairs of seeds."
        f"{shared}{_fallbacks(data.runs.values())}"
    )


def _plans(data: RunData, over: SeedsData | None = None) -> pd.DataFrame:
    """A row per plan, each measurement with its interval; over seeds, with how far they are apart."""
    wanted = [column for column in columns(data.results) if column.metric in METRICS]
    rows, gone = [], destroyed(data)
    first: dict[str, str] = {}
    for plan in data.plans:
        same_as = first.setdefault(data.run_as[plan.label], plan.label)
        marks = f" {DESTROYS}" if plan.label in gone else ""
        marks += f" = {_short(same_as, plan)}" if same_as != plan.label else ""
        found = {one: data.get(plan.label, one.dataset, one.metric) for one in wanted}
        cells = {
            f"{one.measure.title}, {one.heading}": "–" if value is None else _measured(plan.label, one, value, over)
            for one, value in found.items()
        }
        rows.append({"plan": f"{plan.label}{marks}", **cells})
    return pd.DataFrame(rows)


def _short(label: str, beside: Plan) -> str:
    """A plan's label without the method and the scope, where these are those of the plan beside it."""
    start, end = f"{beside.method}/", f"@{beside.scope}"
    return label.removeprefix(start).removesuffix(end) if label.startswith(start) and label.endswith(end) else label


def _measured(plan: str, column: Column, value: Estimate, over: SeedsData | None) -> str:
    """`12 % ± 3 % [8, 16]`, without the middle for a single run."""
    unit = column.measure.unit
    sd = None if over is None else over.sd(plan, column.dataset, column.metric)
    spread = "" if sd is None else f"± {shown(sd, unit)}"
    return " ".join(part for part in (shown(value.value, unit), spread, bounds(value, unit)) if part)


def _selection_by_seed(data: SeedsData) -> pd.DataFrame:
    """A row per method, a column per seed."""
    rows = []
    for method in data.first.methods:
        chosen = {}
        for seed, run in data.runs.items():
            one = data.selection(method, seed)
            chosen[f"seed {seed}"] = "–" if one is None else (
                f"({minus(str(one.selected.position))}, {one.selected.layer}; {int(run.chosen(method)['k'])})"
                + (f", {one.note}" if one.note else "")
            )  # fmt: skip
        alike = data.alike(method)
        rows.append({"method": method, **chosen, "cosine": "–" if alike is None else decimal(alike)})
    shared = {f"seed {seed}": data.shared(seed) for seed in data.seeds}
    if any(shared.values()):
        places = {
            seed: "–" if one is None else f"({minus(str(one.position))}, {one.layer})" for seed, one in shared.items()
        }
        rows.append({"method": f"component={SHARED}", **places, "cosine": "–"})
    return pd.DataFrame(rows)


def _selection(data: RunData) -> pd.DataFrame:
    """A row per method: the selected component and its scores."""
    rows = []
    for one in data.selections:
        chosen = data.chosen(one.method)
        rows.append(
            {
                "method": one.method,
                "position": minus(str(one.selected.position)),
                "layer": str(one.selected.layer),
                "directions": str(int(chosen["k"])),
                "bypass": log_odds(chosen["bypass"]),
                "induce": log_odds(chosen["induce"]),
                "KL": decimal(chosen["kl"], 3),
                "kept": f"{len(one.kept)} of {len(one.ranking)}" + (f" ({one.note})" if one.note else ""),
            }
        )
    return pd.DataFrame(rows)


def _rankings(data: RunData) -> pd.DataFrame:
    """A row per method and pool of components."""
    return pd.DataFrame(
        {
            "method": one["method"],
            "components": name,
            "n": str(pool["n"]),
            **_correlation(pool),
            "regret": decimal(one["regret"]),
        }
        for one in data.rankings or ()
        for name, pool in one["pools"].items()
    )


def _correlation(pool: Mapping[str, Any]) -> dict[str, str]:
    if pool["rho"] is None:
        return dict.fromkeys(("Spearman", "95 %", "Kendall"), "–")
    interval = "too few" if pool["says_little"] else bracketed(pool["ci_low"], pool["ci_high"])
    return {"Spearman": decimal(pool["rho"]), "95 %": interval, "Kendall": decimal(pool["tau"])}
