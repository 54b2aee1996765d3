"""Five-shot benchmarks: lm-eval's own HFLM on the model as transformers gives it, and ours.

Ours reads what questions begin with alike once, where HFLM reads every option of every question from its first token.
HFLM is given its best batch size of three. Ways take turns in one process, and the median of the rounds counts.

    python benchmarks/shots.py                    # tiny-refuser and smol-refuser, which `refusal-cmp fetch` gets
"""

from __future__ import annotations

import os
import statistics
from typing import Annotated, Any

import torch
import typer
from _measure import in_own_process, seconds, write
from rich.console import Console
from rich.table import Table
from torch import nn

from refusal_cmp.evals.capability import FEWSHOT_SEED, Spec, _strict_lm, load_task
from refusal_cmp.model import ChatModel
from refusal_cmp.model.linear import FAST

TASKS = {"tiny-refuser": ("world_cloze@5/48",), "smol-refuser": ("everyday_questions@5/48", "everyday_letters@5/48")}
SIZES = (1, 8, 32)
"""Requests of a batch of HFLM's; 1 is its default."""
ROUNDS = 2


def main(model: Annotated[list[str] | None, typer.Option(help="tiny-refuser or smol-refuser")] = None) -> None:
    """Time both on every task; print and write it."""
    load = os.getloadavg()[0]
    found = [in_own_process(taking_turns, name, task) for name in model or TASKS for task in TASKS[name]]
    table = Table("model", "task", "HFLM, s", "ours, s", "faster by", "furthest apart, nats")
    for one in found:
        theirs, ours = best(one["theirs"]), statistics.median(one["ours"])
        row = f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f} ×", f"{one['off']:.1e}"
        table.add_row(one["model"], one["task"], *row)
    Console().print(table)
    write("shots", {"load": load, "rows": found})


def best(theirs: dict[str, list[float]]) -> float:
    """HFLM's seconds at the batch size that is fastest."""
    return min(map(statistics.median, theirs.values()))


def taking_turns(name: str, task: str) -> dict[str, Any]:
    """Seconds of each round of both, and how far their log-likelihoods are apart, nats."""
    from lm_eval.models.huggingface import HFLM

    ours, plain = (ChatModel.load(name, device="cpu", dtype="float32") for _ in range(2))
    as_it_comes(plain.model)
    spec = Spec.parse(task)
    theirs = {
        str(size): HFLM(pretrained=plain.model, tokenizer=plain.tokenizer, batch_size=size, max_length=plain.context)
        for size in SIZES
    }
    times: dict[str, list[float]] = {size: [] for size in theirs}
    own: list[float] = []
    off = 0.0
    for turn in range(ROUNDS + 1):  # the first is to warm up
        results: list[torch.Tensor] = []
        took = {size: seconds(lambda: results.append(likelihoods(lm, spec))) for size, lm in theirs.items()}  # noqa: B023
        taken = seconds(lambda: results.append(likelihoods(_strict_lm(ours, None), spec)))  # noqa: B023
        off = max(off, *(float((one - results[-1]).abs().max()) for one in results[:-1]))
        if turn:
            own.append(taken)
            for size, second in took.items():
                times[size].append(second)
    return {"model": name, "task": task, "questions": spec.limit, "theirs": times, "ours": own, "off": off}


def as_it_comes(model: nn.Module) -> None:
    """Undo what is ours about a model's matrix products."""
    ours = {fast: plain for plain, fast in FAST.items()}
    for module in model.modules():
        if type(module) in ours:
            module.__class__ = ours[type(module)]


def likelihoods(lm: Any, spec: Spec) -> torch.Tensor:
    """The log-likelihood of every option of the first questions, as lm-eval asks for them."""
    from lm_eval.evaluator import evaluate

    loaded = load_task(spec)
    for leaf in loaded["tasks"].values():
        leaf.set_fewshot_seed(FEWSHOT_SEED)
    found = evaluate(lm, loaded, limit=spec.limit, bootstrap_iters=0)
    samples = [sample for of_task in found["samples"].values() for sample in of_task]
    return torch.tensor([float(answer[0]) for sample in samples for answer in sample["filtered_resps"]])


if __name__ == "__main__":
    typer.run(main)
