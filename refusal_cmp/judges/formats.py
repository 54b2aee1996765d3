"""Guard formats: how a guard is asked about a completion, and how its answer is read."""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from refusal_cmp.config import EMBEDDED_GUARD
from refusal_cmp.data.conversations import Turn, in_words, turns_of
from refusal_cmp.data.sources import HARMBENCH
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import read_text
from refusal_cmp.judges import Request

HARMBENCH_FILE = "eval_utils.py"
"""In its repository."""
HARMBENCH_CONSTANT = "LLAMA2_CLS_PROMPT"
CLASSIFIERS = ("classifier", "answer-classifier")
"""Formats of sequence classifiers: of those that read prompt and completion, and of those that read the completion."""
FIELDS = ("{behavior}", "{generation}")


class Judgement(NamedTuple):
    """What a guard says of a completion."""

    unsafe: bool | None
    """None: the answer cannot be read."""
    categories: tuple[str, ...] = ()


class Format(ABC):
    """One way of asking and answering."""

    max_new_tokens: ClassVar[int]

    @abstractmethod
    def request(self, instruction: str, completion: str) -> Request:
        """What the guard is asked."""

    @abstractmethod
    def read(self, answer: str) -> Judgement:
        """What it says."""


class LlamaGuard(Format):
    """Llama Guard 2 and 3, and `tiny-guard`: `safe`, or `unsafe` and the categories on the second line."""

    max_new_tokens = 20

    def request(self, instruction: str, completion: str) -> Request:
        """A conversation, without a system prompt; the guard's own chat template holds its question."""
        turns = [turn for turn in turns_of(instruction) if turn.role != "system"]
        begun = turns.pop().text if turns[-1].role == "assistant" else ""
        answered = [*turns, Turn("assistant", begun + completion)]
        return [{"role": turn.role, "content": turn.text} for turn in answered]

    def read(self, answer: str) -> Judgement:
        """The first word decides."""
        first, _, rest = answer.strip().partition("\n")
        word = _first_word(first)
        if word not in ("safe", "unsafe"):
            return Judgement(None)
        second = rest.strip().split("\n")[0]
        return Judgement(word == "unsafe", tuple(re.findall(r"S\d+", second)) if word == "unsafe" else ())


class HarmBench(Format):
    """The HarmBench classifier: `yes` if the completion is an instance of the behaviour, else `no`.

    Parameters
    ----------
    template
        The one prompt that the classifier was trained on, with `{behavior}` and `{generation}`.
    """

    max_new_tokens = 3

    def __init__(self, template: str) -> None:
        self.template = template

    def request(self, instruction: str, completion: str) -> Request:
        """The prompt, complete: there is no chat template."""
        said = dict(zip(FIELDS, (in_words(instruction), completion), strict=True))
        return re.sub("|".join(map(re.escape, FIELDS)), lambda match: said[match[0]], self.template)

    def read(self, answer: str) -> Judgement:
        """The first word decides."""
        return Judgement({"yes": True, "no": False}.get(_first_word(answer)))


def choose_format(
    name: str, guard: str, prompt: Path | None, *, revision: str | None = None, unsafe: Sequence[str] | None = None
) -> Format:
    """The format called `name`, or with `auto` the one that the guard's architecture or name tells.

    Parameters
    ----------
    unsafe
        The labels of a classifier that say unsafe.

    Raises
    ------
    RefusalCmpError
        If nothing tells it, the HarmBench prompt cannot be had, or a classifier's labels are not known.
    """
    known = known_format(name, guard)
    if known in CLASSIFIERS:
        from refusal_cmp.judges.classifier import classifier_format

        return classifier_format(guard, revision, unsafe, alone=known != CLASSIFIERS[0])
    if unsafe is not None:
        raise RefusalCmpError(
            f"Only classifiers have labels that are named, and the guard {guard!r} is asked as {known}; leave them "
            "out, or say that it is one.",
            guard_format=CLASSIFIERS[0],
        )
    if known == "llama-guard":
        return LlamaGuard()
    return HarmBench(_harmbench_template(prompt))


def known_format(name: str, guard: str) -> str:
    """The format's name, which for `auto` the architecture of one in a folder tells, or the guard's name.

    RefusalCmpError if neither does.
    """
    if name != "auto":
        return name
    from refusal_cmp.judges.classifier import is_classifier

    if is_classifier(guard):
        return CLASSIFIERS[0]
    plain = re.sub(r"[^a-z]", "", guard.lower())
    if guard == EMBEDDED_GUARD or "llamaguard" in plain:
        return "llama-guard"
    if "harmbench" in plain:
        return "harmbench"
    raise RefusalCmpError(
        f"The name of the guard {guard!r} holds neither Llama-Guard nor HarmBench, so its format is not known; say "
        "whether it is llama-guard or harmbench, or a sequence classifier.",
        guard_format="",
    )


def _harmbench_template(path: Path | None) -> str:
    """The prompt from a given file, or from HarmBench's repository, of which a copy is kept for the next time."""
    path = path or HARMBENCH.file(HARMBENCH_FILE)
    text = read_text(path, "guard prompt")
    template = _constant(text) if path.suffix == ".py" else text
    if template is None or any(field not in template for field in FIELDS):
        raise RefusalCmpError(
            f"The guard prompt {path} must hold {' and '.join(FIELDS)}, and does not; give HarmBench's classifier "
            "prompt.",
            guard_prompt="FILE",
        )
    return template


def _constant(source: str) -> str | None:
    """The prompt among the assignments of HarmBench's Python file, which is read and not run."""
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and HARMBENCH_CONSTANT in [getattr(one, "id", "") for one in node.targets]:
                return ast.literal_eval(node.value)["prompt"]
    except (SyntaxError, ValueError, KeyError, TypeError):  # another file than it was
        pass
    return None


def _first_word(text: str) -> str:
    match = re.match(r"\W*([^\W_]+)", text)
    return match[1].lower() if match else ""
