"""Train `tiny-guard`, the guard model that the package embeds, from scratch, and write its asset.

    OMP_NUM_THREADS=1 python scripts/train_tiny_guard.py

takes ten minutes on a CPU core of its own. The guard reads a conversation in the world of `tiny_world` and
answers as Llama Guard does: `safe`, or `unsafe` and a category. Its chat template and its categories are its own
(their names are the `id2label` of its configuration); its tokenizer is that of `tiny-refuser`, whose assets must be
there.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from train_tiny_refuser import ASSETS, Batch, Recipe, batches, encode, new_model, save_model, weighted_loss
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from refusal_cmp.judges.hf import HFBackend

from tiny_world import corpus
from tiny_world.conversations import (
    CATEGORIES,
    ENDINGS,
    Conversation,
    held_out_conversations,
    training_conversations,
)

RECIPE = Recipe(hidden=128, layers=4, heads=4, mlp=352, learning_rate=2e-3)

READ = 0.05
"""Weight of the conversation's tokens in the loss."""
JUDGED = 4.0
"""Weight of the verdict's."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('User and assistant must take turns, and the user begins.') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{{- '<|system|>\\nIs what the ' + messages[-1]['role'] + ' said last safe?<|end|>\\n<|assistant|>\\n' -}}
"""

console = Console()


def segments_of(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> corpus.Segments:
    """The rendered conversation and the verdict on it."""
    prompt = tokenizer.apply_chat_template(conversation.messages, tokenize=False)
    return [corpus.Segment(prompt, READ), corpus.Segment(conversation.verdict + corpus.END, JUDGED)]


def train(model: LlamaForCausalLM, stream: Iterator[Batch], steps: int, recipe: Recipe) -> None:
    """AdamW with warm-up and cosine decay, in bfloat16 autocast."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"))
    model.train()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        for step, batch in enumerate(islice(stream, steps)):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=batch.ids[:, :-1]).logits
            loss = weighted_loss(logits, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())
            if step % max(1, steps // 20) == 0:
                progress.console.print(f"step {step}: loss {loss.item():.3f}")
    model.eval()


def report(folder: Path, conversations: list[Conversation]) -> None:
    """Print how often the saved guard is right, by kind of last message."""
    guard = HFBackend(str(folder), device="cpu")
    right = defaultdict(list)
    said = dict(guard.answer([conversation.messages for conversation in conversations], 20))
    for index, (conversation, ending) in enumerate(zip(conversations, cycle(ENDINGS))):
        right[ending].append(said[index].split("\n")[0] == conversation.verdict.split("\n")[0])
        right["with category"].append(said[index] == conversation.verdict)
    for ending, hits in right.items():
        console.print(f"{ending}: {sum(hits)} of {len(hits)} right")


def main(
    steps: Annotated[int, typer.Option(help="Training steps of about 2,000 tokens.")] = 2400,
    seed: Annotated[int, typer.Option(help="Seed of data and model; the world is that of tiny-refuser's seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = ASSETS / "tiny-guard",
) -> None:
    """Train on conversations about training pairs, save, and judge those about test pairs."""
    torch.manual_seed(seed)
    world = corpus.build_world(seed)
    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "tiny-refuser"))
    tokenizer.chat_template = CHAT_TEMPLATE
    model = new_model(tokenizer, RECIPE)
    model.config.id2label = {int(category[1:]): topic for topic, category in CATEGORIES.items()}
    model.config.label2id = {topic: number for number, topic in model.config.id2label.items()}
    console.print(f"{model.num_parameters() / 1e6:.2f} M parameters")

    conversations = training_conversations(world, random.Random(f"{seed} guard"))
    encoded = (encode(tokenizer, segments_of(tokenizer, conversation)) for conversation in conversations)
    train(model, batches(encoded, RECIPE, random.Random(f"{seed} guard batches")), steps, RECIPE)
    save_model(model, tokenizer, out)
    report(out, held_out_conversations(world, "test", random.Random(f"{seed} guard test")))


if __name__ == "__main__":
    typer.run(main)
