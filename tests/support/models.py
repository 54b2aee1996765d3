"""A tokenizer of few words with a chat template, a model with code of its own, prompts of the embedded sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import uuid4

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusal_cmp.data import DATASETS
from refusal_cmp.model import model_path

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


def with_own_code(folder: Path, forward: str = "") -> Path:
    """The embedded model as one that brings Python code: a Llama, with this as its forward pass if any."""
    shutil.copytree(model_path("tiny-refuser"), folder)
    kind = f"own-{uuid4().hex}"  # transformers remembers the code of a model type
    (folder / "configuration_own.py").write_text(
        f"from transformers import LlamaConfig\n\nclass OwnConfig(LlamaConfig):\n    model_type = {kind!r}\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n"
        f"class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n{forward}"
    )
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": kind,
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
