"""Losses, KL and benchmark questions of many plans: one plan after the other in whole passes, and all together.

Together means what an evaluator does: plans share passes, which begin on entry to the first block that they edit. The
two take turns in one process, so that what else the machine does falls on both, and the median of the rounds counts.

    python benchmarks/evaluation.py                 # the demo's plans on tiny-refuser
    python benchmarks/evaluation.py --shape 135m    # plans of layers 5, 15 and 25 alone, on smol-refuser
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import typer
from _measure import in_own_process, seconds, write
from rich.console import Console
from rich.table import Table

from refusal_cmp.api import extract
from refusal_cmp.data import DATASETS, TEXTS
from refusal_cmp.evals.capability import Spec, _strict_lm, load_task
from refusal_cmp.evals.kl import divergences
from refusal_cmp.grid import grid_cells
from refusal_cmp.model import ChatModel
from refusal_cmp.model.losses import Loss, Scored, Texts, encode
from refusal_cmp.plan import Plan, baseline
from refusal_cmp.planning import Chosen, Scope
from refusal_cmp.subspace import Component

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model": "tiny-refuser", "methods": ("diff-in-means", "inlp"), "layers": (6,),
             "interventions": ("ablation", "nullspace", "actadd", "reflection", "alterrep", "clamp"),
             "scopes": ("single", "all"), "tokens": 1200, "prompts": 48, "task": "world_cloze", "questions": 16,
             "rounds": 3},
    "135m": {"model": "smol-refuser", "methods": ("diff-in-means",), "layers": (5, 15, 25),
             "interventions": ("ablation", "actadd"), "scopes": ("single",), "tokens": 400, "prompts": 24,
             "task": "everyday_questions", "questions": 8, "rounds": 2},
}  # fmt: skip
TEXT = {"tiny": "tiny-answers", "135m": "everyday-answers"}
PROMPTS = {"tiny": "tiny", "135m": "everyday"}


def main(shape: Annotated[list[str] | None, typer.Option(help="tiny or 135m")] = None) -> None:
    """Time both on every kind of work; print and write it."""
    for name in shape or ("tiny",):
        load = os.getloadavg()[0]
        found = in_own_process(taking_turns, name)
        table = Table("work", "alone, s", "together, s", "faster by", title=f"{name}, {found['plans']} plans")
        for work, (alone, together) in found["seconds"].items():
            times = statistics.median(alone), statistics.median(together)
            table.add_row(work, *(f"{one:.2f}" for one in times), f"{times[0] / times[1]:.2f} ×")
        Console().print(table)
        Console().print("furthest apart, relatively:", found["off"])
        write(f"evaluation-{name}", {"shape": SHAPES[name], "load": load, **found})


def taking_turns(shape: str) -> dict[str, Any]:
    """Seconds of each round of both ways, and how far their results are apart, by the work."""
    about = SHAPES[shape]
    model = ChatModel.load(about["model"])
    plans = [baseline(), *make_plans(model, shape)]
    ways = {
        f"losses, {about['tokens']} tokens": of_losses(model, texts(model, shape)),
        f"KL, {about['prompts']} prompts": of_kl(model, prompts(shape, "harmless", "test", about["prompts"])),
        f"{about['questions']} questions": of_losses(model, questions(model, about["task"], about["questions"])),
    }
    times: dict[str, tuple[list[float], list[float]]] = {work: ([], []) for work in ways}
    off = {}
    for turn in range(about["rounds"] + 1):  # the first is to warm up
        for work, (alone, together) in ways.items():
            results: list[torch.Tensor] = []
            taken = [
                seconds(lambda: results.append(torch.tensor(alone(plans)))),  # noqa: B023
                seconds(lambda: results.append(torch.tensor(together(plans)))),  # noqa: B023
            ]
            one, other = results
            off[work] = float(((one - other).norm(dim=1) / one.norm(dim=1).clamp(min=1e-3)).max())
            if turn:
                for to, second in zip(times[work], taken, strict=True):
                    to.append(second)
    starts = [min((place.layer for place in plan.edits), default=None) for plan in plans]
    return {"plans": len(plans), "starts": starts, "seconds": times, "off": off}


Way = Callable[[Sequence[Plan]], list[list[float]]]


def of_losses(model: ChatModel, documents: list[Scored]) -> tuple[Way, Way]:
    """Losses of documents, in both ways."""

    def totals(found: list[list[Loss]]) -> list[list[float]]:
        return [[one.total for one in of_plan] for of_plan in found]

    def alone(plans: Sequence[Plan]) -> list[list[float]]:
        found = []
        for plan in plans:
            with model.edited(plan):
                found.append(Texts(model, documents).now())
        return totals(found)

    return alone, lambda plans: totals(Texts(model, documents).under(plans))


def of_kl(model: ChatModel, instructions: list[str]) -> tuple[Way, Way]:
    """KL to the unedited model, in both ways."""
    unedited = model.per_prompt(instructions, model.last_logits, None).double().log_softmax(-1)

    def alone(plans: Sequence[Plan]) -> list[list[float]]:
        found = []
        for plan in plans:
            with model.edited(plan):
                edited = model.per_prompt(instructions, model.last_logits, None).double().log_softmax(-1)
            found.append((unedited.exp() * (unedited - edited)).sum(-1).tolist())
        return found

    logits = model.per_prompt(instructions, model.last_logits, None)
    return alone, lambda plans: divergences(model, instructions, logits, plans, None)


def make_plans(model: ChatModel, shape: str) -> list[Plan]:
    """Every method with every intervention at every layer and scope, of one strength each."""
    about = SHAPES[shape]
    split = [prompts(shape, kind, "train", 64) for kind in ("harmful", "harmless")]
    cells = []
    for method in about["methods"]:
        field = extract(model, *split, method)
        chosen = [Chosen(field, Component(-1, layer), tuple(field)) for layer in about["layers"]]
        scopes = [Scope(scope) for scope in about["scopes"]]
        for one in chosen:
            cells += grid_cells([one], list(about["interventions"]), scopes, strengths={})
    return [cell.plan() for cell in cells]


def prompts(shape: str, kind: str, split: str, n: int) -> list[str]:
    """The first instructions of a set."""
    return [prompt.instruction for prompt in DATASETS.get(f"{PROMPTS[shape]}-{kind}")(split)[:n]]


def texts(model: ChatModel, shape: str) -> list[Scored]:
    """The first answers, of so many tokens."""
    found: list[Scored] = []
    for document in TEXTS.get(TEXT[shape])():
        found.append(encode(model, document))
        if sum(one.n for one in found) >= SHAPES[shape]["tokens"]:
            break
    return found


def questions(model: ChatModel, task: str, n: int) -> list[Scored]:
    """What lm-eval asks for the likelihoods of, of the first questions."""
    from lm_eval.evaluator import evaluate

    asked: list[Scored] = []

    def note(documents: list[Scored]) -> list[Loss]:
        asked.extend(documents)
        return [Loss(0.0, one.n) for one in documents]

    loaded = load_task(Spec.parse(task))
    evaluate(_strict_lm(model, None, measure=note), loaded, limit=n, bootstrap_iters=0)
    return asked


if __name__ == "__main__":
    typer.run(main)
