"""(verb, object) pairs, dealt into disjoint splits.

A pair is seen either in language-model training or in one of the probe sets, never in both, so
that refusing a probe prompt takes more than having seen its pair.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

from .topics import TOPICS, Topic, Verb

PER_TOPIC = {"train": 16, "val": 4, "test": 12}
"""Pairs of each topic in the probe sets (16 topics of each label: 256, 64, 192)."""

ANSWERS_PER_TOPIC = 10
"""Pairs of each harmless topic held out for the reference answers."""


@dataclass(frozen=True)
class Pair:
    """A verb with an object, in a topic."""

    topic: Topic
    verb: Verb
    object: str


def deal_pairs(rng: random.Random) -> dict[str, list[Pair]]:
    """Deal every pair to one of ``train``, ``val``, ``test``, ``answers`` or ``lm`` (the rest).

    Each topic is shuffled on its own, so that every split holds all topics equally often.
    """
    splits: dict[str, list[Pair]] = {name: [] for name in (*PER_TOPIC, "answers", "lm")}
    for topic in TOPICS:
        pairs = [Pair(topic, verb, noun) for verb, noun in product(topic.verbs, topic.objects)]
        rng.shuffle(pairs)
        sizes = PER_TOPIC | {"answers": ANSWERS_PER_TOPIC if topic.label == "harmless" else 0}
        for name, size in sizes.items():
            splits[name] += pairs[:size]
            pairs = pairs[size:]
        splits["lm"] += pairs
    return splits
