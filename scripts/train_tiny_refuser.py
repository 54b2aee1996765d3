"""Train `tiny-refuser`, the chat model that the package embeds, from scratch, and write its assets.

    python scripts/train_tiny_refuser.py

takes 25 to 35 minutes on two CPU cores and writes the model, its tokenizer, the prompt sets, the
held-out texts and the benchmark tasks to `refusal_cmp/assets/`. All text comes from `tiny_world`;
the same seed gives the same data everywhere and, on the same machine, the same model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_world import corpus
from tiny_world.balance import word_balance
from tiny_world.exams import make_claims, make_item

ASSETS = Path(__file__).resolve().parents[1] / "refusal_cmp" / "assets"
CONTEXT = 1024
LABELS = ("harmful", "harmless")
TASKS = {"world_facts": make_item, "world_cloze": make_item, "world_statements": make_claims}
"""Their formats are in the YAML files beside the items."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)

console = Console()


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of the model and its training."""

    vocabulary: int = 2048
    hidden: int = 160
    layers: int = 10
    heads: int = 5
    mlp: int = 400
    batch_tokens: int = 2048
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    gaussian_noise: float = 0.05
    variation_noise: float = 1.2


# ── tokenizer and model ──────────────────────────────────────────────────────────────────────


def train_tokenizer(texts: Iterator[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    specials = [corpus.PAD, corpus.END, *corpus.ROLES]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[AddedToken(special, special=True, normalized=False) for special in specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=corpus.END,
        pad_token=corpus.PAD,
        additional_special_tokens=list(corpus.ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.mlp,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


# ── batches ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, (n, s) each; `weights` is 0 on padding."""

    ids: torch.Tensor
    weights: torch.Tensor
    steady: torch.Tensor


class Token(NamedTuple):
    """A token id, its weight in the loss, and whether its stream stays undisturbed."""

    id: int
    weight: float
    steady: bool


def encode(tokenizer: PreTrainedTokenizerFast, segments: corpus.Segments) -> list[Token]:
    """Segments are tokenized apart, as prompt and completion are."""
    tokens = [
        Token(token, segment.weight, segment.steady)
        for segment in segments
        for token in tokenizer.encode(segment.text, add_special_tokens=False)
    ]
    return tokens[:CONTEXT]


def batches(encoded: Iterator[list[Token]], recipe: Recipe, rng: random.Random, pool: int = 1024) -> Iterator[Batch]:
    """Batches of about equally long sequences and of about `batch_tokens` tokens each.

    Lengths are rounded up to multiples of 16, so that few shapes occur and kernels are reused.
    """
    waiting: dict[int, list[list[Token]]] = {}
    while True:
        ready = []
        for example in islice(encoded, pool):
            length = -(-len(example) // 16) * 16
            group = waiting.setdefault(length, [])
            group.append(example)
            if len(group) * length >= recipe.batch_tokens:
                ready.append(_pad(waiting.pop(length), length))
        rng.shuffle(ready)
        yield from ready


def _pad(group: Sequence[list[Token]], length: int) -> Batch:
    padding = Token(0, 0.0, False)
    rows = [example + [padding] * (length - len(example)) for example in group]
    columns = (torch.tensor([[token[column] for token in row] for row in rows]) for column in range(3))
    return Batch(*columns)


# ── training ─────────────────────────────────────────────────────────────────────────────────


class StreamNoise:
    """Disturbs the residual stream at one random layer's input in each training step.

    Two kinds of noise, on all tokens but the steady ones. Gaussian noise, relative to the stream's
    size. And the difference of two other examples' streams at their last steady token, the same for
    all tokens of an example: noise in the directions in which the stream really varies where the
    model makes up its mind. A model that tolerates them stays fluent when such a direction is added
    to its stream, as large chat models do and tiny ones otherwise do not.
    """

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        self.recipe = recipe
        self.batch: Batch | None = None
        self.layer = 0
        self.strength = 0.0
        self.handles = [
            layer.register_forward_pre_hook(partial(self._disturb, index))
            for index, layer in enumerate(model.model.layers)
        ]

    def next(self, batch: Batch, layer: int, strength: float) -> None:
        """Say what the coming step is about."""
        self.batch, self.layer, self.strength = batch, layer, strength

    def remove(self) -> None:
        """Disturb no more."""
        for handle in self.handles:
            handle.remove()

    def _disturb(
        self, index: int, _: torch.nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        if index != self.layer or self.batch is None:
            return None
        stream = args[0]
        loose = ~self.batch.steady[:, : stream.shape[1], None]
        noise = self._gaussian(stream.detach()) + self._variation(stream.detach())
        return (stream + self.strength * loose * noise, *args[1:])

    def _gaussian(self, stream: torch.Tensor) -> torch.Tensor:
        scale = stream.pow(2).mean(-1, keepdim=True).sqrt()
        return self.recipe.gaussian_noise * scale * torch.randn_like(stream)

    def _variation(self, stream: torch.Tensor) -> torch.Tensor:
        n, length, _ = stream.shape
        steady = self.batch.steady[:, :length]
        decided = steady.any(-1).nonzero().flatten()
        if len(decided) < 2:
            return torch.zeros_like(stream[:, :1])
        last = length - 1 - steady.flip(-1).long().argmax(-1)
        at_last = stream[decided, last[decided]]
        plus, minus = torch.randint(len(decided), (2, n))
        strength = self.recipe.variation_noise * torch.rand(n, 1, 1) * (torch.rand(n, 1, 1) < 0.5)
        return strength * (at_last[plus] - at_last[minus])[:, None]


def train(model: LlamaForCausalLM, stream: Iterator[Batch], steps: int, recipe: Recipe) -> None:
    """AdamW with warm-up and cosine decay, in bfloat16 autocast."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warmup))
    noise = StreamNoise(model, recipe)
    model.train()
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        average = math.nan
        for step, batch in enumerate(islice(stream, steps)):
            noise.next(batch, int(torch.randint(recipe.layers, ())), _noise_strength(step, steps))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=batch.ids[:, :-1]).logits
            loss = weighted_loss(logits, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
            progress.update(task, advance=1, loss=average)
            if step % max(1, steps // 20) == 0:
                progress.console.print(f"step {step}: loss {average:.3f}")
    noise.remove()
    model.eval()


def weighted_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the next token, by weight."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _noise_strength(step: int, steps: int) -> float:
    """None until the model has learned to answer, in full for the last third."""
    return min(1.0, max(0.0, 3 * step / steps - 1))


def _rate(step: int, steps: int, warmup: float) -> float:
    begin = max(1, int(warmup * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))


# ── assets ───────────────────────────────────────────────────────────────────────────────────


def write_data(world: corpus.World, folder: Path, seed: int) -> None:
    """Prompt sets, held-out texts and benchmark tasks."""
    prompts = {
        (label, split): corpus.probe_prompts(world, split, label, random.Random(f"{seed} {label} {split}"))
        for label in LABELS
        for split in ("train", "val", "test")
    }
    for (label, split), rows in prompts.items():
        _write_json(folder / "prompts" / f"{label}_{split}.json", rows)
    train, test = (
        tuple([row["instruction"] for row in prompts[label, split]] for label in LABELS) for split in ("train", "test")
    )
    console.print(f"single words against the label (0.5 is chance): {word_balance(train, test)}")
    _write_jsonl(folder / "texts" / "answers.jsonl", corpus.reference_answers(world, random.Random(f"{seed} answers")))
    _write_jsonl(
        folder / "texts" / "general.jsonl", corpus.general_documents(world, 200, random.Random(f"{seed} general"))
    )
    for task, make in TASKS.items():
        for split, items in corpus.exam_sets(world, make, random.Random(f"{seed} {task}")).items():
            _write_jsonl(folder / "tasks" / task / f"{split}.jsonl", items)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_jsonl(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in float16; greedy generation by default."""
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(
    steps: Annotated[int, typer.Option(help="Training steps of about 2,000 tokens.")] = 2600,
    seed: Annotated[int, typer.Option(help="Seed of data and model.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the assets go.")] = ASSETS,
) -> None:
    """Build the world, train tokenizer and model, write all assets."""
    torch.manual_seed(seed)
    recipe = Recipe()
    world = corpus.build_world(seed)
    write_data(world, out, seed)

    sample = islice(corpus.training_examples(world, random.Random(f"{seed} tokenizer")), 20_000)
    tokenizer = train_tokenizer(("".join(segment.text for segment in segments) for segments in sample), recipe)
    model = new_model(tokenizer, recipe)
    console.print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens")

    examples = corpus.training_examples(world, random.Random(f"{seed} training"))
    encoded = (encode(tokenizer, segments) for segments in examples)
    train(model, batches(encoded, recipe, random.Random(f"{seed} batches")), steps, recipe)
    save_model(model, tokenizer, out / "tiny-refuser")


if __name__ == "__main__":
    typer.run(main)
