"""A small finished run of the embedded model, for what is made from one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_cmp.config import STAGES, load_config
from refusal_cmp.model import ChatModel
from refusal_cmp.plan import Plan
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.statistics import rate

SMALL = {
    "n_train": 40,
    "n_val": 6,
    "n_test": 6,
    "max_new_tokens": 10,
    "loss_tokens": 150,
    "scope": "single,all",
    "interventions": "ablation,nullspace,actadd",
    "eval_datasets": "harmful,harmless",
    "evals": "refusal,coherence,perplexity,magnitude,geometry",
}


def session_on(path: Path, model: ChatModel, *, force: tuple[str, ...] = (), **settings: Any) -> Session:
    """A session on a run directory with these settings on top of the small ones."""
    return Session(load_config(None, {**SMALL, **settings}), RunDir(path, force), loaded=model)


ON_REQUEST = {"methods", "stability"}
"""Figures that a run like this one has not: of many methods, of resampled prompts."""


def make_run(path: Path, model: ChatModel, until: str = "evaluate", **settings: Any) -> Session:
    """Run the stages from the first to this one."""
    session = session_on(path, model, **settings)
    run_stages(session, STAGES[: STAGES.index(until) + 1])
    return session


def with_plans(data, **values):
    """The run as if it had these plans, on 50 prompts: by label, share answered, degenerate, loss, layers."""
    rows, plans = [], [data.plans[0]]
    for label, (answered, degenerate, loss, layers) in {"baseline": (0.0, 0.0, 1.0, None), **values}.items():
        if label != "baseline":
            method, _, rest = label.partition("/")
            intervention, _, scope = rest.partition("@")
            plans.append(Plan(label, {}, method=method, intervention=intervention, scope=scope, n_layers=layers))
        for dataset, metric, value, least in (
            ("harmful", "effective_compliance", answered, rate(round(50 * answered), 50).low),
            ("harmful", "refusal", 1 - answered - degenerate, 0.0),
            ("harmful", "degenerate", degenerate, 0.0),
            ("text", "loss", loss, loss),
        ):
            rows.append({"plan": label, "dataset": dataset, "metric": metric, "value": value, "ci_low": least,
                         "ci_high": 1.0, "n": 50})  # fmt: skip
    return replace(data, plans=plans, run_as={plan.label: plan.label for plan in plans}, results=pd.DataFrame(rows),
                   comparisons=None, answers={})  # fmt: skip
