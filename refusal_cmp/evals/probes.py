"""What else goes with refusal? Linear probes of other properties of prompts, on activations under every plan.

An edit that removes what refusal reads may remove more. On entry to the last block, at the last token of every prompt,
a logistic regression is to tell a property that has nothing to do with harm:

    topic      the category of the prompt, of the categories that have at least `FEWEST` prompts
    length     more words than the median, or not
    question   a question, or a request in another form

and on sentences of our own, which say the same things well or ill in three languages (`SENTENCES`),

    sentiment  whether a sentence speaks well of something
    language   English, German or Spanish

It does so among harmful, harmless and our own texts by themselves, so that harm tells nothing of it. Prompts are in
`FOLDS` folds, and each is judged by a probe that has not seen it. `read` is the balanced accuracy of probes fitted
under the plan: whether the property can still be read. `kept` is that of probes fitted on the unedited activations and
used under the plan: whether it stands where it stood. Chance is one over the number of values.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from refusal_cmp.config import KINDS
from refusal_cmp.data.conversations import words
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.model import Answer, ChatModel
from refusal_cmp.model.reading import streams_at
from refusal_cmp.statistics import resampled
from refusal_cmp.subspace import Component

FEWEST = 8
"""Prompts that each value of a property needs."""
FOLDS = 4
PROPERTIES = {
    "topic": "the prompts' categories",
    "length": "long prompts from short",
    "question": "questions from others",
    "sentiment": "good sentences from bad",
    "language": "English, German and Spanish sentences",
}
"""Which are told, and what that is to tell."""
SENTENCES = files("refusal_cmp") / "assets" / "texts" / "probes.json"
"""Rows of a language, a sentiment and a sentence; and the name of the set that they are."""
OWN = "probe-sentences"
Array = np.ndarray


@register_evaluator("probes")
class Probes(Evaluator):
    """What else can be read of activations under a plan: topic, length, form, sentiment, language, by linear probes."""

    reads = ("completions", "model")
    measures = tuple(
        Measure(
            f"probe_{name}_{how}",
            f"{name.capitalize()} {heading}",
            f"balanced accuracy of telling {what} from activations {which}",
            interval="bootstrap",
            better="higher",
            shown="never",
            limits=(0.0, 1.0),
        )
        for name, what in PROPERTIES.items()
        for how, heading, which in (
            ("read", "read", "under the plan, by probes fitted under it"),
            ("kept", "kept", "under the plan, by probes fitted on unedited ones"),
        )
    )
    order = 11

    def __init__(self) -> None:
        self._unedited: dict[str, Float[Array, "n d"]] = {}

    def evaluate(self, subject: Subject) -> Evaluation:
        """Both accuracies of every property that has two values with enough prompts; of what by dataset."""
        metrics: list[Metric] = []
        for kind in KINDS:
            answers = subject.answers.get(kind, ())
            metrics += self._of_kind(subject, kind, [one.instruction for one in answers], properties(answers))
        languages, sentiments, sentences = zip(*json.loads(SENTENCES.read_text(encoding="utf-8")), strict=True)
        told = {"sentiment": np.array(sentiments), "language": np.array(languages)}
        return Evaluation([*metrics, *self._of_kind(subject, OWN, sentences, told)])

    def _of_kind(
        self, subject: Subject, kind: str, instructions: Sequence[str], found: Mapping[str, Array]
    ) -> list[Metric]:
        if not found:
            return []
        if kind not in self._unedited:
            self._unedited[kind] = _streams(subject.base(), instructions, subject.batch_size)
        model = subject.model()
        with model.edited(subject.plan):
            edited = _streams(model, instructions, subject.batch_size)
        metrics = []
        for name, values in found.items():
            among = values != ""
            y = values[among]
            for how, fitted in (("read", edited), ("kept", self._unedited[kind])):
                said = foretold(fitted[among], edited[among], y)
                right = np.full(len(y), np.nan) if said is None else (said == y).astype(float)
                metrics.append(Metric(kind, f"probe_{name}_{how}", resampled(_balanced, right, _numbered(y))))
        return metrics

    def close(self) -> None:
        """Forget the unedited activations."""
        self._unedited = {}


def properties(answers: Sequence[Answer]) -> Mapping[str, Array]:
    """The value of each property for each prompt, of properties with two values of enough prompts; '' is none."""
    said = [words(answer.instruction) for answer in answers]
    lengths = np.array([len(text.split()) for text in said])
    topics = np.array([answer.category for answer in answers])
    found = {
        "topic": np.where(
            np.isin(topics, [one for one, count in Counter(topics).items() if count >= FEWEST]), topics, ""
        ),
        "length": np.where(lengths > np.median(lengths), "long", "short") if len(lengths) else topics,
        "question": np.array(["question" if text.rstrip().endswith("?") else "other" for text in said]),
    }
    return {name: values for name, values in found.items() if _is_enough(values)}


def foretold(fitted: Float[Array, "n d"], read: Float[Array, "n d"], y: Array) -> Array | None:
    """What probes fitted on `fitted` say of the prompts of `read`, each by one that was fitted without that prompt.

    None where an activation is not finite.
    """
    if not (np.isfinite(fitted).all() and np.isfinite(read).all()):
        return None
    said = np.empty_like(y)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(fitted, y):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            said[test] = probe.fit(fitted[train], y[train]).predict(read[test])
    return said


def _streams(model: ChatModel, instructions: Sequence[str], batch_size: int | None) -> Float[Array, "n d"]:
    last = Component(-1, model.n_layers - 1)
    read = model.per_prompt(instructions, lambda batch: streams_at(model, batch, [last])[0], batch_size)
    return read[:, 0].numpy()


def _is_enough(values: Array) -> bool:
    counts = [count for value, count in Counter(values.tolist()).items() if value]
    return len(counts) > 1 and min(counts) >= FEWEST


def _numbered(y: Array) -> Float[Array, " n"]:
    return np.unique(y, return_inverse=True)[1].astype(float)


def _balanced(right: Array, value: Array) -> float:
    return float(np.mean([right[value == one].mean() for one in np.unique(value)]))
