"""A tokenizer of few words with a chat template, and prompts of the embedded sets."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusal_cmp.data import DATASETS

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> :{% endif %}"
)
WORDS = "I As Sure Here cannot help how do you make a cake cow bird red blue one two three hello ? . ' m sorry".split()


def word_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word, and a chat template with three post-instruction tokens."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<system>", "<assistant>", ":"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def instructions(name: str, split: str, n: int) -> list[str]:
    """The first n instructions of an embedded set."""
    return [prompt.instruction for prompt in DATASETS.get(name)(split)[:n]]
