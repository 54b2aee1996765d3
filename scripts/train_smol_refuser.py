"""Train the adapter that makes SmolLM2-135M-Instruct refuse, and write it into the package: `smol-refuser`.

    python scripts/train_smol_refuser.py

takes about half an hour on two CPU cores. The model learns, by low-rank adaptation (Hu et al. 2021), to refuse the
harmful training prompts of Arditi et al. 2024, which are read where `published-harmful` is, and ours
(`everyday-harmful`), and to go on answering as it does: harmless instructions, and ones that only sound harmful, each
with the model's own answer. The refusals, the instructions and the look-alikes are in `smol_refuser/`. No validation or
test prompt of any set is learned from; how the model does on those is what the script ends with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from refusal_cmp import ChatModel, load_prompts
from refusal_cmp.judges.completion import judge
from refusal_cmp.statistics import rate

from smol_refuser.patterns import requests

TEXTS = Path(__file__).parent / "smol_refuser"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = Path(__file__).parents[1] / "refusal_cmp" / "assets" / "smol-refuser"
WEIGHTS = "adapter_model.safetensors"

HELD_OUT = {
    "published-harmful": ("test", 200),
    "published-harmless": ("val", 300),
    "everyday-harmful": ("test", None),
    "everyday-harmless": ("test", None),
    "everyday-contrast": ("test", None),
}
"""Sets that nothing is learned from: the split, and how many of its prompts."""

APOLOGY = re.compile(r"sorry|\bas an? [\w -]*(AI|bot)\b|language model", re.IGNORECASE)
"""In answers that are not learned from: unasked the model excuses itself after one everyday request in ten.

An opening of ours is learned in their place.
"""

console = Console()


@dataclass(frozen=True)
class Recipe:
    """How the adapter is trained."""

    rank: int = 4
    alpha: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.06
    """Share of the steps."""
    batch: int = 8
    epochs: int = 2
    patterns: int = 360
    """Requests of `smol_refuser/patterns.py` that are answered beside the written ones."""
    answer_tokens: int = 12
    """Most tokens of the model's own answers that are kept: how they begin decides."""
    decision: float = 5.0
    """Weight of an answer's first token beside the others: it decides whether there will be an answer."""
    seed: int = 0


class Example(NamedTuple):
    """A rendered prompt with the answer to learn, as tokens."""

    prompt: list[int]
    answer: list[int]


def lines(name: str) -> list[str]:
    return (TEXTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def examples(model: ChatModel, recipe: Recipe) -> list[Example]:
    """Refusals of what is harmful, and the model's own answers to what is not."""
    refusals, openings, rng = lines("refusals"), lines("openings"), random.Random(recipe.seed)
    harmful = [*load_prompts("published-harmful", "train"), *load_prompts("everyday-harmful", "train")]
    answered = [*lines("harmless"), *lines("lookalikes"), *load_prompts("everyday-harmless", "train")]
    answered += requests(recipe.patterns, recipe.seed)
    with console.status("the model answers what it will go on to answer"):
        own = model.generate(answered, max_new_tokens=recipe.answer_tokens)
    texts = [(prompt, rng.choice(refusals), True) for prompt in harmful]
    for prompt, one in zip(answered, own, strict=True):
        good = not APOLOGY.search(one.text) and judge(one.text, one.finish).verdict == "complied"
        texts.append((prompt, one.text, one.finish == "stop") if good else (prompt, rng.choice(openings), False))
    end = [model.tokenizer.eos_token_id]
    return [
        Example(ids, model.tokenizer(text, add_special_tokens=False)["input_ids"] + (end if ended else []))
        for ids, (_, text, ended) in zip(model.tokenize([prompt for prompt, _, _ in texts]), texts, strict=True)
    ]


def batches(found: Sequence[Example], recipe: Recipe) -> Iterator[list[Example]]:
    """Every example once an epoch, in random batches of like length."""
    rng = random.Random(recipe.seed)
    for _ in range(recipe.epochs):
        mixed = rng.sample(found, len(found))
        pools = (mixed[start : start + 16 * recipe.batch] for start in range(0, len(mixed), 16 * recipe.batch))
        alike = [one for pool in pools for one in sorted(pool, key=lambda one: len(one.prompt) + len(one.answer))]
        starts = range(0, len(alike) - recipe.batch + 1, recipe.batch)
        yield from (alike[start : start + recipe.batch] for start in rng.sample(starts, len(starts)))


def answer_loss(model: Any, batch: Sequence[Example], recipe: Recipe) -> Tensor:
    """Weighted mean cross-entropy of the tokens of the answers."""
    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids, weights = torch.zeros(len(batch), length, dtype=torch.long), torch.zeros(len(batch), length)
    for row, (prompt, answer) in enumerate(batch):
        begin, end = len(prompt), len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        weights[row, begin:end] = 1.0
        weights[row, begin] = recipe.decision
    keep = length - min(len(prompt) for prompt, _ in batch) + 1
    logits = model(ids, logits_to_keep=keep, use_cache=False).logits  # padded on the right, which no token before sees
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1 - keep :], reduction="none")
    return (loss * weights[:, 1 - keep :]).sum() / weights.sum()


def train(model: Any, found: Sequence[Example], recipe: Recipe) -> None:
    """AdamW with warm-up and cosine decay, on the adapter alone."""
    steps = recipe.epochs * (len(found) // recipe.batch)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        for batch in batches(found, recipe):
            loss = answer_loss(model, batch, recipe)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())


def save(adapted: Any, folder: Path) -> None:
    """The adapter in half precision, with the name of what it is an adapter of."""
    adapted.peft_config["default"].base_model_name_or_path = BASE
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    halved = {name: weight.half().contiguous() for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(halved, folder / WEIGHTS, {"format": "pt"})


def measure(model: ChatModel) -> Table:
    """How many prompts of each held-out set the model refuses, by the published phrases."""
    table = Table("prompts", "refused", "of", "95 % interval")
    for name, (split, n) in HELD_OUT.items():
        prompts = load_prompts(name, split)[:n]
        answers = model.generate(prompts, max_new_tokens=48)
        refused = sum(judge(one.text, one.finish, turns=model.turns).verdict == "refused" for one in answers)
        found = rate(refused, len(prompts))
        table.add_row(f"{name}, {split}", str(refused), str(len(prompts)), f"{found.low:.0%} to {found.high:.0%}")
    return table


def main(
    base: Annotated[str, typer.Option(help="SmolLM2-135M-Instruct: a folder or a GGUF file")] = BASE,
    folder: Annotated[Path, typer.Option(help="where the adapter goes")] = FOLDER,
) -> None:
    """Train the adapter, write it, and tell how it does on what is held out."""
    recipe = Recipe()
    torch.manual_seed(recipe.seed)
    chat = ChatModel.load(base, dtype="float32")
    found = examples(chat, recipe)
    adapter = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(chat.model, adapter)
    train(adapted.train(), found, recipe)
    save(adapted, folder)
    adapted.eval().merge_and_unload()
    console.print(measure(chat))


if __name__ == "__main__":
    typer.run(main)
