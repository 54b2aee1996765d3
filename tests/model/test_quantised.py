"""Checkpoints that are quantised: those that transformers reads here run, all others say what they lack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from refusal_cmp.api import plan_intervention
from refusal_cmp.commands.export import export
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, model_path

from support.adapters import trained

PROMPTS = ["Name a colour.", "How do I pick a lock?"]
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        }
    },
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(model_path("tiny-refuser"), tmp_path / "model"))


def mark(folder: Path, settings: object) -> Path:
    """Say in the configuration how the weights are quantised."""
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_int8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A scale for each row, and four numbers from 0 to 255 in each 32 bits."""
    scales = weight.abs().amax(1, keepdim=True) / 127
    numbers = ((weight / scales).round() + 128).to(torch.uint8)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": numbers.view(torch.int32), "weight_scale": scales, "weight_shape": shape}


def in_fp8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A scale for each block of 16 × 16."""
    scales = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).abs().amax((1, 3)) / 448
    of_each = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {"weight": (weight / of_each).to(torch.float8_e4m3fn), "weight_scale_inv": scales}


def quantised(folder: Path, settings: dict, pack: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Path:
    """Quantise the weights of all linear maps of the blocks."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        parts = pack(weight.float()) if "_proj" in name else {"weight": weight}
        weights |= {name.replace("weight", part): values for part, values in parts.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return mark(folder, settings)


def logits(model: ChatModel) -> torch.Tensor:
    return torch.stack([model.last_logits(model.batch(model.tokenize([prompt])))[0] for prompt in PROMPTS]).double()


def check_runs(tiny, tiny_fields, folder: Path, tmp_path: Path) -> None:
    """Close to the whole model, and edits act; a plan is exported exactly, or refused as the weights are rounded."""
    model = ChatModel.load(str(folder))
    before = logits(model)
    assert 0 < (before - logits(tiny)).abs().max() < 0.5
    plan = plan_intervention("ablation", tiny_fields["diff-in-means"], layer=5, position=-1, scope="all")
    with model.edited(plan), tiny.edited(plan):
        assert (logits(model) - logits(tiny)).abs().max() < 0.5
        assert (logits(model) - before).abs().max() > 1
    assert logits(model).equal(before)
    if getattr(model.model.config, "quantization_config", None) is None:
        assert export(model, plan, tmp_path / "exported") < 1e-2
    else:
        with pytest.raises(RefusalCmpError, match="its weights are quantised"):
            export(model, plan, tmp_path / "exported")
        assert not (tmp_path / "exported").exists()


def test_a_checkpoint_of_compressed_tensors_runs(tiny, tiny_fields, folder, tmp_path):
    quantised(folder, INT8, in_int8)
    check_runs(tiny, tiny_fields, folder, tmp_path)


def test_a_checkpoint_in_fp8_runs(tiny, tiny_fields, folder, tmp_path):
    """transformers unpacks it where there is no GPU for it."""
    quantised(folder, FP8, in_fp8)
    check_runs(tiny, tiny_fields, folder, tmp_path)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
        ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
        ({"quant_method": "hqq", "nbits": 4}, "HQQ"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "auto-round", "bits": 4}, "auto-round"),
        ({"quant_method": "higgs"}, "GPU"),
        (INT8, "compressed-tensors"),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else value,
)
def test_what_a_checkpoint_lacks_here_is_named(folder, settings, package):
    if find_spec(package.replace("-", "_").replace("optimum_", "optimum.").lower().partition(".")[0]):
        pytest.skip("it is there")
    with pytest.raises(RefusalCmpError) as caught:
        ChatModel.load(str(mark(folder, settings)))
    message = str(caught.value)
    assert f"its weights, which are quantised by {settings['quant_method']}, cannot be read (" in message
    assert package in message
    assert "install what is missing, or give the model from before it was quantised, or a GGUF file" in message


def test_a_checkpoint_that_is_quantised_in_an_unknown_way_is_not_taken_for_plain_numbers(folder):
    with pytest.raises(RefusalCmpError, match="quantised by no-such, which transformers does not know"):
        ChatModel.load(str(mark(folder, {"quant_method": "no-such"})))


def test_scales_that_are_not_in_the_files_are_not_random_numbers(folder):
    with pytest.raises(RefusalCmpError, match="of its weights are not in its files, such as .*weight_scale"):
        ChatModel.load(str(mark(folder, {"quant_method": "bitnet"})))


def test_a_quantised_checkpoint_is_not_quantised_again_and_is_no_base_of_an_adapter(folder, tmp_path):
    quantised(folder, FP8, in_fp8)
    with pytest.raises(RefusalCmpError, match="are quantised already, by fp8; leave them") as caught:
        ChatModel.load(str(folder), quantization="4bit")
    assert caught.value.settings == {"quantization": "none"}
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(RefusalCmpError, match="The base of the adapter .* is quantised, by fp8, and would round away"):
        ChatModel.load(str(trained(tmp_path / "adapter", lora, base=str(folder))))
