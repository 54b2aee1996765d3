"""What a pass takes beside the weights: measured for a 0.1B model on a CPU, computed for larger shapes.

Each piece of work is done in a process of its own at the sizes that a run has, few enough prompts apart. The peak is
that of the resident memory; `beside the weights` counts the interpreter and its libraries too.

    python benchmarks/memory.py                       # random weights in SmolLM2-135M's shape
    python benchmarks/memory.py --model FOLDER        # a real one of that size
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _measure import in_own_process, write
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from refusal_cmp.config import load_config
from refusal_cmp.data import DATASETS
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.evals import Answer, Subject, configured
from refusal_cmp.evals.capability import _strict_lm
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.model.batching import PASS_ROWS, Cost, RowBudget, peak, start_peak
from refusal_cmp.model.losses import Scored, Texts
from refusal_cmp.model.reading import collect
from refusal_cmp.plan import Place, Plan
from refusal_cmp.selection.scoring import Scorer

SHAPES: dict[str, dict[str, int]] = {
    "0.1B": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49_152},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151_936},
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
PROMPT, NEW, TEXT, SHOTS = 64, 64, 256, 800
"""Tokens of a prompt, of its answer, of a text whose loss is measured, and of a benchmark question with five shots."""
WORK: dict[str, tuple[int, int, int]] = {
    "activations, metrics": (PROMPT, 1, 0),
    "completions": (PROMPT, 1, PROMPT + NEW),
    "losses": (TEXT, TEXT, 0),
    "benchmark questions": (SHOTS, 1, 0),
}
"""Tokens of a row, how many of them have logits, and keys and values."""


def load(folder: str | None) -> ChatModel:
    """A real model, or random weights in the smallest shape with the embedded tokenizer."""
    if folder is not None:
        return ChatModel.load(folder, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-refuser"))
    config = LlamaConfig(**SHAPES["0.1B"], tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id)
    return ChatModel(LlamaForCausalLM(config), tokenizer, "random weights")


def prompts(kind: str, n: int, split: str = "train") -> list[str]:
    """The first instructions of an embedded set."""
    return [prompt.instruction for prompt in DATASETS.get(f"tiny-{kind}")(split)[:n]]


def read_activations(model: ChatModel) -> None:
    """A batch for extraction."""
    collect(model, prompts("harmful", 64), prompts("harmless", 64), needs="means")


def score_components(model: ChatModel) -> None:
    """Two late layers, so that passes are short; what is kept of the prompts is that of a whole run."""
    field = _field(model)
    scorer = Scorer(model, prompts("harmful", 32, "val"), prompts("harmless", 32, "val"), (1, 2))
    scorer.score(field, "local", multipliers=(1.0,))


def _field(model: ChatModel) -> Any:
    from refusal_cmp.methods import EXTRACTORS

    made = EXTRACTORS.create("diff-in-means")
    read = collect(model, prompts("harmful", 10), prompts("harmless", 10), needs="means")
    field = made.fit_field(read, "diff-in-means")
    late = [component for component in field if component.layer >= model.n_layers - 2]
    return type(field)(field.method, field.means, {component: field[component] for component in late})


def complete(model: ChatModel) -> None:
    """A batch of completions, cut short: the room for their keys and values is that of whole ones."""
    model.generate(prompts("harmless", 96), max_new_tokens=12)


def nudges(model: ChatModel) -> list[Plan]:
    """Plans that begin at several blocks, two at each."""
    offset = torch.zeros(model.d_model)
    return [
        Plan(f"hand/{layer}-{size}", {Place(layer, "resid_pre"): LowRankEdit(b=offset + size)})
        for layer in range(0, model.n_layers, 8)
        for size in (0.1, 0.2)
    ]


def measure_losses(model: ChatModel) -> None:
    """Texts of the length at which they are cut."""
    vocabulary = model.model.config.vocab_size
    ids = torch.randint(vocabulary, (12, TEXT), generator=torch.Generator().manual_seed(0)).tolist()
    Texts(model, [Scored(text, TEXT - 1) for text in ids]).under(nudges(model))


def ask_questions(model: ChatModel) -> None:
    """Questions with five shots, four answers each."""
    ids = torch.randint(1000, (10, SHOTS), generator=torch.Generator().manual_seed(0)).tolist()
    lm = _strict_lm(model, None)
    lm._loglikelihood_tokens([(None, context, [answer]) for context in ids for answer in range(4)])


def measure_kl(model: ChatModel) -> None:
    """The baseline's distribution, and those of plans against it."""
    answers = [Answer(text, "", "", 0, "stop") for text in prompts("harmless", 64)]
    judge = configured(load_config(None, {}), "kl")
    subjects = [Subject(plan, {"harmless": answers}, {}, lambda: model) for plan in nudges(model)]
    judge.prepare(subjects, {})
    judge.evaluate(subjects[0])


MEASURED: dict[str, Callable[[ChatModel], None]] = {
    "extract: activations": read_activations,
    "select: scores": score_components,
    "infer: completions": complete,
    "evaluate: losses": measure_losses,
    "evaluate: benchmark questions": ask_questions,
    "evaluate: KL": measure_kl,
}


def measure(work: str, folder: str | None) -> dict[str, Any]:
    """Peak of one piece of work, in GiB: beyond what was held before it, and beside the weights in all."""
    model, device = load(folder), torch.device("cpu")
    weights = sum(one.numel() * one.element_size() for one in model.model.parameters())
    before = start_peak(device)
    MEASURED[work](model)
    highest = peak(device)
    return {
        "work": work,
        "model": model.name,
        "weights_gib": weights / 2**30,
        "pass_gib": (highest - before) / 2**30,
        "beside_weights_gib": (highest - weights) / 2**30,
    }


def compute(shape: str) -> dict[str, Any]:
    """Weights in float32, and by work the rows of a pass, what they take, and what `PASS_ROWS` would take, in GiB."""
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=shape != "8B")
    with torch.device("meta"):
        weights = sum(one.numel() for one in LlamaForCausalLM(config).parameters()) * 4
    cost, budget = Cost.of(config, torch.float32), RowBudget(torch.device("cpu"), PASS_ROWS)
    rows = {}
    for work, (tokens, logits, cached) in WORK.items():
        row = cost.row(tokens, logits=logits, cached=cached)
        together = budget.within(row)
        rows[work] = {"rows": together, "gib": together * row / 2**30, f"gib_of_{PASS_ROWS}": PASS_ROWS * row / 2**30}
    return {"shape": shape, "weights_gib": weights / 2**30, "work": rows}


def main() -> None:
    """Measure, compute, print and write results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder of a chat model; by default random weights in the smallest shape")
    parser.add_argument("--work", nargs="+", default=list(MEASURED), choices=list(MEASURED))
    args = parser.parse_args()
    measured = []
    for work in args.work:
        row = in_own_process(measure, work, args.model)
        print(
            f"{work}: {row['pass_gib']:.2f} GiB, beside the weights {row['beside_weights_gib']:.2f} GiB in all",
            flush=True,
        )
        measured.append(row)
    computed = [compute(shape) for shape in SHAPES]
    for one in computed:
        print(f"{one['shape']}, weights {one['weights_gib']:.1f} GiB:")
        for work, found in one["work"].items():
            print(f"  {work}: {found['rows']} rows, {found['gib']:.2f} GiB ({found[f'gib_of_{PASS_ROWS}']:.1f} whole)")
    print(f"wrote {write('memory', {'measured': measured, 'computed': computed})}")


if __name__ == "__main__":
    main()
