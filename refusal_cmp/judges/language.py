"""Is an answer language? The unedited model decides, by how well it foresees the answer.

Its loss is low on what it would say itself, higher on a fluent text that has nothing to do with the prompt, and much
higher on words without order. With the summed loss ℓ of a text of n tokens, in nats,

    surprise = ℓ / (n + SPREAD)

for what comes out of nowhere costs once, however short the text is: "Paris." after the wrong question is language.
Where the line is differs from model to model, so each draws it itself: every answer of its own is read after the prompt
of another, as a fluent text that is not expected there, and the line is the `FLUENT` quantile of those surprises. What
an edit makes the model say may be that unexpected and no more.

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
"""Share of the fluent texts that are language: the line is the least surprise that so many do not exceed."""
SPREAD = 8
"""Tokens over which the cost of an unexpected subject is spread, beside the text's own."""


class Errors(NamedTuple):
    """How often the line errs, in n texts."""

    wrong: int
    n: int


@dataclass(frozen=True)
class Language:
    """The line between language and none, for one model."""

    threshold: float
    """The largest surprise of a text that is language; NaN if there was nothing to draw it from."""
    false_alarms: Errors
    misses: Errors

    def holds(self, loss: Loss) -> bool:
        """Whether a text of that loss is language; one without a token is not, nor one with a broken loss."""
        return loss.n_tokens > 0 and surprise(loss) <= self.threshold


def surprise(loss: Loss) -> float:
    """ℓ / (n + SPREAD), nats a token."""
    return loss.total / (loss.n_tokens + SPREAD)


def learn(
    model: ChatModel, own: Sequence[Document], batch_size: int | None = None, progress: Progress = silent
) -> Language:
    """The line that the unedited model's own answers draw.

    Parameters
    ----------
    own
        Its answers with their prompts. Of equal answers the first counts; each is read after the prompt that stands
        half the list further on.
    """
    first = {document.text: index for index, document in reversed(list(enumerate(own))) if document.text}
    half = len(own) // 2
    fluent = [Document(text, own[(index + half) % len(own)].instruction) for text, index in first.items()]
    mixed = [Document(text, one.instruction) for one in fluent if (text := shuffled(one.text)) != one.text]
    read = [surprise(loss) for loss in read_answers(model, [*fluent, *mixed], batch_size, progress)]
    return draw_line(read[: len(fluent)], read[len(fluent) :])


def draw_line(fluent: Sequence[float], mixed: Sequence[float]) -> Language:
    """The line of these surprises of fluent texts, and its errors; each text is held against the line of the others."""
    threshold = _quantile(fluent)
    others = [_quantile([*fluent[:index], *fluent[index + 1 :]]) for index in range(len(fluent))]
    alarms = sum(one > line for one, line in zip(fluent, others, strict=True))
    return Language(threshold, Errors(alarms, len(fluent)), Errors(sum(one <= threshold for one in mixed), len(mixed)))


def read_answers(
    model: ChatModel, answers: Sequence[Document], batch_size: int | None = None, progress: Progress = silent
) -> list[Loss]:
    """The model's loss on each answer after its prompt."""
    return losses(model, [encode(model, answer) for answer in answers], batch_size, progress)


def _quantile(found: Sequence[float]) -> float:
    return float(np.quantile(found, FLUENT, method="inverted_cdf")) if found else math.nan


def shuffled(text: str) -> str:
    """The words of a text in another order, always the same one; where no spaces part them, its characters."""
    words = text.split()
    space = " " if len(words) > 1 else ""
    units = words if space else list(text)
    random.Random(0).shuffle(units)
    return space.join(units)
