"""Fixtures: the embedded model, and a random-weight Llama that needs no training to be edited."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from refusal_cmp.api import extract
from refusal_cmp.model import ChatModel

from support.models import instructions, word_tokenizer

torch.set_num_threads(1)  # some tests fork: a child would wait for threads that only the parent has

collect_ignore = [] if find_spec("vllm") and find_spec("vllm.entrypoints") else ["vllm"]  # see `make test-vllm`


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


@pytest.fixture(scope="session")
def tiny_fields(tiny):
    """Both methods' subspaces on the embedded model, by method."""
    prompts = instructions("tiny-harmful", "train", 64), instructions("tiny-harmless", "train", 64)
    return {method: extract(tiny, *prompts, method=method) for method in ("diff-in-means", "inlp")}


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory) -> Iterator[None]:
    """Where transformers keeps the code that comes with models; one for all tests, as Python imports it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
