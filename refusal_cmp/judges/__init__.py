"""Guards: models that judge what another model said.

A *format* turns an instruction and a completion into a request and the guard's answer into a judgement
(`formats`). A *backend* gets the answers: in this process with transformers (`hf`) or vLLM (`vllm`), or from
an OpenAI-compatible endpoint (`openai`). The same format gives the same requests whatever the backend.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refusal_cmp.config import DATE
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.hub import Repo, commit_of
from refusal_cmp.model.loading import load_chat
from refusal_cmp.model.source import ModelSource, clock
from refusal_cmp.progress import Progress, silent

Messages = list[dict[str, str]]
Request = Messages | str
"""A conversation for the model's own chat template, or a prompt that is complete as it is."""


class Backend(ABC):
    """Something that answers requests greedily."""

    @abstractmethod
    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Each request's index and answer, as soon as it is there and so in any order.

        An error comes after all the answers that there are.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds; nothing is asked of it afterwards."""


def key_of(request: Request) -> str:
    """The name by which the answer to a request is known."""
    return json.dumps(request)


def answer_all(
    backend: Callable[[], Backend],
    requests: Iterable[Request],
    max_new_tokens: int,
    known: MutableMapping[str, Any],
    task: str,
    progress: Progress = silent,
) -> None:
    """Ask what is not known; a request is sent once, however many are the same.

    Parameters
    ----------
    backend
        Called if there is anything to ask.
    known
        Answers by `key_of` their request; each new one is added as it comes.
    task
        What the progress is called.
    """
    new = {key: request for request in requests if (key := key_of(request)) not in known}
    if not new:
        return
    keys = list(new)
    with progress(task, len(keys)) as advance:
        for place, text in backend().answer(list(new.values()), max_new_tokens):
            known[keys[place]] = text
            advance(1)


def check_guard(name: str, revision: str | None = None) -> None:
    """RefusalCmpError if there is no such model, or it may not be read; all but its weights is."""
    with loading_guard(name):
        load_chat(guard_source(name, revision))


def guard_source(name: str, revision: str | None, dtype: str = "auto") -> ModelSource:
    """The guard, on the hub at the commit that a branch or tag stands for now."""
    source = ModelSource(name, dtype=dtype)
    if Path(source.path).exists():
        return source
    repo = Repo(name, revision, f"the guard {name!r}", "give a local folder, or tiny-guard", settings={"guard": ""})
    return replace(source, revision=commit_of(repo))


@contextmanager
def loading_guard(name: str) -> Iterator[None]:
    """What is wrong with a model is said of a guard."""
    try:
        yield
    except RefusalCmpError as error:
        why = str(error).removeprefix(f"Cannot load model {name!r}: ").removeprefix(f"Cannot load the guard {name!r}: ")
        raise RefusalCmpError(f"Cannot load the guard {name!r}: {why}", guard="") from error


def tokenizer_of(tokenizer: Any, name: str, date: str = DATE) -> Callable[[Request], list[int]]:
    """The function that turns a request into token ids, conversations by the tokenizer's own chat template.

    Some templates take a message's content as text, others (Llama-Guard-3-1B's) as a list of parts, and drop
    in silence what they do not understand; a probe tells which. One that asks for today's date is told this one.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    as_parts = False

    def render(messages: Messages) -> str:
        given: list[dict[str, Any]] = list(messages)
        if as_parts:
            given = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
        return tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True, **clock(date))

    def tokenize(request: Request) -> list[int]:
        if isinstance(request, str):
            return tokenizer(request)["input_ids"]
        if not has_template:
            raise RefusalCmpError(
                f"The guard {name} has no chat template, which the llama-guard format needs; choose another guard, or "
                "the harmbench format if it is HarmBench's classifier.",
                guard="",
                guard_format="harmbench",
            )
        return tokenizer(render(request), add_special_tokens=False)["input_ids"]

    if has_template:
        as_parts = not _shows_content(render)
        if as_parts and not _shows_content(render):
            raise RefusalCmpError(
                f"The chat template of the guard {name} leaves out what user or assistant say, so it cannot judge a "
                "conversation; choose another guard."
            )
    return tokenize


def _shows_content(render: Callable[[Messages], str]) -> bool:
    """Whether a rendered conversation holds what was said in it."""
    from jinja2 import TemplateError

    said = ("probequestion", "probeanswer")
    try:
        text = render([{"role": role, "content": one} for role, one in zip(("user", "assistant"), said, strict=True)])
    except (TemplateError, TypeError):  # a template of the other kind
        return False
    return all(one in text for one in said) and "'type'" not in text
