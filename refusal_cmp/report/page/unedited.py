"""The page's plans that edit nothing: what other checkpoints and system prompts do beside the edits.

Of a checkpoint also where and how its weights differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from refusal_cmp.model.differences import LEADING
from refusal_cmp.plan import Plan
from refusal_cmp.report.answer import costs, standings
from refusal_cmp.report.data import RunData
from refusal_cmp.report.page.first_screen import method_row
from refusal_cmp.report.wording import counted, decimal, percent, sentence_list, span

Row = Mapping[str, Any]


def unedited_section(data: RunData) -> dict[str, Any] | None:
    """What is shown of the plans that edit nothing; None of a run that has none."""
    if not data.unedited:
        return None
    measured = costs(data)
    standing = {one.plan: method_row(data, one, measured) for one in standings(data, data.unedited)}
    kinds = {"other checkpoints": data.checkpoints, "system prompts": data.system_prompts}
    title = " and ".join(kind for kind, plans in kinds.items() if plans)
    return {
        "title": title[0].upper() + title[1:],
        "costs": [cost.name for cost in measured],
        "methods": data.methods,
        "rows": [
            {"plan": plan.label, "what": plan.checkpoint or plan.system, "standing": standing.get(plan.label)}
            for plan in data.unedited
        ],
        "checkpoints": [{"plan": plan.label, **_weights(data, plan)} for plan in data.checkpoints],
    }


def _weights(data: RunData, plan: Plan) -> dict[str, Any]:
    rows = data.weights.get(data.run_as[plan.label], ())
    changed = [row for row in rows if row["relative"] != 0]
    return {
        "says": _says(rows, changed, data.methods) if rows else "Its weights were not compared.",
        "weights": [
            {
                "name": _name(row),
                "shape": " × ".join(map(str, row["shape"])),
                "relative": "new" if row["relative"] is None else f"{100 * row['relative']:.2g} %",
                "rank": _rank(row["rank"]),
                "energy": [_share(row["energy_1"]), _share(row["energy_8"])],
                "stream": row["stream"] or "–",
                "cosine": [decimal(row["cosine"][one]) if one in row["cosine"] else "–" for one in data.methods],
            }
            for row in changed
        ],
    }


def _says(rows: Sequence[Row], changed: Sequence[Row], methods: Sequence[str]) -> str:
    """Where the weights differ, in how many directions, and along which."""
    if not changed:
        return f"None of its {len(rows)} weights differs."
    layers = sorted({row["layer"] for row in changed if row["layer"] is not None})
    outside = [row["module"] for row in changed if row["layer"] is None]
    places = [*([_layers(layers)] if layers else []), *outside]
    said = [f"{len(changed)} of {counted(len(rows), 'weight')} differ: {sentence_list(places)}."]
    ranks = [row["rank"] for row in changed if row["rank"] is not None]
    if ranks:
        low, middle, high = min(ranks), median(ranks), max(ranks)
        between = f"{span(_rank(low), _rank(high))} (median {_rank(int(middle))})"
        said.append(f"The change of a matrix is of rank {_rank(low) if low == high else between}.")
    for method in methods:
        found = [row["cosine"][method] for row in changed if row["stream"] == "writes" and method in row["cosine"]]
        if found:
            said.append(
                f"In what writes to the stream, the leading direction of the change and that of {method} have a "
                f"|cosine| of {span(decimal(min(found)), decimal(max(found)))}, {decimal(median(found))} at the median."
            )
    return " ".join(said)


def _layers(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers[-1] - layers[0] == len(layers) - 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def _name(row: Row) -> str:
    name = row["module"].removesuffix(".weight")
    return name if row["layer"] is None else f"{row['layer']}, {name}"


def _rank(rank: int | None) -> str:
    return "–" if rank is None else f"{LEADING} or more" if rank >= LEADING else str(rank)


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
