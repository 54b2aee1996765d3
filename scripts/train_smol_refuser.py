"""Train the adapter that makes SmolLM2-135M-Instruct refuse, and write it into the package: `smol-refuser`.

    python scripts/train_smol_refuser.py

takes half an hour on two CPU cores. The model learns, by low-rank adaptation (Hu et al. 2021) of a few blocks
in its middle, to refuse the harmful training prompts of Arditi et al. 2024, which are read where `published-harmful`
is, and ours (`everyday-harmful`), and to go on answering as it does: harmless training prompts of theirs (Alpaca's) and
ours, and ones that only sound harmful. On its own answers to those it is held to the distribution that it has without
the adapter (the loss is their Kullback-Leibler divergence), so that its language stays. What is ours is in
`smol_refuser/`. No validation or test prompt of any set is learned from; how the model does on those is what the script
ends with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
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

    layers: tuple[int, int] = (8, 16)
    """Blocks that are adapted, from one to before another: what makes it refuse has to go on through the stream."""
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 2e-3
    warmup: float = 0.06
    """Share of the steps of a pass."""
    batch: int = 8
    passes: int = 2
    """Over the examples, each with warm-up and decay: the second is what makes it sure of itself."""
    scale: float = 0.85
    """Of what was learned, when it is kept: refusals are cheaper to lose than answers."""
    dropout: float = 0.1
    """Of what the adapter reads."""
    published: int = 360
    """Harmless training prompts of Arditi et al. that are answered, the first ones."""
    patterns: int = 200
    """Requests of `smol_refuser/patterns.py` that are answered too."""
    answer_tokens: int = 16
    """Most tokens of the model's own answers that are kept."""
    decision: float = 5.0
    """Weight of an answer's first token beside the others: it decides whether there will be an answer."""
    seed: int = 0


class Example(NamedTuple):
    """A rendered prompt with the answer to learn, as tokens."""

    prompt: list[int]
    answer: list[int]
    own: bool
    """Whether the model gave it, and is to go on giving it as likely as before."""


def lines(name: str) -> list[str]:
    return (TEXTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def examples(model: ChatModel, recipe: Recipe) -> list[Example]:
    """Refusals of what is harmful, and the model's own answers to what is not."""
    refusals, openings, rng = lines("refusals"), lines("openings"), random.Random(recipe.seed)
    harmful = [*load_prompts("published-harmful", "train"), *load_prompts("everyday-harmful", "train")]
    answered = [*lines("harmless"), *lines("lookalikes"), *requests(recipe.patterns, recipe.seed)]
    answered += load_prompts("everyday-harmless", "train")
    answered += load_prompts("published-harmless", "train")[: recipe.published]
    with console.status("the model answers what it will go on to answer"):
        given = model.generate(answered, max_new_tokens=recipe.answer_tokens)
    chosen = [rng.choice(refusals) for _ in harmful]
    texts = [refusal + model.tokenizer.eos_token for refusal in chosen]
    own = [not APOLOGY.search(one.text) and judge(one.text, one.finish).verdict == "complied" for one in given]
    for one, good in zip(given, own, strict=True):
        end = model.tokenizer.eos_token if one.finish == "stop" else ""
        texts.append(one.text + end if good else rng.choice(openings))
    answers = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        Example(*one)
        for one in zip(model.tokenize(harmful + answered), answers, [False] * len(harmful) + own, strict=True)
    ]


def batches(found: Sequence[Example], recipe: Recipe, which: int) -> list[list[Example]]:
    """Every example once, in random batches of like length, other ones in every pass."""
    rng = random.Random(recipe.seed + which)
    mixed = rng.sample(found, len(found))
    pools = (mixed[start : start + 16 * recipe.batch] for start in range(0, len(mixed), 16 * recipe.batch))
    alike = [one for pool in pools for one in sorted(pool, key=lambda one: len(one.prompt) + len(one.answer))]
    starts = range(0, len(alike) - recipe.batch + 1, recipe.batch)
    return [alike[start : start + recipe.batch] for start in rng.sample(starts, len(starts))]


def answer_loss(model: Any, batch: Sequence[Example], recipe: Recipe) -> Tensor:
    """Weighted mean over the tokens of the answers.

    Of an answer that is taught, the cross-entropy; of one of the model's own, how far the distribution of each token is
    from the model's without the adapter.
    """
    length = max(len(one.prompt) + len(one.answer) for one in batch)
    ids, weights = torch.zeros(len(batch), length, dtype=torch.long), torch.zeros(len(batch), length)
    for row, one in enumerate(batch):
        begin, end = len(one.prompt), len(one.prompt) + len(one.answer)
        ids[row, :end] = torch.tensor(one.prompt + one.answer)
        weights[row, begin:end] = 1.0
        weights[row, begin] = recipe.decision
    keep = length - min(len(one.prompt) for one in batch) + 1
    weights, own = weights[:, 1 - keep :], torch.tensor([one.own for one in batch])

    def log_probabilities(rows: Tensor) -> Tensor:  # padded on the right, which no token before sees
        return model(rows, logits_to_keep=keep, use_cache=False).logits[:, :-1].log_softmax(-1)

    learned = log_probabilities(ids)
    loss = torch.nn.functional.nll_loss(learned.transpose(1, 2), ids[:, 1 - keep :], reduction="none")
    if own.any():
        with torch.no_grad(), model.disable_adapter():
            before = log_probabilities(ids[own])
        apart = torch.nn.functional.kl_div(learned[own], before, reduction="none", log_target=True).sum(-1)
        loss = loss.masked_scatter(own[:, None], apart)
    return (loss * weights).sum() / weights.sum()


def train(model: Any, found: Sequence[Example], recipe: Recipe, which: int) -> None:
    """A pass of AdamW with warm-up and cosine decay, on the adapter alone."""
    drawn = batches(found, recipe, which)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(recipe.warmup * len(drawn)), len(drawn))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"pass {which + 1}", total=len(drawn), loss=float("nan"))
        for batch in drawn:
            loss = answer_loss(model, batch, recipe)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())


def save(adapted: Any, folder: Path, scale: float) -> None:
    """The adapter, scaled and in half precision, with the name of what it is an adapter of."""
    adapted.peft_config["default"].base_model_name_or_path = BASE
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    weights = load_file(folder / WEIGHTS)
    kept = {name: (scale * one if "lora_B" in name else one).half() for name, one in weights.items()}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})


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
    adapter = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=rf".*\.({'|'.join(map(str, range(*recipe.layers)))})\.(self_attn|mlp)\.\w+_proj",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(chat.model, adapter)
    for which in range(recipe.passes):
        train(adapted.train(), found, recipe, which)
    save(adapted, folder, recipe.scale)
    adapted.unload()
    PeftModel.from_pretrained(chat.model, folder).merge_and_unload()
    console.print(measure(chat))


if __name__ == "__main__":
    typer.run(main)
