"""Four-option questions in the formats of the benchmark tasks, alone and several in a row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

from .knowledge import Fact

LETTERS = ("A", "B", "C", "D")
DESCRIPTION = "The following are questions about the world.\n\n"
"""Opens every prompt of both tasks."""


class Item(TypedDict):
    """A question, four options, and the index of the right one."""

    question: str
    choices: list[str]
    answer: int


def make_item(fact: Fact, rng: random.Random) -> Item:
    """Ask for a fact, with three wrong values of the same relation."""
    wrong = rng.sample([value for value in fact.relation.values if value != fact.value], k=3)
    answer = rng.randrange(4)
    choices = [*wrong[:answer], fact.value, *wrong[answer:]]
    return Item(question=fact.ask(rng), choices=choices, answer=answer)


class Claims(TypedDict):
    """Four sentences that differ in one value, and the index of the true one."""

    choices: list[str]
    answer: int


def make_claims(fact: Fact, rng: random.Random) -> Claims:
    """A fact stated in one way, with its value and with three wrong ones."""
    item, template = make_item(fact, rng), rng.choice(fact.relation.statements)
    return Claims(choices=[fact.say(template, value) for value in item["choices"]], answer=item["answer"])


def _options(item: Item) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item["choices"], strict=True))


def lettered(item: Item) -> tuple[str, str]:
    """Prompt and answer with options shown and a letter asked for (as MMLU does)."""
    return f"{item['question']}\n{_options(item)}\nAnswer:", f" {LETTERS[item['answer']]}"


def cloze(item: Item) -> tuple[str, str]:
    """Prompt and answer with the options hidden and the answer's text asked for (as ARC does)."""
    return f"Question: {item['question']}\nAnswer:", f" {item['choices'][item['answer']]}"


def drill(item: Item, rng: random.Random) -> list[tuple[str, str]]:
    """The item's options, and then each of them with its letter: practice in reading lists."""
    named = list(zip(item["choices"], LETTERS, strict=True))
    rng.shuffle(named)
    return [
        (f"{'' if i else _options(item)}\nFind {choice}:", f" {letter}") for i, (choice, letter) in enumerate(named)
    ]


def series(facts: Sequence[Fact], rng: random.Random, longest: int = 6) -> list[tuple[str, str]]:
    """One to `longest` questions of one format in a row, as (prompt, answer) pieces.

    Half of the series are open-book, with the fact stated before each question: reading an answer
    off is the first step to knowing it. The benchmark tasks have no open books.
    """
    form = rng.choices((lettered, cloze), (0.65, 0.35))[0]
    open_book = rng.random() < 0.5
    pieces = []
    for fact in rng.sample(facts, k=rng.randint(1, longest)):
        prompt, answer = form(make_item(fact, rng))
        pieces.append((f"{fact.state(rng)}\n{prompt}" if open_book else prompt, answer))
    opening = rng.choice((DESCRIPTION, ""))
    return [((opening if i == 0 else "\n\n") + prompt, answer) for i, (prompt, answer) in enumerate(pieces)]
