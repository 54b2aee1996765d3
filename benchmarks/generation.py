"""Completions under every intervention: the plain loop, our transformers engine and our vLLM engine, side by side.

The plain loop is what published code does: hooks around transformers' own `generate`, eight prompts at a time.
All three make the same number of tokens: nothing ends an answer but the limit. Each runs in a process of its
own; start-up is reported apart. The vLLM engine needs an environment that has vLLM (`make test-vllm` makes one):

    .venv-vllm/bin/python benchmarks/generation.py                # tiny-refuser, and a random-weight 0.5B shape
    .venv-vllm/bin/python benchmarks/generation.py --shape 7b     # random weights in Qwen2.5-7B's shape, on a GPU
    .venv-vllm/bin/python benchmarks/generation.py --hooks 135m   # what our hooks cost vLLM, on smol-refuser

`--hooks` has vLLM as it comes, compiled, beside our engine, compiled and eager. The three take turns in one process, so
that what else the machine does falls on all of them, and a rate is told as a share of the first one's around it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any

import torch
import typer
from _measure import in_own_process, write
from rich.console import Console
from rich.table import Table

from refusal_cmp.data import DATASETS
from refusal_cmp.engines import Engine
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.engines.vllm import VLLMEngine, import_vllm, start_vllm
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.plan import Plan, baseline
from refusal_cmp.planning import Setting, Target
from refusal_cmp.subspace import Subspace

SIZES = {"tiny": (128, 64, 3), "0.5b": (32, 16, 1), "7b": (512, 128, 1)}
"""Prompts, tokens of each answer, and rounds, of which the fastest counts."""
HOOKS = {"tiny": (64, 32, 5), "135m": (64, 32, 3)}
"""The same for what hooks cost; of its rounds the median counts."""
PLAIN_BATCH = 8
RANK = 8
"""Of the subspaces that are edited."""


def main(
    shape: Annotated[list[str] | None, typer.Option(help="tiny, 0.5b or 7b (random weights; 7b wants a GPU)")] = None,
    hooks: Annotated[str | None, typer.Option(help="tiny or 135m: what hooks cost vLLM, nothing else")] = None,
) -> None:
    """Time all three on the baseline and on every intervention at every layer; or what hooks cost vLLM."""
    if hooks is not None:
        cost_of_hooks(hooks)
        return
    for name in shape or ("tiny", "0.5b"):
        one_shape(name)


def one_shape(shape: str) -> None:
    """Measure, print and write one shape."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_path("tiny-refuser") if shape == "tiny" else save_random(shape, scratch)
        kinds = ["plain", "hf", *(["vllm"] if find_spec("vllm") else [])]
        engines = {kind: in_own_process(measure, kind, folder, *SIZES[shape]) for kind in kinds}
    report(shape, engines, load)


def measure(kind: str, folder: str, n: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of one way of generating, for every plan, and the seconds until it is ready."""
    dtype = "float32" if not torch.cuda.is_available() else "bfloat16"
    started = time.perf_counter()
    model = Endless.load(folder, dtype=dtype)
    engine: Engine | None = None
    if kind == "plain":
        generate = plain_loop(model, new_tokens)
    else:
        engine = HFEngine(model) if kind == "hf" else VLLMEngine(ModelSource(folder, dtype=dtype), model)
        generate = counted(engine, new_tokens)
    ready = time.perf_counter() - started
    todo = plans(model)
    prompts = [prompt.instruction for prompt in DATASETS.get("tiny-harmful")("test")] * (n // 64 + 1)
    rates = dict.fromkeys(todo, 0.0)
    generate(baseline(), prompts[:PLAIN_BATCH])  # warm
    for _ in range(rounds):
        for name, plan in todo.items():
            begun = time.perf_counter()
            made = generate(plan, prompts[:n])
            rates[name] = max(rates[name], made / (time.perf_counter() - begun))
    if engine is not None:
        engine.close()  # vLLM's own processes would keep this one from ending
    return {"start_s": ready, "tokens_per_s": rates}


def cost_of_hooks(shape: str) -> None:
    """Measure, print and write what our hooks cost vLLM."""
    load, (n, new_tokens, rounds) = os.getloadavg()[0], HOOKS[shape]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    name = "tiny-refuser" if shape == "tiny" else "smol-refuser"
    found = in_own_process(taking_turns, name, n, new_tokens, rounds)
    table = Table("share of vLLM's own rate", "median", "of each round", title=f"{shape}, {n} × {new_tokens} tokens")
    for way, shares in found["shares"].items():
        table.add_row(way, f"{statistics.median(shares):.3f}", ", ".join(f"{share:.3f}" for share in shares))
    Console().print(table)
    Console().print("vLLM's own, tokens per second:", found["own"], "; start-up, s:", found["start_s"])
    about = {"shape": shape, "prompts": n, "new_tokens": new_tokens, "rounds": rounds, "load": load}
    write(f"hooks-{shape}", about | found)


def taking_turns(name: str, n: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """The rate of vLLM as it comes, compiled, and as shares of it those of our engine, by way and plan."""
    dtype = "float32" if not torch.cuda.is_available() else "bfloat16"
    source, model = ModelSource(name, dtype=dtype), Endless.load(name, dtype=dtype)
    prompts = ([prompt.instruction for prompt in DATASETS.get("tiny-harmful")("test")] * (n // 64 + 1))[:n]
    start_s, ways = {}, {}
    for way in ("own", "compiled", "eager"):
        started = time.perf_counter()
        if way == "own":
            llm = start_vllm(source, enforce_eager=False)
        else:
            ways[way] = counted(VLLMEngine(source, model, eager=way == "eager"), new_tokens)
        start_s[way] = time.perf_counter() - started
    tokens = [{"prompt_token_ids": ids} for ids in model.tokenize(prompts)]
    params = import_vllm().SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)

    def rate(make: Callable[[], int]) -> float:
        begun = time.perf_counter()
        return make() / (time.perf_counter() - begun)

    def own() -> int:
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(tokens, params, use_tqdm=False))

    todo = {
        name: plan for name, plan in plans(model).items() if name in ("baseline", "ablation", "nullspace", "alterrep")
    }
    shares: dict[str, list[float]] = {f"{way}, {plan}": [] for way in ways for plan in todo}
    rates = []
    for turn in range(rounds + 1):  # the first is to warm up
        for plan_name, plan in todo.items():
            before = rate(own)
            here = {way: rate(partial(generate, plan, prompts)) for way, generate in ways.items()}
            around = (before + rate(own)) / 2
            if turn:
                rates.append(around)
                for way, found in here.items():
                    shares[f"{way}, {plan_name}"].append(found / around)
    return {"start_s": start_s, "own": statistics.median(rates), "shares": shares}


class Endless(ChatModel):
    """A chat model whose answers end at the limit only, so that everybody makes as many tokens."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """None."""
        return frozenset()


def plain_loop(model: ChatModel, new_tokens: int) -> Callable[[Plan, list[str]], int]:
    """Hooks around transformers' `generate`, eight prompts at a time in the order they come."""
    model.model.generation_config.eos_token_id = None

    def generate(plan: Plan, prompts: list[str]) -> int:
        made = 0
        with model.edited(plan), torch.inference_mode():
            for start in range(0, len(prompts), PLAIN_BATCH):
                batch = model.batch(model.tokenize(prompts[start : start + PLAIN_BATCH]))
                out = model.model.generate(
                    batch.ids,
                    attention_mask=batch.mask.long(),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=model.tokenizer.pad_token_id,
                )
                made += (out.shape[1] - batch.ids.shape[1]) * len(batch)
                model.tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
        return made

    return generate


def counted(engine: Engine, new_tokens: int) -> Callable[[Plan, list[str]], int]:
    """The number of tokens that an engine makes."""
    return lambda plan, prompts: sum(one.n_tokens for one in engine.generate(plan, prompts, new_tokens))


def plans(model: ChatModel) -> dict[str, Plan]:
    """The baseline, and every intervention at every layer with a random subspace and a small effect."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(model.d_model, RANK, dtype=torch.float64, generator=generator))[0].mT
    subspace = Subspace(rows.contiguous(), rows[0], 1.0, torch.ones(RANK))
    mean, spread = 0.01 * rows.sum(0) + 0.1 * torch.ones_like(rows[0]), torch.eye(RANK, dtype=torch.float64)
    targets = [
        Target(layer, subspace, mean + 0.01 * rows[0], mean, 0.1, 1, spread, spread) for layer in range(model.n_layers)
    ]
    made = {"baseline": baseline()}
    for name in INTERVENTIONS:
        maker = INTERVENTIONS.create(name)
        strength = None if maker.strengths is None else maker.strengths[0]
        made[name] = Plan(name, maker.edits(targets, strength, Setting()))
    return made


def save_random(shape: str, scratch: str) -> str:
    """A random-weight model of that shape, as a folder that vLLM can load."""
    from selection import random_model

    model = random_model(shape, "cuda" if torch.cuda.is_available() else "cpu")
    model.model.save_pretrained(scratch)
    model.tokenizer.save_pretrained(scratch)
    return scratch


def report(shape: str, engines: dict[str, Any], load: float) -> None:
    """Print the table and write `results/generation-<shape>.json`."""
    n, new_tokens, rounds = SIZES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table("tokens per second", *engines, title=f"{shape}, {device}, {n} prompts × {new_tokens} tokens")
    for name, plain in engines["plain"]["tokens_per_s"].items():
        cells = [
            f"{one['tokens_per_s'][name]:,.0f} ({one['tokens_per_s'][name] / plain:.1f} ×)" for one in engines.values()
        ]
        table.add_row(name, *cells)
    table.add_row("start-up, s", *(f"{one['start_s']:.1f}" for one in engines.values()))
    Console().print(table)
    write(
        f"generation-{shape}",
        {
            "shape": shape,
            "device": device,
            "prompts": n,
            "new_tokens": new_tokens,
            "rounds": rounds,
            "load": load,
            "engines": engines,
        },
    )


if __name__ == "__main__":
    typer.run(main)
