"""Benchmarks, run by lm-eval itself on the model with the plan in force (Gao et al., lm-evaluation-harness)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.evals import NON_FINITE, Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator, share
from refusal_cmp.evals._together import Together
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.losses import Loss, Scored, Texts, losses
from refusal_cmp.model.source import clock
from refusal_cmp.plan import Plan
from refusal_cmp.statistics import Estimate, normal_interval, rate

EMBEDDED_TASKS = files("refusal_cmp") / "assets" / "tasks"
FEWSHOT_SEED = 1234
"""lm-eval's own default, so that its command line draws the same shots."""
TEMPLATE = {"apply_chat_template": True, "fewshot_as_multiturn": True}
"""What lm-eval's command line makes of --apply_chat_template: each shot is a turn."""
TASK = re.compile(r"(?P<name>[^@/]+)(@(?P<shots>\d+))?(/(?P<limit>all|[1-9]\d*))?")


class Spec(NamedTuple):
    """A benchmark as it is asked for, `mmlu@5/500`: its name, shots and questions."""

    name: str
    shots: int | None
    """None: the task's own number."""
    limit: int | None
    """Most questions; None: all."""

    @classmethod
    def parse(cls, text: str, limit: int | None = None) -> Spec:
        """Read NAME, NAME@SHOTS, NAME/LIMIT or NAME@SHOTS/LIMIT; `limit` is for one that names none."""
        parts = TASK.fullmatch(text)
        if parts is None:
            raise RefusalCmpError(
                f"The task {text!r} is not understood; write its name, or NAME@SHOTS/LIMIT, as in mmlu@5/500."
            )
        own = {None: limit, "all": None}
        asked = parts["limit"]
        return cls(
            parts["name"],
            None if parts["shots"] is None else int(parts["shots"]),
            own[asked] if asked in own else int(asked),
        )


@register_evaluator("capability")
class Capability(Evaluator):
    """Accuracy on MMLU, ARC, TruthfulQA or any other task of lm-eval."""

    reads = ("model",)
    measures = (
        Measure.share("acc", "Accuracy", "questions answered correctly", better="higher"),
        Measure.share(
            "acc_norm",
            "Accuracy, normalised",
            "questions answered correctly, by likelihoods for the answers' lengths",
            better="higher",
        ),
        NON_FINITE,
    )
    order = 5

    def __init__(
        self,
        tasks: tuple[str, ...],
        benchmark_limit: int | None,
        benchmark_draw: str,
        seed: int,
        task_template: bool = False,
        system: str | None = None,
        test_seed: int | None = None,
    ) -> None:
        self.tasks = [Spec.parse(task, benchmark_limit) for task in tasks]
        self.draw, self.seed = benchmark_draw, seed if test_seed is None else test_seed
        self.template = TEMPLATE | {"system_instruction": system} if task_template else {}
        self._tasks: dict[Spec, Any] = {}
        self._together: Together[list[Loss]] = Together()

    def check(self, test_sets: Sequence[str]) -> None:
        """The tasks are known to lm-eval; their data are looked for later."""
        for spec in self.tasks:
            _find_task(spec)

    def prepare(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:
        """See which plans will be measured in the same passes."""
        self._together.expect(subjects, known)

    def evaluate(self, subject: Subject) -> Evaluation:
        """Every metric that a task reports, under the task's name."""
        from lm_eval.evaluator import evaluate

        model = subject.model()

        def measure(documents: list[Scored]) -> list[Loss]:
            return self._losses(subject, documents)

        lm = _strict_lm(model, subject.batch_size, subject.plan, measure)
        asked = {"system_instruction": subject.plan.system} if self.template and subject.plan.system else {}
        metrics: list[Metric] = []
        for spec in self.tasks:
            if spec not in self._tasks:
                self._tasks[spec] = load_task(spec)
            loaded = self._tasks[spec]
            for leaf in loaded["tasks"].values():
                leaf.set_fewshot_seed(FEWSHOT_SEED)
            try:
                found = evaluate(
                    lm,
                    loaded,
                    samples=self._questions(spec, loaded["tasks"]),
                    bootstrap_iters=1000,
                    **self.template | asked,
                )
            except (OSError, ValueError, ConnectionError) as error:
                raise RefusalCmpError(f"lm-eval could not run the task {spec.name!r}: {_first_line(error)}.") from error
            metrics += _metrics(spec.name, found)
        return Evaluation(metrics)

    def close(self) -> None:
        """Forget what was measured."""
        self._together.forget()

    def _losses(self, subject: Subject, documents: list[Scored]) -> list[Loss]:
        """Of what lm-eval asks about: the same for all plans of a model that are asked alike."""
        model, some_tokens = subject.model(), subject.plan.tokens != "all"

        def measure(plans: Sequence[Plan], done: MutableMapping[str, Any]) -> list[list[Loss]]:
            texts = Texts(model, documents, subject.batch_size, some_tokens=some_tokens)
            return texts.under(plans, done=done, progress=subject.progress)

        return self._together.of(subject.plan, tuple((tuple(one.ids), one.n) for one in documents), measure)

    def _questions(self, spec: Spec, leaves: Mapping[str, Any]) -> dict[str, list[int]] | None:
        """The questions of each task of a group that are asked; None: all."""
        if spec.limit is None:
            return None
        sizes = {name: len(leaves[name].eval_docs) for name in sorted(leaves)}
        return first(sizes, spec.limit) if self.draw == "first" else drawn(sizes, spec.limit, self.seed)


def load_task(spec: Spec) -> Any:
    """lm-eval's task or group of tasks, with the shots that are asked for.

    Raises
    ------
    RefusalCmpError
        If there is no such task, or its data cannot be had.
    """
    manager = _find_task(spec)
    try:
        loaded = manager.load([spec.name])
    except Exception as error:  # datasets raises many kinds for what cannot be downloaded
        raise RefusalCmpError(
            f"The data of the task {spec.name!r} cannot be had ({_first_line(error)}); check the connection and that "
            "the set is not gated, or choose other tasks.",
            tasks="",
        ) from error
    for leaf in loaded["tasks"].values():
        if spec.shots is not None and leaf.get_config("num_fewshot") != 0:  # 0 is fixed: TruthfulQA has its own
            leaf.set_config(key="num_fewshot", value=spec.shots)
    return loaded


def _find_task(spec: Spec) -> Any:
    """lm-eval's manager that knows the task."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if os.path.isfile(f"{EMBEDDED_TASKS}/{spec.name}.yaml"):
        manager = TaskManager(include_path=str(EMBEDDED_TASKS), include_defaults=False)
    else:
        manager = _all_tasks()
    if spec.name not in manager.all_tasks:
        error = unknown_name("task of lm-eval", spec.name, manager.all_tasks)
        raise RefusalCmpError(f"{error} `lm-eval ls tasks` lists them.")
    return manager


@cache
def _all_tasks() -> Any:
    """lm-eval's manager of everything it knows: seconds to set up."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(EMBEDDED_TASKS))


def first(sizes: Mapping[str, int], limit: int) -> dict[str, list[int]]:
    """The first questions of each task of a group, `limit` in all in equal shares and at least one each."""
    shares = [max(1, limit // len(sizes) + (i < limit % len(sizes))) for i in range(len(sizes))]
    return {name: list(range(min(share, size))) for (name, size), share in zip(sizes.items(), shares, strict=True)}


def drawn(sizes: Mapping[str, int], limit: int, seed: int) -> dict[str, list[int]]:
    """`limit` questions drawn over all tasks of a group together, and the first of a task that gets none.

    Of one task they are those of `datasets.Dataset.shuffle(seed).select(range(limit))`, as published.
    """
    questions = [(name, index) for name, size in sizes.items() for index in range(size)]
    asked: dict[str, list[int]] = {name: [] for name in sizes}
    for at in np.random.default_rng(seed).permutation(len(questions))[:limit]:
        name, index = questions[at]
        asked[name].append(index)
    return {name: sorted(indices) or [0] for name, indices in asked.items()}


def _metrics(task: str, found: Any) -> list[Metric]:
    """Every metric of a task, and each question's value; a question has a sample for each filter of the task."""
    groups = found.get("groups") or {}
    results = groups.get(task) or found["results"][task]
    samples = [(name, sample) for name in sorted(found["samples"]) for sample in found["samples"][name]]
    broken: dict[tuple[str, int], bool] = {}
    for leaf, sample in samples:
        question = leaf, sample["doc_id"]
        broken[question] = broken.get(question, False) or _is_broken(sample["filtered_resps"])
    metrics = []
    for key, value in results.items():
        name, _, filtered = key.partition(",")
        if not isinstance(value, int | float) or name.endswith("_stderr") or not filtered:
            continue
        error = results.get(f"{name}_stderr,{filtered}")
        found_values = [one[name] for _, one in samples if one.get("filter", filtered) == filtered and name in one]
        plain = all(isinstance(one, int | float) for one in found_values)
        values = [float(one) for one in found_values] if found_values and plain else None
        estimate = _estimate(float(value), float(error) if _is_number(error) else math.nan, len(broken), values)
        label = name if filtered == "none" else f"{name},{filtered}"
        metrics.append(Metric(task, label, estimate, values))
    metrics.append(share(task, "non_finite", list(broken.values())))
    return metrics


def _estimate(value: float, error: float, n: int, values: Sequence[float] | None) -> Estimate:
    """Wilson's interval if the value is a share of questions, else normal, clipped to 0 to 1 if all questions are."""
    if values is None:
        return normal_interval(value, error, n)
    if set(values) <= {0, 1} and math.isclose(value, fmean(values), abs_tol=1e-9):
        return rate(int(sum(values)), len(values))._replace(value=value)
    normal = normal_interval(value, error, len(values))
    if not all(0 <= one <= 1 for one in values):
        return normal
    low, high = np.clip([normal.low, normal.high], 0, 1)
    return normal._replace(low=float(low), high=float(high))


def _is_broken(responses: Sequence[Any]) -> bool:
    """Whether a log-likelihood among the responses is not finite."""
    flat = [part for one in responses for part in (one if isinstance(one, list | tuple) else [one])]
    return any(isinstance(part, float) and not math.isfinite(part) for part in flat)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def _strict_lm(
    model: ChatModel,
    batch_size: int | None,
    plan: Plan | None = None,
    measure: Callable[[list[Scored]], list[Loss]] | None = None,
) -> Any:
    """lm-eval's transformers model around ours, for which a prompt that does not fit is an error.

    Parameters
    ----------
    plan
        That completions are made under, beside the edits in force.
    measure
        The losses of documents under that plan; by default they are measured under the edits in force.
    """
    from lm_eval.models.huggingface import HFLM

    rows = RowBudget(model.device, batch_size)

    class StrictLM(HFLM):
        """Never truncates, draws no bars of its own, and holds the logits of no more tokens than are scored."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            longest = max(len(self.tok_encode(request.args[0])) for request in requests)
            new = max(request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests)
            self.batch_size_per_gpu = rows.within(model.row_bytes(longest, cached=longest + new))
            with nullcontext() if plan is None else model.edited(plan):
                return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> Any:
            documents = [Scored([*context, *continuation], len(continuation)) for _, context, continuation in requests]
            for document in documents:
                _check_length(len(document.ids) - 1, self.max_length)
            found = losses(model, documents, batch_size) if measure is None else measure(documents)
            return [(-loss.total, loss.is_greedy) for loss in found]

        def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> Any:
            longest = max(len(self.tok_encode(text)) for text in strings)
            _check_length(longest, kwargs.get("left_truncate_len") or self.max_length)
            return super().tok_batch_encode(strings, *args, **kwargs)

    return StrictLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        max_length=model.context,
        chat_template_args=clock(model.date),
    )


def _check_length(n_tokens: int, limit: int) -> None:
    if n_tokens > limit:
        raise RefusalCmpError(
            f"A benchmark prompt has {n_tokens} tokens and the model takes {limit}; ask for fewer shots, or for other "
            "tasks.",
            tasks="NAME@SHOTS",
        )
