"""The whole pipeline on the embedded model, small."""

from __future__ import annotations

from refusal_cmp.config import STAGES, load_config
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

SMALL = {
    "n_train": 48,
    "n_val": 6,
    "n_test": 4,
    "max_new_tokens": 8,
    "loss_tokens": 100,
    "benchmark_limit": 4,
    "scope": "single,all",
    "interventions": "ablation,nullspace,actadd",
}


def start(path, model, stages=STAGES, force=False, **flags):
    """One command on a run directory; the model is loaded by the fixture."""
    config = load_config(None, {**SMALL, **flags})
    messages: list[str] = []
    session = Session(config, RunDir(path, stages if force else ()), say=messages.append, loaded=model)
    run_stages(session, stages)
    return session, messages
