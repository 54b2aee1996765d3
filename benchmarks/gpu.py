"""What only a GPU can tell, in one command of at most nine minutes, on a machine with torch and transformers.

Random weights in the shape of an 8B model, made from a configuration in bfloat16: nothing is fetched, and there is no
vLLM. Three parts, each in a process of its own and with a time limit of its own:

    generation   completions of a grid of plans: all plans at once, beside one plan at a time
    study        extraction, INLP, and local selection at every component
    prefix       prompts that begin with the same 500 tokens: read once, beside once for every prompt

    python benchmarks/gpu.py              # writes results/gpu-<card>.json
    python benchmarks/gpu.py --toy        # all of it at toy size, in seconds on a CPU; writes nothing

What a part has measured when its time is up is kept, and what it has not is said.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import write

from refusal_cmp.api import extract
from refusal_cmp.data import DATASETS
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.model.generation import Job
from refusal_cmp.plan import Plan, baseline
from refusal_cmp.planning import Setting, Target
from refusal_cmp.selection.scoring import Scorer
from refusal_cmp.subspace import Subspace

MULTIPLIERS = (0.5, 1.0, 2.0)
GRID = ("ablation", "nullspace", "actadd", "reflection", "alterrep", "clamp", "affine")
RANK = 8
"""Of the subspaces that are edited at every layer."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    vocabulary: int
    subspaces: int
    """That every intervention of the grid has a plan of."""
    prompts: int
    """Of each of two test sets."""
    new_tokens: int
    train: int
    """Prompts of each kind that are extracted from."""
    val: int
    """Prompts of each kind that components are scored on."""
    questions: int
    """That begin alike."""
    shots: int
    """What they begin with: so many sentences."""


FULL = Size(32, 4096, 14336, 32, 8, 128_256, 3, 64, 64, 128, 32, 64, 40)
TOY = Size(3, 64, 128, 4, 2, 8_192, 1, 2, 4, 48, 2, 4, 3)


def main() -> None:
    """Run the parts, print what they measure, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="all of it at toy size, on a CPU")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--seconds", type=float, help="the time limit of each part instead of its own")
    args = parser.parse_args()
    if not args.toy and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --toy runs all of it at toy size on a CPU.")
    size, found = TOY if args.toy else FULL, {}
    for name, (_, limit) in PARTS.items():
        if args.only in (None, name):
            found[name] = within(name, size, args.seconds or limit)
    if not args.toy:
        card = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
        print(write(f"gpu-{card}", {"shape": vars(size), "parts": found}))
    sys.exit(any("failed" in measured for measured in found.values()))


def within(name: str, size: Size, limit: float) -> dict[str, Any]:
    """What a part measures within its time, and whether that is all of it."""
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")  # CUDA does not fork
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "measured"
        file.touch()
        begun = time.monotonic()
        process = context.Process(target=_one_part, args=(name, size, file))
        process.start()
        process.join(limit)
        is_late = process.is_alive()
        process.kill()
        process.join()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    measured = {key: value for line in lines for key, value in line.items()}
    measured["seconds_in_all"] = time.monotonic() - begun
    if is_late:
        measured["unfinished"] = f"the rest of {name} did not fit in {limit:.0f} s"
    elif process.exitcode:
        measured["failed"] = "what went wrong is said above"
    print(f"{name}:", *(f"  {key:40} {_shown(value)}" for key, value in measured.items()), sep="\n", flush=True)
    return measured


def _one_part(name: str, size: Size, file: Path) -> None:
    """In a process of its own: what a part measures, a line as soon as it is there."""
    torch.set_num_threads(torch.get_num_threads())  # a fork has torch make its threads anew
    with file.open("a") as lines:
        for measured in PARTS[name][0](size):
            lines.write(json.dumps(measured) + "\n")
            lines.flush()


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


class Endless(ChatModel):
    """A chat model whose answers end at the limit only, so that everybody makes as many tokens."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """None."""
        return frozenset()


def random_model(size: Size) -> ChatModel:
    """Random weights of that shape, with the embedded tokenizer and chat template."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        max_position_embeddings=8192,
        initializer_range=size.width**-0.5,
    )
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if on_gpu else torch.float32)
    try:
        with torch.device("cuda" if on_gpu else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(was)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(size.width**0.5)  # a stream of usual size, for INLP to find classes in
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-refuser"))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Endless(model, tokenizer, "random")


def seconds(model: ChatModel, work: Callable[[], object]) -> float:
    """Wall time of one call, to the end of what it has the GPU do."""
    for_all = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    for_all()
    begun = time.perf_counter()
    work()
    for_all()
    return time.perf_counter() - begun


def ready(size: Size) -> Iterator[tuple[ChatModel, dict[str, float]]]:
    """The model, and how long it took to be made."""
    begun = time.perf_counter()
    model = random_model(size)
    yield model, {"model_ready_s": time.perf_counter() - begun}


def instructions(kind: str, split: str, n: int) -> list[str]:
    """The first n instructions of an embedded set, over again where it has fewer."""
    found = [prompt.instruction for prompt in DATASETS.get(f"tiny-{kind}")(split)]
    return [f"{found[i % len(found)]}{' Now.' * (i // len(found))}" for i in range(n)]


def grid(model: ChatModel, n: int) -> list[Plan]:
    """The baseline, and every intervention of the grid at every layer with each of n random subspaces."""
    plans = [baseline()]
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.linalg.qr(torch.randn(model.d_model, RANK, dtype=torch.float64, generator=generator))[0].mT
        subspace = Subspace(rows.contiguous(), rows[0], 1.0, torch.ones(RANK))
        mean = torch.zeros(model.d_model, dtype=torch.float64)
        targets = [Target(layer, subspace, mean, mean, 0.1) for layer in range(model.n_layers)]
        for name in GRID:
            maker = INTERVENTIONS.create(name)
            strength = None if maker.strengths is None else maker.strengths[0]
            plans.append(Plan(f"{name}-{seed}", maker.edits(targets, strength, Setting())))
    return plans


def generation(size: Size) -> Iterator[dict[str, Any]]:
    """The grid of plans all at once, and some of it one plan at a time."""
    (model, taken), = ready(size)  # fmt: skip
    yield taken
    plans = grid(model, size.subspaces)
    sets = [instructions(kind, "test", size.prompts) for kind in ("harmful", "harmless")]
    engine = HFEngine(model)
    engine.generate(plans[1], sets[0][:8], 4)  # warm
    jobs = [Job(plan, some, {}) for plan in plans for some in sets]
    together = seconds(model, lambda: engine.generate_many(jobs, size.new_tokens))
    tokens = sum(one.n_tokens for job in jobs for one in job.done.values())
    yield {"plans": len(plans), "completions": sum(len(job.done) for job in jobs), "at_once_s": together}
    yield {"at_once_tokens_per_s": tokens / together, "rows_of_a_batch": engine.rows.limit}
    made, alone_s, same = 0, 0.0, []
    for job in jobs:
        found: list[Any] = []
        alone_s += seconds(
            model, lambda job=job, to=found: to.extend(engine.generate(job.plan, job.instructions, size.new_tokens))
        )
        made += sum(one.n_tokens for one in found)
        same += [one == job.done[index] for index, one in enumerate(found)]
        yield {
            "one_at_a_time_tokens_per_s": made / alone_s,
            "one_at_a_time_sets": len(same) // size.prompts,
            "ratio": tokens / together / (made / alone_s),
            "same_completions": sum(same) / len(same),
        }
    yield memory(model)


def study(size: Size) -> Iterator[dict[str, Any]]:
    """Extraction by difference in means and by INLP, and the local scores of the components of both."""
    (model, taken), = ready(size)  # fmt: skip
    yield taken
    kinds = (("harmful", "bomb bomb bomb"), ("harmless", "cake cake cake"))  # random weights need telling
    train, val = (
        [[f"{text} {words}" for text in instructions(kind, split, n)] for kind, words in kinds]
        for split, n in (("train", size.train), ("val", size.val))
    )
    tokens = sorted(model.refusal_candidates())
    fields: dict[str, Any] = {}
    total = 0.0
    for method, options in (("diff-in-means", {}), ("inlp", {"device": model.device.type, "batch_size": 32})):

        def fit(n: int = size.train, method: str = method, options: dict[str, Any] = options) -> None:
            fields[method] = extract(model, *(kind[:n] for kind in train), method=method, **options)

        yield {
            f"first_{method}_s": seconds(model, lambda fit=fit: fit(24))
        }  # kernels are loaded when they are first used
        total += (taken_s := seconds(model, fit))
        ranks = [fields[method][component].k for component in fields[method]]
        yield {f"extract_{method}_s": taken_s, f"{method}_components": len(ranks), f"{method}_directions": sum(ranks)}
    for method, field in fields.items():

        def score(field: Any = field) -> None:
            Scorer(model, *val, tokens).score(field, "local", multipliers=MULTIPLIERS)

        total += (taken_s := seconds(model, score))
        yield {f"select_{method}_s": taken_s}
    yield {"study_s": total, **memory(model)}


def prefix(size: Size) -> Iterator[dict[str, Any]]:
    """Prompts that begin alike, in rows that they share and in rows of their own."""
    (model, taken), = ready(size)  # fmt: skip
    yield taken
    shots = " ".join(instructions("harmless", "train", size.shots))
    prompts = [f"{shots} {question}" for question in instructions("harmless", "test", size.questions)]
    lengths = [len(ids) for ids in model.tokenize(prompts)]
    yield {"prompts": len(prompts), "tokens_of_a_prompt": sum(lengths) / len(lengths), "shares": model.shares_rows}

    def read(shared: bool) -> torch.Tensor:
        was, model.shares_rows = model.shares_rows, shared and model.shares_rows
        try:
            return model.per_prompt(prompts, model.last_logits, None)
        finally:
            model.shares_rows = was

    logits: dict[bool, torch.Tensor] = {}
    times: dict[bool, float] = {}
    read(True)  # warm
    for shared in (True, False):
        times[shared] = min(
            seconds(model, lambda shared=shared: logits.update({shared: read(shared)})) for _ in range(2)
        )
        yield {f"{'shared' if shared else 'plain'}_s": times[shared]}
    off = (logits[True] - logits[False]).norm() / logits[False].norm()
    yield {"ratio": times[False] / times[True], "relative_difference": float(off), **memory(model)}


def memory(model: ChatModel) -> dict[str, float]:
    """The most that the GPU held."""
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if model.device.type == "cuda" else {}


PARTS: dict[str, tuple[Callable[[Size], Iterator[dict[str, Any]]], float]] = {
    "generation": (generation, 240),
    "study": (study, 200),
    "prefix": (prefix, 90),
}
"""Each with its time limit in seconds; together less than nine minutes."""


if __name__ == "__main__":
    main()
