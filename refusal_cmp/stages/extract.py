"""extract: prompts → activations → one file of subspaces for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from refusal_cmp.activations import Activations, collect
from refusal_cmp.config import RunConfig
from refusal_cmp.data import Prompt, Split, sample
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import EXTRACTORS, Extractor
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.model import ChatModel, refusal_metric
from refusal_cmp.session import Session
from refusal_cmp.subspace import SubspaceField

PROMPTS = "extract/prompts.json"
KINDS = ("harmful", "harmless")


def extract_stage(session: Session) -> None:
    """Sample and filter the prompts, and run every method on the same activations."""
    config, run = session.config, session.run
    settings = config.binding("extract")
    if not run.is_fresh(PROMPTS, settings, {}):
        run.write_json(PROMPTS, draw_prompts(session))
        run.record(PROMPTS, settings, {})
    sources = {PROMPTS: run.digest(PROMPTS)}
    wanted = [name for name in config.methods if not run.is_fresh(subspace_file(name), settings, sources)]
    if not wanted:
        return
    methods = {name: extractor(config, name) for name in wanted}
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
        run.record(subspace_file(name), settings, sources)
        session.say(_summary(field, activations))


def extractor(config: RunConfig, name: str) -> Extractor:
    """The method with its hyper-parameters from the configuration."""
    flags = _inlp_flags(config) if name == "inlp" else {}
    return EXTRACTORS.create(name, **(flags | config.method_options.get(name, {})))


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


def read_prompts(session: Session, split: str) -> list[Prompt]:
    """The prompts of a split that were sampled and kept: `harmful_train`."""
    session.run.require(PROMPTS, "extract")
    return [Prompt(**row) for row in session.run.read_json(PROMPTS)["prompts"][split]]


def draw_prompts(session: Session) -> dict[str, Any]:
    """The sampled prompts of every split, the refusal tokens, and what filtering dropped."""
    config = session.config
    sizes: dict[Split, int] = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    drawn = {
        f"{kind}_{split}": sample(getattr(config, kind), split, config.prompts(size), config.seed)
        for kind in KINDS
        for split, size in sizes.items()
    }
    tokens = config.refusal_tokens or session.model.refusal_tokens(
        [prompt.instruction for prompt in drawn["harmful_train"]], config.batch_size
    )
    counts = {name: {"sampled": len(prompts), "dropped": 0} for name, prompts in drawn.items()}
    if config.filter_prompts:
        for name, prompts in drawn.items():
            if not name.endswith("_test"):
                drawn[name] = _as_expected(session, prompts, tokens, refuses=name.startswith("harmful"))
                counts[name]["dropped"] = len(prompts) - len(drawn[name])
    _report_dropped(session, counts)
    return {
        "refusal_tokens": list(tokens),
        "refusal_token_texts": [session.model.tokenizer.decode([token]) for token in tokens],
        "counts": counts,
        "prompts": {name: [asdict(prompt) for prompt in prompts] for name, prompts in drawn.items()},
    }


def _as_expected(session: Session, prompts: list[Prompt], tokens: Sequence[int], refuses: bool) -> list[Prompt]:
    """Harmful prompts that the model refuses, harmless ones that it does not: the sign of the refusal metric."""
    metric = prompt_metrics(
        session.model, [prompt.instruction for prompt in prompts], tokens, session.config.batch_size
    )
    return [prompt for prompt, value in zip(prompts, metric, strict=True) if (value > 0) == refuses]


def prompt_metrics(
    model: ChatModel, instructions: Sequence[str], tokens: Sequence[int], batch_size: int
) -> list[float]:
    """The unedited model's refusal metric on each prompt."""
    metrics: dict[int, float] = {}
    for rows, batch in model.batches(instructions, batch_size):
        metrics.update(zip(rows, refusal_metric(model.last_logits(batch), tokens).tolist(), strict=True))
    return [metrics[row] for row in range(len(instructions))]


def _report_dropped(session: Session, counts: dict[str, dict[str, int]]) -> None:
    for name, count in counts.items():
        left = count["sampled"] - count["dropped"]
        verb = "is not refused" if name.startswith("harmful") else "is refused"
        if count["dropped"]:
            session.say(f"{name}: {count['dropped']} of {count['sampled']} prompts dropped: what they ask {verb}.")
        if left == 0:
            raise RefusalCmpError(
                f"No prompt of {name} is left: the model does not do as expected on any of {count['sampled']}; choose "
                "another model or other prompts, or keep them with --no-filter-prompts."
            )


def _summary(field: SubspaceField, activations: Activations) -> str:
    ranks = [subspace.k for subspace in field.subspaces.values()]
    total = len(list(activations.components()))
    return f"{field.method}: a subspace at {len(field)} of {total} components, rank {min(ranks)} to {max(ranks)}."
