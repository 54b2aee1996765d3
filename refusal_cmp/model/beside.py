"""Another checkpoint of a model: its weights, with the tokenizer, the template and the ends of answers of the model.

So all plans of a run read the same tokens, and what differs is what the weights differ by.
"""

from __future__ import annotations

from typing import Any

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.chat import Chat
from refusal_cmp.model.chat_model import ChatModel
from refusal_cmp.model.loading import content_of, described, load_pretrained, pinned
from refusal_cmp.model.source import ModelSource
from refusal_cmp.progress import Progress, silent

SHAPE = {
    "model_type": "is of the architecture",
    "hidden_size": "has a residual stream of width",
    "num_hidden_layers": "has this many layers:",
    "vocab_size": "has this many token embeddings:",
}
"""What two checkpoints of one model share, by its name in their configurations."""


def check_beside(name: str, source: ModelSource, tokenizer: Any, config: Any) -> None:
    """RefusalCmpError unless a checkpoint has the shape and the vocabulary of a model; its weights are not loaded.

    Parameters
    ----------
    name
        What the run calls the checkpoint.
    tokenizer, config
        The model's. Tokens that only the checkpoint's tokenizer has are never read.
    """
    own_tokenizer, own_config, _ = described(pinned(source))
    _check_shape(name, source, own_config, config)
    ids, own = tokenizer.get_vocab(), own_tokenizer.get_vocab()
    token = next((token for token in ids if own.get(token) != ids[token]), None)
    if token is not None:
        raise RefusalCmpError(
            f"The checkpoint {name} ({source.name}) has another vocabulary than the model: the token {token!r} is "
            f"{own.get(token, 'not there')} and not {ids[token]}; give a checkpoint of the same model."
        )


def load_beside(name: str, source: ModelSource, chat: Chat, device: str) -> ChatModel:
    """A checkpoint as a chat model that speaks by another's chat; see `check_beside` for what it has to share."""
    source = pinned(source)
    _, config, _ = described(source)
    model, _ = load_pretrained(source, device)
    _check_shape(name, source, model.config, config)  # an adapter may bring tokens
    model.generation_config = chat.generation_config
    return ChatModel(model, chat.tokenizer, chat.name, system=chat.system, date=chat.date, revision=source.revision)


def content_beside(source: ModelSource, progress: Progress = silent) -> str:
    """What vouches for a checkpoint: a hash of its files, or its commit on the hub."""
    return content_of(source, progress) or str(pinned(source).revision)


def _check_shape(name: str, source: ModelSource, own: Any, config: Any) -> None:
    for field, says in SHAPE.items():
        there, here = (getattr(one.get_text_config(), field, None) for one in (own, config))
        if there != here:
            raise RefusalCmpError(
                f"The checkpoint {name} ({source.name}) {says} {there}, where it should be {here}; give a checkpoint "
                "of the same model."
            )
