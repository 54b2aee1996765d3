"""The refusal tokens of a model: those that its refusals begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.completion import judge
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.progress import Progress, silent

LENGTH = 48
"""Tokens of a completion that tell whether it refuses."""


def refusal_tokens(
    model: ChatModel,
    harmful: Sequence[str],
    batch_size: int | None = None,
    *,
    say: Callable[[str], None],
    progress: Progress = silent,
) -> tuple[int, ...]:
    """The set R of the refusal metric: the first tokens of usual openers to which the model gives mass.

    A model that begins with a space, a newline or a thought gives it to none of them. Then they are the tokens that its
    own refusals of these prompts begin with, and that is said.

    Raises
    ------
    RefusalCmpError
        If it gives mass to none and refuses none of the prompts.
    """
    usual = model.refusal_tokens(harmful, batch_size)
    if usual:
        return usual
    completions = model.generate(harmful, max_new_tokens=LENGTH, batch_size=batch_size, progress=progress)
    verdicts = [judge(one.text, one.finish, turns=model.turns).verdict for one in completions]
    refused = [prompt for prompt, verdict in zip(harmful, verdicts, strict=True) if verdict == "refused"]
    if not refused:
        raise RefusalCmpError(
            f"{model.name} begins no answer as refusals usually begin, and refuses none of {len(harmful)} harmful "
            f"prompts in its first {LENGTH} tokens; give the tokens that its refusals begin with.",
            refusal_tokens="IDS",
        )
    found = tuple(sorted(set(_first_tokens(model, refused, batch_size))))
    names = ", ".join(repr(model.tokenizer.decode([token])) for token in found)
    say(
        f"Warning: {model.name} begins no answer as refusals usually begin; the refusal tokens are those of its own "
        f"refusals, {names}. If its answers to harmless prompts begin so too, give other refusal tokens."
    )
    return found


def _first_tokens(model: ChatModel, prompts: Sequence[str], batch_size: int | None) -> list[int]:
    """The likeliest first token after each prompt, which is where a greedy completion begins."""

    def likeliest(batch: Batch) -> Tensor:
        return model.last_logits(batch).argmax(-1)

    return [int(token) for token in model.per_prompt(prompts, likeliest, batch_size)]
