"""The guard of a run stays what it was: a name on the hub is read at one commit, as the model is."""

from __future__ import annotations

from refusal_cmp.config import RunConfig
from refusal_cmp.evals import settings_of
from refusal_cmp.judges import guard_source
from refusal_cmp.run.session import Session

GUARD = "guard"
"""The manifest's entry for the guard: what was asked for, and the commit that it was."""


def pinned_config(session: Session) -> RunConfig:
    """The configuration with the guard's commit: that which the run was begun with, or that of its branch now."""
    config, run = session.config, session.run
    if not any("guard_revision" in settings_of(config, spec) for spec in config.evals):
        return config
    if config.guard_backend == "openai":
        return config
    asked = {"name": config.guard, "revision": config.guard_revision}
    begun = run.manifest.get(GUARD, {})
    if asked.items() <= begun.items() and "evaluate" not in run.force:
        commit = begun["commit"]
    else:
        commit = guard_source(config.guard, config.guard_revision).revision
    if commit is None:  # in a folder
        return config
    run.note(**{GUARD: {**asked, "commit": commit}})
    return config.model_copy(update={"guard_revision": commit})
