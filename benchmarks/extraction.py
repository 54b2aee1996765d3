"""Extraction against the bare forward passes of the same prompts, at the same batch size.

Both tokenise; the bare passes read each prompt in a row of its own, in batches of like length, compute logits at the
last position and keep nothing.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from _measure import in_own_process, seconds, write

BATCH_SIZE = 64


def measure(size: str, repeats: int) -> dict[str, Any]:
    """Median seconds of the bare passes, and of extraction with activations and with means, taken in turns."""
    import torch

    from refusal_cmp.data import DATASETS
    from refusal_cmp.model import ChatModel
    from refusal_cmp.model.reading import collect

    model = ChatModel.load("tiny-refuser", device="cpu")
    if size == "wide":
        model = wide(model)
    harmful, harmless = (
        list(dict.fromkeys(prompt.instruction for prompt in DATASETS.get(name)("train")))[:128]
        for name in ("tiny-harmful", "tiny-harmless")
    )

    def bare() -> None:
        with torch.inference_mode():
            sequences = sorted(model.tokenize([*harmful, *harmless]), key=len)
            for start in range(0, len(sequences), BATCH_SIZE):
                model.last_logits(model.batch(sequences[start : start + BATCH_SIZE]))

    ways = {
        "bare": bare,
        "activations": lambda: collect(model, harmful, harmless, batch_size=BATCH_SIZE),
        "means": lambda: collect(model, harmful, harmless, batch_size=BATCH_SIZE, needs="means"),
    }
    for way in ways.values():
        way()
    times = [{name: seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    medians = {name: statistics.median(row[name] for row in times) for name in ways}
    ratios = {name: statistics.median(row[name] / row["bare"] for row in times) for name in ("activations", "means")}
    return {
        "model": size,
        "layers": model.n_layers,
        "d": model.d_model,
        "prompts": len(harmful) + len(harmless),
        "seconds": medians,
        "ratio": ratios,
    }


def wide(tiny: Any) -> Any:
    """A random-weight Llama of 12 blocks, d = 768, with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from refusal_cmp.model import ChatModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.model.config.vocab_size,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tiny.tokenizer.eos_token_id,
        pad_token_id=tiny.tokenizer.pad_token_id,
    )
    return ChatModel(LlamaForCausalLM(config), tiny.tokenizer, "wide")


def main() -> None:
    """Measure, print and write results/extraction.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny-refuser", "wide"], choices=["tiny-refuser", "wide"])
    parser.add_argument("--repeats", type=int, default=7, help="rounds that the median is taken over")
    args = parser.parse_args()
    rows = []
    for size in args.models:
        row = in_own_process(measure, size, args.repeats)
        print(
            f"{size}: bare {row['seconds']['bare']:.2f} s, extraction {row['ratio']['activations']:.2f} ×, "
            f"means only {row['ratio']['means']:.2f} ×, peak {row['peak_gib']:.2f} GiB",
            flush=True,
        )
        rows.append(row)
    print(f"wrote {write('extraction', {'models': rows})}")


if __name__ == "__main__":
    main()
