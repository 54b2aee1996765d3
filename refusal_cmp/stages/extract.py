"""extract: prompts → activations → one file of subspaces for each method."""

from __future__ import annotations

from typing import Any

import torch

from refusal_cmp.activations import Activations, collect
from refusal_cmp.config import RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import EXTRACTORS, Extractor
from refusal_cmp.methods.given import GivenDirection
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.registry import parse_spec
from refusal_cmp.session import Session
from refusal_cmp.stages.prompts import KINDS, PROMPTS, draw_prompts, read_prompts
from refusal_cmp.subspace import SubspaceField


def extract_stage(session: Session) -> None:
    """Sample and filter the prompts, and run every method on the same activations."""
    config, run = session.config, session.run
    settings = config.binding("extract")
    methods = {name: extractor(config, name) for name in config.methods}
    inputs = {name: method.inputs() if isinstance(method, GivenDirection) else {} for name, method in methods.items()}
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
        if isinstance(method, GivenDirection):  # before the long part
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


def extractor(config: RunConfig, name: str) -> Extractor | GivenDirection:
    """The method with its hyper-parameters: those of the configuration, and those in its own brackets."""
    if name in config.given_files:
        return GivenDirection(config.given_files[name], config.direction_at)
    base, own = parse_spec(name)
    inlp = _inlp_flags(config) | config.method_options.get("inlp", {})
    flags = {"inlp": inlp, "random": {"inlp": inlp}}.get(base, {})
    return EXTRACTORS.create(base, **(flags | config.method_options.get(name, {}) | own))


def _inlp_flags(config: RunConfig) -> dict[str, Any]:
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    return {
        "c": config.inlp_c,
        "stop": config.inlp_stop,
        "max_k": config.inlp_max_k,
        "classifier": config.inlp_classifier,
        "device": config.device.replace("auto", "cuda") if on_gpu else "cpu",
        "batch_size": 32 if on_gpu else INLP.batch_size,
    }


def subspace_file(method: str) -> str:
    """The artifact that holds a method's subspaces."""
    return f"extract/{method}.safetensors"


def read_field(session: Session, method: str) -> SubspaceField:
    """The subspaces that extract wrote."""
    session.run.require(subspace_file(method), "extract")
    return SubspaceField.from_tensors(*session.run.read_tensors(subspace_file(method)))


def _summary(field: SubspaceField, activations: Activations) -> str:
    ranks = [subspace.k for subspace in field.subspaces.values()]
    total = len(list(activations.components()))
    return f"{field.method}: a subspace at {len(field)} of {total} components, rank {min(ranks)} to {max(ranks)}."
