"""How far single words give the label of a request away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Balance:
    """What words alone can do.

    Attributes:
        accuracy: of a logistic classifier over word counts, fitted on `train`, on `test`.
        word, precision, recall: the single word with the largest F1 for harmful requests, on both.
    """

    accuracy: float
    word: str
    precision: float
    recall: float


def word_balance(train: tuple[Sequence[str], Sequence[str]], test: tuple[Sequence[str], Sequence[str]]) -> Balance:
    """Measure it on (harmful, harmless) prompts."""
    vectorizer = CountVectorizer(token_pattern=r"[a-z'-]+").fit([*train[0], *train[1]])
    x_train, y_train = _design(vectorizer, train)
    x_test, y_test = _design(vectorizer, test)
    accuracy = LogisticRegression(max_iter=2000).fit(x_train, y_train).score(x_test, y_test)

    present = np.vstack([x_train, x_test]) > 0
    label = np.concatenate([y_train, y_test]).astype(bool)
    hits = (present & label[:, None]).sum(axis=0)
    f1 = 2 * hits / (present.sum(axis=0) + label.sum())
    best = int(f1.argmax())
    return Balance(
        accuracy=float(accuracy),
        word=str(vectorizer.get_feature_names_out()[best]),
        precision=float(hits[best] / present[:, best].sum()),
        recall=float(hits[best] / label.sum()),
    )


def _design(vectorizer: CountVectorizer, prompts: tuple[Sequence[str], Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    harmful, harmless = prompts
    x = vectorizer.transform([*harmful, *harmless]).toarray()
    return x, np.repeat([1, 0], [len(harmful), len(harmless)])
