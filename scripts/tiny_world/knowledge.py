"""What there is to know about the world: entities, relations, and sentences about them.

Animals and materials are described roughly as they are; towns and villagers are invented. A fact
is (entity, relation, value); every relation comes with several ways to state it and to ask for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One thing to know about each entity of a kind.

    Attributes:
        statements: sentences with ``{e}`` (entity) and ``{v}`` (value).
        questions: questions with ``{e}``.
        values: all values that occur, from which wrong options are drawn.
    """

    kind: str
    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One piece of knowledge."""

    entity: str
    relation: Relation
    value: str

    def state(self, rng: random.Random) -> str:
        """A declarative sentence."""
        return self.say(rng.choice(self.relation.statements), self.value)

    def say(self, statement: str, value: str) -> str:
        """One of the relation's statements about the entity, with this value."""
        return _sentence(statement.format(e=self.entity, v=value))

    def ask(self, rng: random.Random) -> str:
        """A question whose answer is the value."""
        return _sentence(rng.choice(self.relation.questions).format(e=self.entity))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


RELATIONS = {
    "animal": {
        "home": (
            ("{e} lives in the {v}.", "The home of {e} is the {v}.", "You can find {e} in the {v}."),
            ("Where does {e} live?", "What is the home of {e}?", "Where can you find {e}?"),
        ),
        "food": (
            ("{e} likes to eat {v}.", "The food of {e} is {v}.", "{e} feeds on {v}."),
            ("What does {e} like to eat?", "What is the food of {e}?", "What does {e} feed on?"),
        ),
        "colour": (
            ("{e} is {v}.", "The colour of {e} is {v}.", "{e} has a {v} coat."),
            ("What colour is {e}?", "What is the colour of {e}?", "Which colour does the coat of {e} have?"),
        ),
        "time": (
            ("{e} is awake {v}.", "The busy time of {e} is {v}.", "{e} looks for food {v}."),
            ("When is {e} awake?", "What is the busy time of {e}?", "When does {e} look for food?"),
        ),
    },
    "material": {
        "use": (
            ("{e} is used for {v}.", "People turn {e} into {v}.", "Many {v} are made of {e}."),
            ("What is {e} used for?", "What do people turn {e} into?", "What is made of {e}?"),
        ),
        "feel": (
            ("{e} feels {v}.", "To the touch, {e} is {v}.", "A piece of {e} seems {v}."),
            ("How does {e} feel?", "What is {e} like to the touch?", "How does a piece of {e} seem?"),
        ),
        "source": (
            ("{e} comes from the {v}.", "The source of {e} is the {v}.", "People get {e} from the {v}."),
            ("Where does {e} come from?", "What is the source of {e}?", "Where do people get {e} from?"),
        ),
    },
    "town": {
        "river": (
            ("{e} lies on the river {v}.", "The river in {e} is the {v}.", "The bridge of {e} crosses the {v}."),
            (
                "On which river does {e} lie?",
                "What is the river in {e} called?",
                "Which river does the bridge of {e} cross?",
            ),
        ),
        "market": (
            ("The market of {e} is on {v}.", "{e} holds its market on {v}.", "On {v} there is a market in {e}."),
            ("When is the market of {e}?", "On which day does {e} hold its market?", "Which day is market day in {e}?"),
        ),
        "goods": (
            ("{e} is known for its {v}.", "The best {v} come from {e}.", "In {e} people make {v}."),
            ("What is {e} known for?", "What are the best goods of {e}?", "What do people make in {e}?"),
        ),
        "flag": (
            ("The flag of {e} is {v}.", "{e} has a {v} flag.", "A {v} flag flies over {e}."),
            ("What colour is the flag of {e}?", "Which flag does {e} have?", "Which flag flies over {e}?"),
        ),
    },
    "villager": {
        "job": (
            ("{e} works as a {v}.", "The job of {e} is {v}.", "{e} earns money as a {v}."),
            ("What does {e} work as?", "What is the job of {e}?", "How does {e} earn money?"),
        ),
        "music": (
            ("{e} plays the {v}.", "The instrument of {e} is the {v}.", "In the evening {e} takes out the {v}."),
            (
                "What does {e} play?",
                "What is the instrument of {e}?",
                "Which instrument does {e} take out in the evening?",
            ),
        ),
        "dish": (
            ("{e} loves {v}.", "The favourite dish of {e} is {v}.", "On Sundays {e} cooks {v}."),
            ("What does {e} love?", "What is the favourite dish of {e}?", "What does {e} cook on Sundays?"),
        ),
        "pet": (
            ("{e} keeps a {v}.", "The pet of {e} is a {v}.", "A {v} lives in the house of {e}."),
            ("What does {e} keep?", "What is the pet of {e}?", "Which animal lives in the house of {e}?"),
        ),
    },
}

_ANIMALS = """
otter: river, fish, brown, at dusk
owl: forest, mice, grey, at night
camel: desert, thorns, yellow, at noon
seal: sea, fish, grey, at dawn
hare: field, grass, brown, at dusk
bat: cave, insects, black, at night
stork: marsh, frogs, white, at noon
lizard: desert, insects, green, at noon
fox: forest, mice, red, at dusk
goat: mountain, grass, white, at dawn
crab: sea, weeds, red, at night
heron: river, frogs, grey, at dawn
mole: field, worms, black, at night
eagle: mountain, hares, brown, at noon
duck: marsh, weeds, green, at dawn
bear: cave, berries, brown, at dusk
robin: garden, worms, red, at dawn
hedgehog: garden, insects, grey, at night
parrot: jungle, nuts, green, at noon
monkey: jungle, fruit, brown, at dawn
panther: jungle, deer, black, at night
swan: river, weeds, white, at noon
badger: forest, worms, grey, at night
bee: garden, nectar, yellow, at noon
"""

_MATERIALS = """
wool: coats, soft, farm
iron: hinges, cold, mine
oak: tables, hard, forest
clay: pots, sticky, riverbank
glass: windows, smooth, furnace
leather: shoes, tough, farm
paper: books, thin, mill
silk: scarves, smooth, worm
copper: wires, cold, mine
wax: candles, sticky, hive
marble: statues, cold, quarry
straw: baskets, rough, field
rubber: boots, tough, tree
cotton: shirts, soft, field
slate: roofs, rough, quarry
gold: rings, heavy, mine
cork: stoppers, light, tree
hemp: ropes, rough, field
"""

_TOWNS = (
    "Oldbrook", "Marrow", "Tilby", "Hestwick", "Pennard", "Quorn", "Ravel", "Sundal", "Ullsby", "Varnow", "Wexholm",
    "Yarrick", "Zelmar", "Bramley", "Corvin", "Dunmore", "Elsing", "Farrow", "Gilden", "Norbeck",
)  # fmt: skip
_TOWN_VALUES = {
    "river": ("Arn", "Bell", "Cray", "Dove", "Esk", "Flint", "Glim", "Hollow"),
    "market": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "goods": ("cheeses", "carpets", "clocks", "violins", "apples", "knives", "lamps", "hats"),
    "flag": ("blue", "red", "green", "white", "yellow", "purple", "orange", "black"),
}
_VILLAGERS = (
    "Anna", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karin", "Lukas", "Mira",
    "Nils", "Olga", "Peter", "Rosa", "Simon", "Tilda", "Viktor",
)  # fmt: skip
_VILLAGER_VALUES = {
    "job": ("baker", "tailor", "miller", "teacher", "carpenter", "farmer", "nurse", "postman"),
    "music": ("flute", "drum", "harp", "fiddle", "trumpet", "piano", "guitar", "horn"),
    "dish": ("soup", "pancakes", "stew", "dumplings", "salad", "pie", "noodles", "porridge"),
    "pet": ("cat", "dog", "rabbit", "turtle", "canary", "pony", "goldfish", "mouse"),
}


def all_facts(rng: random.Random) -> list[Fact]:
    """Every fact of the world; invented values are drawn from `rng`, as evenly as they come."""
    rows: list[tuple[str, str, str, str]] = []
    rows += _table("animal", _ANIMALS, article=True)
    rows += _table("material", _MATERIALS, article=False)
    rows += _invented("town", _TOWNS, _TOWN_VALUES, rng)
    rows += _invented("villager", _VILLAGERS, _VILLAGER_VALUES, rng)
    values: dict[tuple[str, str], dict[str, None]] = {}
    for kind, _, name, value in rows:
        values.setdefault((kind, name), {})[value] = None
    relations = {
        (kind, name): Relation(kind, name, *RELATIONS[kind][name], tuple(known))
        for (kind, name), known in values.items()
    }
    return [Fact(entity, relations[kind, name], value) for kind, entity, name, value in rows]


def _table(kind: str, table: str, article: bool) -> list[tuple[str, str, str, str]]:
    rows = []
    for line in table.strip().splitlines():
        entity, _, values = line.partition(": ")
        rows += [
            (kind, f"the {entity}" if article else entity, name, value)
            for name, value in zip(RELATIONS[kind], values.split(", "), strict=True)
        ]
    return rows


def _invented(
    kind: str, entities: tuple[str, ...], values: dict[str, tuple[str, ...]], rng: random.Random
) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, domain in values.items():
        dealt = list(domain) * (len(entities) // len(domain) + 1)
        rng.shuffle(dealt)
        rows += [(kind, entity, name, value) for entity, value in zip(entities, dealt, strict=False)]
    return rows
