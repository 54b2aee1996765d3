"""General declarative documents: paragraphs about the world's entities, places and days."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .knowledge import Fact
from .templates import with_article
from .topics import BLOCKS

FILLERS = (
    "This has been so for many years.",
    "Old people still talk about it.",
    "Children learn this at school.",
    "Not everybody knows that.",
    "In winter things are quieter.",
    "A traveller once wrote about it.",
    "Nobody is surprised by this.",
    "It is a small thing, but a pleasant one.",
    "The seasons change little about it.",
    "Some say that it was different long ago.",
)

OBJECT_SENTENCES = (
    "{Noun} belongs to the {place}.",
    "There is {noun} in the {place}.",
    "In the {place} one can come across {noun}.",
    "Somebody in the {place} spoke of {noun}.",
    "{Noun} is a common thing in the {place}.",
)

DAY_SENTENCES = (
    "On {day}, {who} walked to {town} with a {colour} basket.",
    "{who} met {other} on the road to {town}.",
    "{who} and {other} spent {day} in {town}.",
    "It rained on {day}, so {who} stayed at home.",
    "{who} bought bread in {town} and carried it home.",
    "{other} waved from a {colour} window.",
    "In the evening {who} wrote a letter to {other}.",
    "They talked until the lamps went out.",
    "The road was long and the {colour} sky was clear.",
    "On {day} the bells of {town} rang early.",
)


def document(facts: Sequence[Fact], rng: random.Random) -> str:
    """One paragraph of three to seven sentences."""
    kind = rng.choices((_about_entity, _about_place, _about_day), (0.6, 0.2, 0.2))[0]
    sentences = kind(facts, rng)
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(1, len(sentences) + 1), rng.choice(FILLERS))
    return " ".join(sentences)


def _about_entity(facts: Sequence[Fact], rng: random.Random) -> list[str]:
    """All that is known of one entity, and something about another one of its kind."""
    entity = rng.choice(facts)
    same = [fact for fact in facts if fact.entity == entity.entity]
    rng.shuffle(same)
    kin = rng.choice([fact for fact in facts if fact.relation.kind == entity.relation.kind])
    return [fact.state(rng) for fact in [*same, kin]]


def _about_place(facts: Sequence[Fact], rng: random.Random) -> list[str]:
    """Things found in one place."""
    side = rng.randrange(2)
    block = rng.choice(BLOCKS)
    nouns = [with_article(noun.strip()) for noun in block.objects[side].split(",")]
    return [
        rng.choice(OBJECT_SENTENCES).format(Noun=noun[0].upper() + noun[1:], noun=noun, place=block.places[side])
        for noun in rng.sample(nouns, k=rng.randint(3, 5))
    ]


def _about_day(facts: Sequence[Fact], rng: random.Random) -> list[str]:
    """A few hours in the life of two villagers."""
    pick = {name: [fact for fact in facts if fact.relation.name == name] for name in ("job", "flag", "market")}
    who, other = rng.sample(sorted({fact.entity for fact in pick["job"]}), k=2)
    names = {
        "who": who,
        "other": other,
        "town": rng.choice(pick["flag"]).entity,
        "day": rng.choice(pick["market"]).value,
        "colour": rng.choice(pick["flag"]).value,
    }
    return [sentence.format(**names) for sentence in rng.sample(DAY_SENTENCES, k=rng.randint(3, 5))]
