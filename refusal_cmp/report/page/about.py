"""The page's last section: what the run was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from refusal_cmp.config import STAGES, MachineSettings, RunConfig
from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.report.answer import costs
from refusal_cmp.report.data import RunData
from refusal_cmp.report.page.completions import VERDICTS, cut
from refusal_cmp.report.wording import log_odds, scope_name, sentence_list

COUNTS = ("sampled", "too_long", "dropped", "duplicates", "near_duplicates", "near_train", "near_val")
"""What is said of every set of prompts."""


def about(data: RunData) -> dict[str, Any]:
    """Prompts and their counts, refusal tokens, the configuration and where it ran."""
    counts = data.prompts["counts"]
    return {
        "settings": _settings(data.config),
        "environment": _environment(data),
        "prompts": [
            {"name": name.replace("_", ", "), "counts": [of_set.get(key, "–") for key in COUNTS]}
            for name, of_set in counts.items()
        ],
        "dropped": [
            {
                "set": row["set"].replace("_", ", "),
                "instruction": row["instruction"],
                "metric": "–" if row["refusal_metric"] is None else log_odds(row["refusal_metric"]),
                "answer": cut(row["answer"]),
                "verdict": VERDICTS[row["verdict"]],
            }
            for row in data.dropped
        ],
        "counts": [key.replace("_", " ") for key in COUNTS],
        "tokens": [repr(text) for text in data.prompts["refusal_token_texts"]],
        "stages": STAGES,
        "scopes": sentence_list([scope_name(scope) for scope in data.scopes]) if data.scopes else "",
        "filtered": data.config["filter_prompts"],
        "own_answers": _own_answers(data),
    }


def _own_answers(data: RunData) -> str:
    """What the text set `on-distribution` is, and what its loss counts for; nothing where that was not measured."""
    if ON_DISTRIBUTION not in data.datasets("loss"):
        return ""
    is_first = ON_DISTRIBUTION in costs(data)[0].datasets
    counts = (
        "the cost that decides, as no other text and no task was measured"
        if is_first
        else "a cost that stands behind other texts and tasks, and does not decide"
    )
    return (
        f"The text set {ON_DISTRIBUTION} is the unedited model's own completions of harmless prompts; the loss on it "
        f"is {counts}."
    )


def _environment(data: RunData) -> dict[str, Any]:
    model = data.manifest.get("model", {})
    return {
        "model": model.get("name", data.config["model"]),
        "revision": model.get("revision") or "–",
        **({"guard's revision": data.manifest["guard"]["commit"]} if "guard" in data.manifest else {}),
        "architecture": model.get("architecture", "–"),
        "blocks × width": f"{model.get('n_layers', '–')} × {model.get('d_model', '–')}",
        "precision": model.get("dtype", "–"),
        "device": data.manifest.get("device", "–"),
        "configuration": data.manifest.get("config_hash", "–"),
        **data.manifest.get("versions", {}),
    }


def _settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings but those of the machine, and whether they are other than this model's defaults."""
    defaults = RunConfig(model=config["model"], offline=config.get("offline", False)).model_dump(mode="json")
    return [
        {
            "name": name.replace("_", "-"),
            "value": _setting(value),
            "changed": _setting(value) != _setting(defaults.get(name)),
        }
        for name, value in sorted(config.items())
        if name not in MachineSettings.model_fields
    ]


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict | bool) or value is None else str(value)
