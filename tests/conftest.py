"""Fixtures: the embedded model, and a random-weight Llama that needs no training to be edited."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refusal_cmp.api import extract
from refusal_cmp.data import DATASETS
from refusal_cmp.model import ChatModel

torch.set_num_threads(1)  # some tests fork: a child would wait for threads that only the parent has

collect_ignore = [] if find_spec("vllm") and find_spec("vllm.entrypoints") else ["vllm"]  # see `make test-vllm`

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


@pytest.fixture(scope="session")
def random_model() -> ChatModel:
    """A random-weight Llama with 4 blocks, float64, so that identities hold to rounding."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ChatModel(LlamaForCausalLM(config).double(), tokenizer, "random")


@pytest.fixture(scope="session")
def tiny() -> ChatModel:
    """The embedded model."""
    return ChatModel.load("tiny-refuser")


def instructions(name: str, split: str, n: int) -> list[str]:
    """The first n instructions of an embedded set."""
    return [prompt.instruction for prompt in DATASETS.get(name)(split)[:n]]


@pytest.fixture(scope="session")
def tiny_fields(tiny):
    """Both methods' subspaces on the embedded model, by method."""
    prompts = instructions("tiny-harmful", "train", 64), instructions("tiny-harmless", "train", 64)
    return {method: extract(tiny, *prompts, method=method) for method in ("diff-in-means", "inlp")}
