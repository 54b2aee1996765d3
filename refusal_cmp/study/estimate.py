"""What is left of a study, in time and disk, from what its finished cells took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from refusal_cmp.study.executors import Task
from refusal_cmp.study.receipts import Receipt
from refusal_cmp.study.spec import Study


@dataclass(frozen=True)
class Estimate:
    """An extrapolation: no cell that is left has been measured."""

    seconds: float | None
    """With as many cells at a time as there may be; None if there is no finished cell to go by."""
    bytes: float | None
    measured: int
    """Finished cells that it is from."""
    guessed: int
    """Cells that are left whose model has no finished cell; they are taken to be like the others."""


def estimate(study: Study, receipts: Mapping[str, Receipt], left: Sequence[str], at_a_time: float) -> Estimate:
    """What the cells that are left take: each as the mean of finished cells of its model, or of all."""
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    for label, receipt in receipts.items():
        if receipt.state == "done" and label in study.by_label:
            model = model_of(study, label)
            seconds.setdefault(model, []).append(sum(receipt.seconds.values()))
            sizes.setdefault(model, []).append(receipt.bytes)
    if not seconds:
        return Estimate(None, None, 0, len(left))
    means = {model: (fmean(of_model), fmean(sizes[model])) for model, of_model in seconds.items()}
    of_all = fmean(one[0] for one in means.values()), fmean(one[1] for one in means.values())
    each = [means.get(model_of(study, label), of_all) for label in left]
    guessed = sum(model_of(study, label) not in means for label in left)
    longest = max((one[0] for one in each), default=0.0)
    total = max(sum(one[0] for one in each) / max(at_a_time, 1), longest)
    return Estimate(total, sum(one[1] for one in each), sum(map(len, seconds.values())), guessed)


def model_of(study: Study, label: str) -> str:
    """The model of a cell, as its settings name it."""
    return str(study.by_label[label].settings.get("model", ""))


def at_a_time(tasks: Sequence[Task], cpus: int, gpus: int) -> float:
    """How many of these tasks a machine runs beside each other, of the first's kind."""
    if not tasks:
        return 1
    first = tasks[0]
    by_gpus = gpus // first.gpus if first.gpus else len(tasks)
    return max(1, min(by_gpus, cpus // first.cpus, len(tasks)))
