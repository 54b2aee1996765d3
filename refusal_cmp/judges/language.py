"""Is an answer language? The unedited model decides, by how well it foresees the answer.

Its loss, in nats a token, is low on what it would say itself, higher on a fluent text that has nothing to do with the
prompt, and much higher on words without order. Where the line is differs from model to model, so it is drawn by the
model's own answers: each is read after the prompt of another, as a fluent text that is not expected there, and the line
is the `FLUENT` quantile of those losses. What an edit makes the model say may be that unexpected and no more.

How well the line divides is measured beside it. False alarms: fluent texts above the line that all the others draw.
Misses: the same texts with their words shuffled, below it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refusal_cmp.data import Document
from refusal_cmp.model import ChatModel
from refusal_cmp.model.losses import Loss, encode, losses
from refusal_cmp.progress import Progress, silent

FLUENT = 0.99
"""Share of the fluent texts that are language, by the smallest loss that at least that many do not exceed."""


class Error(NamedTuple):
    """How often the line errs, in n texts."""

    wrong: int
    n: int


@dataclass(frozen=True)
class Language:
    """The line between language and none, for one model."""

    threshold: float
    """Nats a token; NaN if there was nothing to draw it from."""
    false_alarms: Error
    misses: Error

    def holds(self, loss: Loss) -> bool:
        """Whether a text of that loss is language; one without a token is not, nor one with a broken loss."""
        return loss.n_tokens > 0 and loss.total / loss.n_tokens <= self.threshold


def learn(
    model: ChatModel, own: Sequence[Document], batch_size: int | None = None, progress: Progress = silent
) -> Language:
    """The line that the unedited model's own answers draw.

    Parameters
    ----------
    own
        Its answers with their prompts. Of equal answers the first counts, read after the prompt that stands half the
        list further on.
    """
    half = len(own) // 2
    first = {document.text: index for index, document in reversed(list(enumerate(own))) if document.text.strip()}
    fluent = [Document(text, own[(index + half) % len(own)].instruction) for text, index in first.items()]
    mixed = [Document(text, one.instruction) for one in fluent if (text := shuffled(one.text)) != one.text]
    read = losses(model, [encode(model, one) for one in (*fluent, *mixed)], batch_size, progress)
    means = [one.total / one.n_tokens for one in read if one.n_tokens]
    of_fluent, of_mixed = means[: len(fluent)], means[len(fluent) :]
    if not of_fluent:
        return Language(math.nan, Error(0, 0), Error(0, 0))
    threshold = quantile(of_fluent)
    others = [quantile(of_fluent[:index] + of_fluent[index + 1 :]) for index in range(len(of_fluent))]
    alarms = sum(one > line for one, line in zip(of_fluent, others, strict=True))
    return Language(
        threshold,
        false_alarms=Error(alarms, len(of_fluent)),
        misses=Error(sum(one <= threshold for one in of_mixed), len(of_mixed)),
    )


def read_answers(
    model: ChatModel, answers: Sequence[Document], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """The model's loss on each answer after its prompt."""
    return losses(model, [encode(model, answer) for answer in answers], batch_size, progress)


def quantile(found: Sequence[float]) -> float:
    """The smallest value that at least `FLUENT` of the values do not exceed."""
    return float(np.quantile(found, FLUENT, method="inverted_cdf")) if len(found) else math.nan


def shuffled(text: str) -> str:
    """The words of a text in another order, always the same one; where no spaces part them, its characters."""
    words = text.split()
    space = " " if len(words) > 1 else ""
    units = words if space else list(text)
    random.Random(0).shuffle(units)
    return space.join(units)
