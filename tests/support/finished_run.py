"""A small finished run of the embedded model, for what is made from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refusal_cmp.config import STAGES, load_config
from refusal_cmp.model import ChatModel
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

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


def make_run(path: Path, model: ChatModel, until: str = "evaluate", **settings: Any) -> Session:
    """Run the stages from the first to this one."""
    session = session_on(path, model, **settings)
    run_stages(session, STAGES[: STAGES.index(until) + 1])
    return session
