"""Tables for papers, in LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.report.data import RunData
from refusal_cmp.report.table import Column, columns, shown
from refusal_cmp.statistics import Estimate

ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\u202f": r"\,",
        "–": "--",
        "−": "$-$",
    }
)


def tables(data: RunData) -> dict[str, str]:
    """LaTeX source by name: every plan, the selected components, and (if it was studied) the rank agreement."""
    found = {"plans": _plans(data), "selection": _selection(data)}
    if data.rankings is not None:
        found["rankings"] = _rankings(data)
    return found


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(ESCAPES)


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """A booktabs table; the first columns hold text, the others numbers. Cells are escaped."""
    layout = "l" * text_columns + "r" * (len(heads) - text_columns)
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (heads, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{layout}}}", *body, r"\end{tabular}", ""])


def _plans(data: RunData) -> str:
    """A row per plan, with the measurements that a paper has: refusal, language, guard, losses and accuracies."""
    metrics = ("refusal", "degenerate", "guard_unsafe", "loss", "acc")
    wanted = [column for column in columns(data.results) if column.metric in metrics]
    heads = ["plan", *(f"{column.group}, {column.heading}" for column in wanted)]
    rows = [
        [plan.label, *(_cell(data.get(plan.label, one.dataset, one.metric), one) for one in wanted)]
        for plan in data.plans
    ]
    return tabular(heads, rows, 1)


def _cell(one: Estimate | None, column: Column) -> str:
    if one is None:
        return "–"
    low, high = (shown(bound, column.unit).removesuffix("\u202f%") for bound in (one.low, one.high))
    return f"{column.text(one.value)} [{low}, {high}]"


def _selection(data: RunData) -> str:
    heads = ["method", "position", "layer", "directions", "bypass", "induce", "KL", "kept"]
    rows = []
    for one in data.selections:
        chosen = data.scores[(data.scores["method"] == one.method) & data.scores["selected"].astype(bool)].iloc[0]
        scores = [float(chosen[name]) for name in (f"{data.rule.rank_by}_bypass", "local_induce")]
        numbers = [str(one.selected.position), str(one.selected.layer), str(int(chosen["k"]))]
        kl = f"{float(chosen[f'{data.rule.rank_by}_kl']):.3f}"
        kept = f"{len(one.kept)} of {len(one.ranking)}" + (f" ({one.note})" if one.note else "")
        rows.append(
            [one.method, *(text.replace("-", "−") for text in (*numbers, *map("{:.2f}".format, scores))), kl, kept]
        )
    return tabular(heads, rows, 1)


def _rankings(data: RunData) -> str:
    heads = ["method", "components", "n", "Spearman", "95 %", "Kendall", "regret"]
    rows = []
    for one in data.rankings or ():
        for name, pool in one["pools"].items():
            numbers = ["–"] * 3
            if pool["rho"] is not None:
                interval = "too few" if pool["says_little"] else f"[{pool['ci_low']:.2f}, {pool['ci_high']:.2f}]"
                numbers = [f"{pool['rho']:.2f}", interval, f"{pool['tau']:.2f}"]
            cells = [str(pool["n"]), *numbers, f"{one['regret']:.2f}"]
            rows.append([one["method"], name, *(cell.replace("-", "−") for cell in cells)])
    return tabular(heads, rows, 2)
