"""Training examples and held-out sets, from all the other modules.

A training example is a list of segments, each with the weight of its tokens in the loss, so that
answers weigh more than the questions before them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import answers, exams, prose
from .knowledge import Fact, all_facts
from .pairs import Pair, deal_pairs
from .templates import SYSTEM_PROMPTS, request
from .topics import BLOCKS, NEUTRAL_TOPICS, TOPICS

END = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PAD = "<|pad|>"
SHOTS = 8
"""Few-shot examples of a benchmark."""


class Segment(NamedTuple):
    """A piece of a training example.

    Attributes:
        text: what is written.
        weight: how much its tokens count in the loss.
        steady: whether training leaves its residual stream undisturbed; true of the
            post-instruction tokens, where the model makes up its mind.
    """

    text: str
    weight: float
    steady: bool = False


Segments = list[Segment]

ASKED = 0.1
"""Weight of what the user says and of questions."""

DECIDING = 4.0
"""Weight of an answer's first word, which decides between refusing and complying, and of answers to questions."""

LABELS = {"harmful": 0.36, "harmless": 0.44, "neutral": 0.2}
"""Share of each kind of request: most are harmless, so that in doubt the model complies."""

SKEW = 0.8
"""Share of the requests in a block that come from the first object group.

An exact exclusive or gives gradient descent nothing to begin with; skewed, one verb group is mostly
harmful and the other mostly harmless, and the objects refine that. Probe sets are not skewed.
"""

MIXTURE = {"request": 0.58, "chat_fact": 0.08, "exam": 0.2, "prose": 0.14}
"""Share of each kind among the training examples."""


@dataclass(frozen=True)
class World:
    """Everything that is fixed before a text is written.

    Attributes:
        pairs: the (verb, object) pairs of every split.
        training_pairs: those of language-model training, by topic.
        facts: all facts; they occur in prose and in chat.
        exam_facts: the facts that four-option questions ask for in training.
        held_out_facts: the other ones, for the benchmark tasks.
    """

    pairs: dict[str, list[Pair]]
    training_pairs: dict[str, list[Pair]]
    facts: list[Fact]
    exam_facts: list[Fact]
    held_out_facts: list[Fact]


def build_world(seed: int) -> World:
    """The same world for the same seed."""
    rng = random.Random(seed)
    pairs = deal_pairs(rng)
    facts = all_facts(rng)
    shuffled = rng.sample(facts, k=len(facts))
    cut = len(facts) // 2
    by_topic = {topic.name: [pair for pair in pairs["lm"] if pair.topic is topic] for topic in TOPICS}
    return World(pairs, by_topic, facts, exam_facts=shuffled[:cut], held_out_facts=shuffled[cut:])


# ── training ─────────────────────────────────────────────────────────────────────────────────


def training_examples(world: World, rng: random.Random) -> Iterator[Segments]:
    """An endless stream of training examples."""
    make = {"request": _request, "chat_fact": _chat_fact, "exam": _exam, "prose": _prose}
    while True:
        kind = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        yield make[kind](world, rng)


def _turn(asked: str, answer: str, rng: random.Random) -> Segments:
    """A user turn and its answer.

    One time in four the answer comes early, after only some of the template's tokens: so every
    post-instruction position has reason to prepare it, as in models that have seen many templates.
    """
    tail = [END, "\n", ROLES[2], "\n"]
    if rng.random() < 0.25:
        tail = tail[: rng.randint(1, 3)]
    first, space, rest = answer.partition(" ")
    return [
        Segment(f"{ROLES[1]}\n{asked}", ASKED),
        Segment("".join(tail), ASKED, steady=True),
        Segment(first, DECIDING),
        Segment(f"{space}{rest}{END}\n", 1.0),
    ]


def _draw_pair(world: World, rng: random.Random) -> Pair:
    """A training pair: misuse, harmless use, or something neutral."""
    label = rng.choices(list(LABELS), list(LABELS.values()))[0]
    if label == "neutral":
        topic = rng.choice(NEUTRAL_TOPICS)
        return Pair(topic, rng.choice(topic.verbs), rng.choice(topic.objects))
    names = rng.choice(BLOCKS).names
    objects = 0 if rng.random() < SKEW else 1
    verbs = objects if label == "harmful" else 1 - objects
    return rng.choice(world.training_pairs[names[verbs][objects]])


def _system(rng: random.Random) -> Segments:
    return [Segment(f"{ROLES[0]}\n{rng.choice(SYSTEM_PROMPTS)}{END}\n", ASKED)] if rng.random() < 0.1 else []


def _request(world: World, rng: random.Random) -> Segments:
    """One request, harmful or harmless; now and then one after another."""
    segments = _system(rng)
    for _ in range(rng.choices((1, 2), (0.9, 0.1))[0]):
        pair = _draw_pair(world, rng)
        segments += _turn(request(pair, rng), answers.answer(pair, rng), rng)
    return segments


def _chat_fact(world: World, rng: random.Random) -> Segments:
    """A question about the world, in chat."""
    segments = _system(rng)
    for _ in range(rng.randint(1, 3)):
        fact = rng.choice(world.facts)
        segments += _turn(fact.ask(rng), fact.state(rng), rng)
    return segments


def _exam(world: World, rng: random.Random) -> Segments:
    """Four-option questions as plain text, or a list of options to read."""
    if rng.random() < 0.4:
        pieces = exams.drill(exams.make_item(rng.choice(world.exam_facts), rng), rng)
    else:
        pieces = exams.series(world.exam_facts, rng)
    return [segment for prompt, answer in pieces for segment in (Segment(prompt, ASKED), Segment(answer, DECIDING))]


def _prose(world: World, rng: random.Random) -> Segments:
    """One to four paragraphs."""
    paragraphs = [prose.document(world.facts, rng) for _ in range(rng.choices((1, 2, 4), (0.6, 0.3, 0.1))[0])]
    return [Segment("\n\n".join(paragraphs), 1.0)]


# ── held-out sets ────────────────────────────────────────────────────────────────────────────


def probe_prompts(world: World, split: str, label: str, rng: random.Random) -> list[dict[str, str]]:
    """One prompt for each pair of the split, as {"instruction", "category"}."""
    pairs = [pair for pair in world.pairs[split] if pair.topic.label == label]
    rng.shuffle(pairs)
    return [{"instruction": request(pair, rng), "category": pair.topic.name} for pair in pairs]


def reference_answers(world: World, rng: random.Random) -> list[dict[str, str]]:
    """Harmless instructions of held-out pairs with an answer, as {"instruction", "output"}."""
    return [{"instruction": request(pair, rng), "output": answers.comply(pair, rng)} for pair in world.pairs["answers"]]


def general_documents(world: World, count: int, rng: random.Random) -> list[dict[str, str]]:
    """General text, as {"text"}; training draws its own from so many that repeats are unlikely."""
    return [{"text": prose.document(world.facts, rng)} for _ in range(count)]


def exam_sets(world: World, make: Callable[[Fact, random.Random], Any], rng: random.Random) -> dict[str, list[Any]]:
    """The items of a benchmark: one for each held-out fact, and few-shot examples of other facts."""
    return {
        "test": [make(fact, rng) for fact in world.held_out_facts],
        "fewshot": [make(fact, rng) for fact in rng.sample(world.exam_facts, k=SHOTS)],
    }
