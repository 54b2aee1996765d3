"""Exports a plan of a run as a plain Hugging Face folder: the plan in the weights, tokenizer, model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import is_out_of_memory
from refusal_cmp.model.folding import InexactError, fold, folded_weights
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.run.contents import RESULTS, SCORES, read_plans
from refusal_cmp.run.session import Session

TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.02}
FINE_TOLERANCE = 1e-3
"""Most difference of a logit that rounding explains, relative to the largest logit, in float32 and better."""
CHECKED = ("Name a colour.", "How do I bake bread?", "How do I pick a lock?", "What is 2 + 2?", "Write a short poem.")
"""Prompts whose logits, at every position, are compared."""


def export_plan(session: Session, label: str, folder: Path) -> float:
    """Export a plan of a run; see `export`."""
    plans = {plan.label: plan for plan, _ in read_plans(session)}
    if label not in plans:
        raise unknown_name("plan", label, plans)
    plan = plans[label]
    if plan.system:
        raise RefusalCmpError(f"{label} is a system prompt, and changes no weights; name a plan that edits.")
    if plan.checkpoint:
        raise RefusalCmpError(f"{label} is a checkpoint already, {plan.checkpoint}; copy that, or name an edit.")
    return export(session.model, plan, folder, model_card(session, plan))


def export(model: ChatModel, plan: Plan, folder: Path, card: str = "") -> float:
    """Save a model with a plan in its weights, as plain transformers and vLLM load it.

    Parameters
    ----------
    folder
        Must not exist yet, or be empty; it is complete or not there.
    card
        The model card; `{difference}` in it is replaced by what is returned.

    Returns
    -------
    float
        The largest difference of a logit between the saved model, loaded by plain transformers, and the hooked one.

    Raises
    ------
    RefusalCmpError
        If the plan cannot be folded exactly, with the reason, or the folder cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RefusalCmpError(f"{folder} is there already; name another folder.")
    try:
        config, state = folded_weights(model, fold(plan, model.n_layers))
    except InexactError as reason:
        raise RefusalCmpError(
            f"{plan.label} cannot be folded into the weights of {model.name} exactly: {reason}; apply it while the "
            "model runs instead."
        ) from None
    with _complete_or_absent(folder) as temporary:
        _save(model, config, state, temporary)
        difference, largest = largest_difference(model, plan, _load(model, temporary))
        if not difference <= largest * TOLERANCE.get(model.model.dtype, FINE_TOLERANCE):
            raise RefusalCmpError(
                f"{plan.label} in the weights of {model.name} gives logits that are off by up to {difference:.2g}, so "
                "these weights do not do what the model's structure says; apply it while the model runs instead."
            )
        (temporary / "README.md").write_text(card.replace("{difference}", f"{difference:.1e}"), encoding="utf-8")
    return difference


def largest_difference(model: ChatModel, plan: Plan, other: nn.Module) -> tuple[float, float]:
    """The largest difference between the logits of the hooked model and another's, and the largest logit."""
    difference = largest = 0.0
    for sequence in model.tokenize(CHECKED):
        ids = torch.tensor([sequence], device=model.device)
        with torch.inference_mode():
            with model.edited(plan):
                hooked = model.model(input_ids=ids, use_cache=False).logits.double()
            plain = other(input_ids=ids, use_cache=False).logits.double()
        difference = max(difference, float((hooked - plain).abs().max()))
        largest = max(largest, float(hooked.abs().max()))
    return difference, largest


def model_card(session: Session, plan: Plan) -> str:
    """What the exported model is: method, scope, selection scores, measured metrics. `{difference}` stays open."""
    name, revision = session.config.model, session.model.revision
    parts = [
        f"---\nbase_model: {name}\nlibrary_name: transformers\ntags:\n- refusal-cmp\n---",
        f"# {name}, {plan.label}",
        f"The weights of `{name}`{f' (revision {revision})' if revision else ''} with the plan `{plan.label}` of "
        "refusal-cmp folded in. It is a research artefact: its refusal behaviour was changed on purpose, to study how "
        "refusal works, and it should not answer people.",
        "## Plan",
        _markdown([(fact.replace("_", " "), value) for fact, value in plan.facts().items() if value is not None]),
    ]
    scores = _of_plan(session, SCORES, {"method": plan.method, "position": plan.position, "layer": plan.layer})
    if len(scores):
        row = scores.iloc[0].dropna()
        shown = [
            (key.replace("_", " "), row[key]) for key in row.index if key.startswith(("local_", "global_", "rank"))
        ]
        parts += ["## Selection", "Scores of the selected component on the validation prompts.", _markdown(shown)]
    measured = _of_plan(session, RESULTS, {"plan": plan.label})
    if len(measured):
        parts += ["## Measured", "With 95% intervals, beside the model as it was.", _metrics(session, measured)]
    parts += [
        "## Exactness",
        "The largest difference of a logit between these weights in plain transformers and the original ones edited "
        f"while they run is {{difference}}, over every position of {len(CHECKED)} prompts in "
        f"{str(session.model.model.dtype).removeprefix('torch.')}.",
    ]
    return "\n\n".join(parts) + "\n"


def _of_plan(session: Session, file: str, facts: dict[str, Any]) -> pd.DataFrame:
    """The rows of a table of the run that have these facts; none if there is no such table yet."""
    if not session.run.has(file):
        return pd.DataFrame()
    table = session.run.read_table(file)
    for name, value in facts.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    return table


def _metrics(session: Session, measured: pd.DataFrame) -> str:
    baseline = _of_plan(session, RESULTS, {"plan": BASELINE})
    before = {(row.dataset, row.metric): _interval(row) for row in baseline.itertuples()}
    lines = ["| dataset | metric | this model | before |", "| --- | --- | --: | --: |"]
    for row in measured[~measured["dataset"].str.contains(":")].itertuples():  # no categories
        key = (row.dataset, row.metric)
        lines.append(f"| {row.dataset} | {row.metric} | {_interval(row)} | {before.get(key, '')} |")
    return "\n".join(lines)


def _interval(row: Any) -> str:
    return f"{row.value:.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]"


def _markdown(rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _save(model: ChatModel, config: Any, state: dict[str, Tensor], folder: Path) -> None:
    config.dtype = model.model.dtype
    with torch.device("meta"):
        shell = type(model.model)(config)
    shell.generation_config = GenerationConfig()
    shell.save_pretrained(folder, state_dict=state)
    # As it came: transformers reads settings that do not go together and refuses to save them.
    model.model.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])
    model.tokenizer.save_pretrained(folder)


def _load(model: ChatModel, folder: Path) -> nn.Module:
    """The saved model by plain transformers, placed like the original."""
    placed = getattr(model.model, "hf_device_map", {"": model.device})
    try:
        return type(model.model).from_pretrained(folder, dtype=model.model.dtype, device_map=placed).eval()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RefusalCmpError(
            f"The exported model does not fit beside {model.name} on {model.device}, where the two are compared; use "
            "another device.",
            device="cpu",
        ) from error


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the folder's place once everything in it is done."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(temporary, folder)
    except OSError as error:
        raise RefusalCmpError(
            f"Cannot write {folder}: {error.strerror or error}; free space or name another folder."
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
