"""Prompt sets and texts: registered by name, or local files by path.

A set is a function from a split to its prompts (see `data/tiny.py`); a text set a function that gives documents,
a list or, where there are too many to hold, any iterable. What can be registered can be third parties' too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from refusal_cmp.registry import Registry

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Prompt:
    """An instruction to the model."""

    instruction: str
    category: str = ""


@dataclass(frozen=True)
class Document:
    """A text to measure the loss on: the answer to an instruction, or, without one, plain text."""

    text: str
    instruction: str | None = None


@dataclass(frozen=True)
class Label:
    """Which rows of a file are meant, where it holds more: by what a column says."""

    column: str
    values: frozenset[str]
    """As text, without case."""
    others: bool = False
    """Whether the rows with any other value are meant."""

    def fits(self, value: object) -> bool:
        """Whether the row with this value is one of them."""
        return (plain(value) in self.values) != self.others


def plain(value: object) -> str:
    """A label as it is compared, whether a file has it as text, a number, or true and false."""
    return "" if value is None else str(value).strip().casefold()


@dataclass(frozen=True)
class Columns:
    """Which columns of a local file to read."""

    prompt: tuple[str, ...] | None = None
    """The first of these that the file has; None: one of the usual names."""
    category: str | None = None
    """None: one of the usual names, if the file has one."""
    split: str | None = None
    """None: `split`, if the file has it."""
    label: Label | None = None
    """None: all rows."""
    kind: str = ""
    """What the prompts are read as, for messages: harmful or harmless."""


@dataclass(frozen=True)
class Card:
    """What `refusal-cmp datasets` says of a set beside its docstring."""

    source: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """By split; empty where it is not known without reading the set."""
    digest: Callable[[], str] | None = None
    """Tells what the set is made from, where that can change under a run."""

    @property
    def size(self) -> str:
        """`256/64/192` by split, or one number."""
        if len(self.sizes) < 2:
            return "".join(str(size) for size in self.sizes.values())
        return "/".join(str(self.sizes.get(split, "–")) for split in SPLITS)


PromptSet = Callable[[Split], list[Prompt]]
TextSet = Callable[[], Iterable[Document]]
_Plugin = TypeVar("_Plugin", PromptSet, TextSet)

DATASETS: Registry[PromptSet] = Registry("dataset", __name__)
TEXTS: Registry[TextSet] = Registry("text set", __name__)
CARDS: dict[Registry, dict[str, Card]] = {DATASETS: {}, TEXTS: {}}


def register_dataset(name: str, *, source: str = "", **sizes: int) -> Callable[[PromptSet], PromptSet]:
    """Decorator that registers a prompt set: a function from a split to its prompts.

    A set of one list gives it as the test split, and nothing for the others.

    Parameters
    ----------
    source
        Where the prompts come from, for people.
    sizes
        Prompts of each split, if known: `train=128`.
    """
    return _register(DATASETS, name, Card(source, sizes))


def register_text(
    name: str, *, source: str = "", digest: Callable[[], str] | None = None, **sizes: int
) -> Callable[[TextSet], TextSet]:
    """Decorator that registers a text set: a function that gives its documents.

    Parameters
    ----------
    digest
        Tells what the texts are made from, where that can change under a run: when it has, a run measures anew.
    """
    return _register(TEXTS, name, Card(source, sizes, digest))


def stamped(name: str) -> str:
    """The name of a text set, with its digest if it has one."""
    digest = CARDS[TEXTS][name].digest if name in TEXTS else None
    return name if digest is None else f"{name} ({digest()})"


def _register(registry: Registry, name: str, card: Card) -> Callable[[_Plugin], _Plugin]:
    add = registry.register(name)

    def registered(plugin: _Plugin) -> _Plugin:
        CARDS[registry][name] = card
        return add(plugin)

    return registered
