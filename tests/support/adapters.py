"""Adapters of the embedded model, made and saved by peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from refusal_cmp.model import ChatModel

TRAINED = ("lora_", "ia3_", "trainable_tokens", "modules_to_save")


def trained(home: Path, config: Any, base: str = "tiny-refuser", tokens: int = 0) -> Path:
    """An adapter of the embedded model with weights that do something, saved by peft."""
    torch.manual_seed(0)
    whole = ChatModel.load().model
    if tokens:
        whole.resize_token_embeddings(2048 + tokens, mean_resizing=False)
    adapted = get_peft_model(whole, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if any(one in name for one in TRAINED):
                weight += 0.05 * torch.randn_like(weight)
    adapted.save_pretrained(home)
    say_base(home, base)
    return home


def say_base(folder: Path, base: str | None) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
