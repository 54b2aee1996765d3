"""Selection: the published plain loop against ours, side by side in one run.

The plain loop scores one candidate at a time, one full forward pass per score and prompt batch of 32, with
logits at every position, as published code does. Ours batches candidates, resumes local passes at the edited
block, reads what prompts begin with once, and computes logits at the last position only. The floor is the time of the
block evaluations that no exact method can avoid which reads every prompt in a row of its own, at the best batch size.

    python benchmarks/selection.py                    # tiny-refuser, and a random-weight 0.5B shape
    python benchmarks/selection.py --shape 135m       # smol-refuser, which `refusal-cmp fetch smol-refuser` gets
    python benchmarks/selection.py --shape 7b         # random weights in the shape of Qwen2.5-7B, on a GPU
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from _measure import write
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from refusal_cmp.api import extract
from refusal_cmp.data import DATASETS
from refusal_cmp.model import ChatModel, model_path, refusal_metric
from refusal_cmp.planning import Chosen, make_plan
from refusal_cmp.selection.scoring import SCOPES, Reach, Scorer
from refusal_cmp.subspace import SubspaceField

MULTIPLIERS = (0.5, 1.0, 2.0)
PLAIN_BATCH = 32

QWEN_0_5B = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SHAPES = {"0.5b": QWEN_0_5B, "7b": QWEN_7B}


LOADED = {"tiny": ("tiny-refuser", "tiny"), "135m": ("smol-refuser", "everyday")}
"""Real models by shape, and the family of their prompts; the others have random weights."""
SIZES = {"tiny": (32, 0), "135m": (8, 24), "0.5b": (6, 12), "7b": (32, 28)}
"""Prompts of each kind, and components spread over the layers (0: all), of each shape."""


def main(
    shape: Annotated[
        list[str] | None, typer.Option(help="tiny, 135m, 0.5b or 7b (the last two: random weights; 7b wants a GPU)")
    ] = None,
) -> None:
    """Time both forms of local and global selection, and compare their scores."""
    for name in shape or ("tiny", "0.5b"):
        one_shape(name)


def one_shape(shape: str) -> None:
    """Both reaches on one model."""
    prompts, components = SIZES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, family = LOADED.get(shape, ("", "tiny"))
    model = ChatModel.load(name, device=device, dtype="float32") if name else random_model(shape, device)
    harmful, harmless = (instructions(f"{family}-{kind}", "val", prompts) for kind in ("harmful", "harmless"))
    field = thinned(candidates(model, family), components)
    tokens = sorted(model.refusal_candidates())
    warm_up(model, harmful)
    rows = [compare(model, field, harmful, harmless, tokens, reach) for reach in ("local", "global")]
    report(shape, device, prompts, len(field), rows)


def compare(
    model: ChatModel, field: SubspaceField, harmful: list[str], harmless: list[str], tokens: list[int], reach: Reach
) -> dict[str, float | str]:
    """Both forms on the same candidates, the largest difference of their scores, and the floor."""
    plain, plain_s, plain_peak = measured(lambda: plain_loop(model, field, harmful, harmless, tokens, reach))
    ours, ours_s, ours_peak = measured(
        lambda: Scorer(model, harmful, harmless, tokens).score(field, reach, multipliers=MULTIPLIERS)
    )
    means = [ours.bypass.mean(-1), ours.kl.mean(-1), *ours.induce.mean(-1).T]
    difference = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(plain, means, strict=True))
    floor_s = floor(model, field, harmful, harmless, reach)
    return {
        "reach": reach,
        "plain_s": plain_s,
        "ours_s": ours_s,
        "ratio": plain_s / ours_s,
        "floor_s": floor_s,
        "over_floor": ours_s / floor_s,
        "largest_difference": difference,
        "same_ranking": bool(
            (np.argsort(plain[0], kind="stable") == np.argsort(means[0].numpy(), kind="stable")).all()
        ),
        "plain_peak_mb": plain_peak,
        "ours_peak_mb": ours_peak,
    }


def plain_loop(
    model: ChatModel, field: SubspaceField, harmful: list[str], harmless: list[str], tokens: list[int], reach: Reach
) -> list[np.ndarray]:
    """One candidate at a time: bypass, KL, and induce at each multiplier, a full pass for each."""
    baseline = torch.cat([logits.double().log_softmax(-1) for logits in full_passes(model, harmless)])
    scores = []
    for component in field:
        chosen = Chosen(field, component, (component,))
        with model.edited(make_plan("nullspace", chosen, SCOPES[reach])):
            bypass = torch.cat([refusal_metric(logits, tokens) for logits in full_passes(model, harmful)]).mean()
        with model.edited(make_plan("nullspace", chosen, SCOPES[reach])):
            edited = torch.cat([logits.double().log_softmax(-1) for logits in full_passes(model, harmless)])
            kl = (baseline.exp() * (baseline - edited)).sum(-1).mean()
        induce = []
        for multiplier in MULTIPLIERS:
            with model.edited(make_plan("actadd", chosen, SCOPES[reach], strength=multiplier)):
                induce.append(torch.cat([refusal_metric(x, tokens) for x in full_passes(model, harmless)]).mean())
        scores.append([float(score) for score in (bypass, kl, *induce)])
    return list(np.array(scores).T)


@torch.inference_mode()
def full_passes(model: ChatModel, prompts: list[str]) -> list[torch.Tensor]:
    """Last-position logits of batches of 32 in the prompts' order, from logits at every position."""
    sequences = model.tokenize(prompts)
    found = []
    for start in range(0, len(sequences), PLAIN_BATCH):
        batch = model.batch(sequences[start : start + PLAIN_BATCH])
        out = model.model(input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids)
        found.append(out.logits[:, -1].float())
    return found


@torch.inference_mode()
def floor(model: ChatModel, field: SubspaceField, harmful: list[str], harmless: list[str], reach: Reach) -> float:
    """Seconds of the unavoidable block evaluations at the batch size that is fastest per token."""
    tokens_of = [sum(map(len, model.tokenize(kind))) for kind in (harmful, harmless)]
    rows_of = [len(harmful), len(harmless)]
    decoder, best = model.model.get_decoder(), np.inf
    for rows in (8, 16, 32, 64, 128, *((256, 512, 1024) if model.device.type == "cuda" else ())):
        sequences = sorted(model.tokenize(harmless), key=len)[-8:] * (rows // 8)
        batch = model.batch(sequences)
        seconds = min(
            clock(
                lambda batch=batch: decoder(
                    input_ids=batch.ids,
                    attention_mask=batch.mask.long(),
                    position_ids=batch.position_ids,
                    use_cache=False,
                ),
                model.device,
            )
            for _ in range(3)
        )
        best = min(best, seconds / sum(map(len, sequences)))
    blocks = sum(model.n_layers - (component.layer if reach == "local" else 0) for component in field) / model.n_layers
    head = clock(
        lambda: model.model.lm_head(torch.zeros(128, model.d_model, device=model.device, dtype=model.model.dtype)),
        model.device,
    )
    passes = len(field) * (rows_of[0] + (1 + len(MULTIPLIERS)) * rows_of[1])
    return best * blocks * (tokens_of[0] + (1 + len(MULTIPLIERS)) * tokens_of[1]) + head / 128 * passes


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(work: Callable[[], object]) -> tuple[object, float, float]:
    """The result, its seconds, and the peak memory beyond what was in use before, in MB."""
    from refusal_cmp.model.batching import peak, start_peak

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, kept = start_peak(device), []
    seconds = clock(lambda: kept.append(work()), device)
    return kept[0], seconds, (peak(device) - before) / 2**20


def random_model(shape: str, device: str) -> ChatModel:
    """Random weights of a real model's shape, with the embedded tokenizer and chat template."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape]))
        torch.set_default_dtype(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-refuser"))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return ChatModel(model, tokenizer, shape)


def candidates(model: ChatModel, family: str) -> SubspaceField:
    """Difference-in-means directions at every component."""
    return extract(model, *(instructions(f"{family}-{kind}", "train", 32) for kind in ("harmful", "harmless")))


def thinned(field: SubspaceField, n: int) -> SubspaceField:
    """n of the field's components, spread over the layers; all if n is 0."""
    if not n:
        return field
    found = list(field)
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, n).round().astype(int)]
    return SubspaceField(field.method, field.means, {component: field[component] for component in chosen})


def instructions(name: str, split: str, n: int) -> list[str]:
    """The first n instructions of an embedded set."""
    return [prompt.instruction for prompt in DATASETS.get(name)(split)[:n]]


def warm_up(model: ChatModel, prompts: list[str]) -> None:
    """One pass before the clock starts."""
    full_passes(model, prompts[:PLAIN_BATCH])


def report(shape: str, device: str, prompts: int, n: int, rows: list[dict[str, float | str]]) -> None:
    """Print the table and write `results/selection-<shape>.json`."""
    table = Table(
        "", *[str(row["reach"]) for row in rows], title=f"{shape}, {device}, {n} components, 2 × {prompts} prompts"
    )
    for name in rows[0]:
        if name != "reach":
            table.add_row(
                name, *[f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for row in rows]
            )
    Console().print(table)
    write(f"selection-{shape}", {"shape": shape, "device": device, "components": n, "prompts": prompts, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
