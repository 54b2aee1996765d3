"""extract: prompts → activations → one file of subspaces for each method."""

from __future__ import annotations

from refusal_cmp.activations import Activations
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import configured
from refusal_cmp.model.reading import collect
from refusal_cmp.run.contents import PROMPTS, read_prompts, subspace_file
from refusal_cmp.run.session import Session
from refusal_cmp.stages.prompts import KINDS, draw_prompts
from refusal_cmp.subspace import SubspaceField


def extract_stage(session: Session) -> None:
    """Sample and filter the prompts, and run every method on the same activations."""
    config, run = session.config, session.run
    settings = config.binding("extract")
    methods = {name: configured(config, name) for name in config.methods}
    inputs = {name: method.inputs() for name, method in methods.items()}
    draw_prompts(session)
    sources = {name: {PROMPTS: run.digest(PROMPTS), **inputs[name]} for name in methods}
    methods = {
        name: method
        for name, method in methods.items()
        if not run.is_fresh(subspace_file(name), settings, sources[name])
    }
    if not methods:
        return
    for method in methods.values():
        method.check(session.model.positions, session.model.n_layers, session.model.d_model)
    train = [read_prompts(session, f"{kind}_train") for kind in KINDS]
    activations = collect(
        session.model,
        *[[prompt.instruction for prompt in prompts] for prompts in train],
        needs="means" if all(method.needs == "means" for method in methods.values()) else "activations",
        dev_share=config.dev_share,
        seed=config.seed,
        batch_size=config.batch_size,
        folder=run.path,
        progress=session.progress,
    )
    for name, method in methods.items():
        field = method.fit_field(activations, name, session.progress)
        if not len(field):
            reasons = ", ".join(sorted(set(field.missing.values())))
            raise RefusalCmpError(f"{name} found no subspace at any component ({reasons}); give other or more prompts.")
        run.write_tensors(subspace_file(name), *field.to_tensors())
        run.record(subspace_file(name), settings, sources[name])
        session.say(_summary(field, activations))


def _summary(field: SubspaceField, activations: Activations) -> str:
    ranks = [subspace.k for subspace in field.subspaces.values()]
    total = len(list(activations.components()))
    return f"{field.method}: a subspace at {len(field)} of {total} components, rank {min(ranks)} to {max(ranks)}."
