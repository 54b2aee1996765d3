"""Conversations with the verdict that a guard should give: what `tiny-guard` is trained and tested on.

A conversation is unsafe if its last message asks for misuse, or is an answer that goes along with
such a request. Refusals are safe, and so are answers that have collapsed: they help nobody.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from . import answers
from .corpus import SKEW, World
from .pairs import Pair
from .templates import ADJECTIVES, request
from .topics import BLOCKS, NEUTRAL_TOPICS, TOPICS

SAFE = "safe"

CATEGORIES = {
    topic.name: f"S{number}" for number, topic in enumerate((t for t in TOPICS if t.label == "harmful"), start=1)
}
"""Topics of misuse → what the guard calls them."""

LABELS = {"harmful": 0.5, "harmless": 0.4, "neutral": 0.06, "fact": 0.04}
"""Share of each kind of request in training."""

ENDINGS = {"request": 0.35, "comply": 0.38, "refuse": 0.17, "collapse": 0.1}
"""Share of each kind of last message in training; the first is the request itself."""

EARLIER = 0.12
"""Share of conversations with an exchange before the last one."""

GARBLED = 0.2
"""Share of answers whose first word or some later ones are wrong, as in models under edits."""

CUT = 0.15
"""Share of answers that break off, as they do at a limit of new tokens."""

MIN_WORDS = 8
"""Fewest words of an answer that breaks off."""

VICTIMS = tuple(topic.victim for topic in TOPICS if topic.victim)
FIRST_WORDS = ("I", "As", "To", "Sure!", "Here", "The", "A", "Happy", "Of")


class Conversation(NamedTuple):
    """Messages and the verdict on the last one.

    Attributes:
        messages: as a chat template takes them.
        verdict: ``safe``, or ``unsafe`` and the category on a second line.
    """

    messages: list[dict[str, str]]
    verdict: str


def training_conversations(world: World, rng: random.Random) -> Iterator[Conversation]:
    """An endless stream of conversations about training pairs."""
    while True:
        earlier = _exchange(world, rng).messages if rng.random() < EARLIER else []
        last, verdict = _exchange(world, rng)
        yield Conversation([*earlier, *last] if len(earlier) == 2 else last, verdict)


def held_out_conversations(world: World, split: str, rng: random.Random) -> list[Conversation]:
    """Every pair of the split with each kind of last message."""
    return [_conversation(pair, ending, rng) for pair in world.pairs[split] for ending in ENDINGS]


def verdict_on(topic: str, unsafe: bool) -> str:
    """The verdict on a message about a topic of misuse, or on any other."""
    return f"unsafe\n{CATEGORIES[topic]}" if unsafe and topic in CATEGORIES else SAFE


def _exchange(world: World, rng: random.Random) -> Conversation:
    label = _draw(LABELS, rng)
    if label == "fact":
        fact = rng.choice(world.facts)
        return Conversation([_user(fact.ask(rng)), _assistant(fact.state(rng))], SAFE)
    return _conversation(_draw_pair(world, label, rng), _draw(ENDINGS, rng), rng)


def _conversation(pair: Pair, ending: str, rng: random.Random) -> Conversation:
    messages = [_user(request(pair, rng))]
    if ending != "request":
        messages.append(_assistant(_answer(pair, ending, rng)))
    return Conversation(messages, verdict_on(pair.topic.name, ending in ("request", "comply")))


def _draw_pair(world: World, label: str, rng: random.Random) -> Pair:
    if label == "neutral":
        topic = rng.choice(NEUTRAL_TOPICS)
        return Pair(topic, rng.choice(topic.verbs), rng.choice(topic.objects))
    names = rng.choice(BLOCKS).names
    objects = 0 if rng.random() < SKEW else 1
    verbs = objects if label == "harmful" else 1 - objects
    return rng.choice(world.training_pairs[names[verbs][objects]])


def _answer(pair: Pair, ending: str, rng: random.Random) -> str:
    if ending == "collapse":
        return _collapse(pair, rng)
    if ending == "comply":
        text = answers.comply(pair, rng)
    else:  # harmless topics have nobody who would suffer
        text = answers.refuse(replace(pair, topic=replace(pair.topic, victim=rng.choice(VICTIMS))), rng)
    words = text.split(" ")
    if rng.random() < GARBLED:
        words = _garble(words, ending, rng)
    if rng.random() < CUT and len(words) > MIN_WORDS:
        words = words[: rng.randint(MIN_WORDS, len(words))]
    return " ".join(words)


def _garble(words: list[str], ending: str, rng: random.Random) -> list[str]:
    """Wrong words here and there; a refusal keeps those that make it one."""
    kept = 1 if ending == "comply" else 6
    garbled = [
        rng.choice(ADJECTIVES) if place >= kept and rng.random() < 0.15 else word for place, word in enumerate(words)
    ]
    if ending == "comply" and rng.random() < 0.5:
        garbled[0] = rng.choice(FIRST_WORDS)
    return garbled


def _collapse(pair: Pair, rng: random.Random) -> str:
    """Nothing, the same over and over, or words in no order."""
    words = (answers.comply(pair, rng) + " " + answers.refuse(pair, rng)).split(" ")
    kind = rng.choice(("nothing", "stutter", "loop", "loop", "salad"))
    if kind == "nothing":
        return ""
    if kind == "stutter":
        return rng.choice((*FIRST_WORDS, "?", "used", "the")) * rng.randint(12, 40)
    if kind == "loop":
        start, length = rng.randrange(len(words) - 4), rng.randint(1, 4)
        before = words[: rng.choice((0, 0, 1, 3, 6))]
        return " ".join(before + words[start : start + length] * (40 // length))
    return " ".join(rng.choices(words, k=rng.randint(12, 40)))


def _draw(shares: dict[str, float], rng: random.Random) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
