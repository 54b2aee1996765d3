"""Model folders as they are: cut, empty, incomplete or of another kind; what cannot be used is one sentence."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from refusal_cmp.cli import app
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.model.chat import Chat

WEIGHTS = "model.safetensors"
PROMPT = "Name a colour."


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded model."""
    return Path(shutil.copytree(model_path("tiny-refuser"), tmp_path / "model"))


def change(file: Path, **settings):
    """Set some settings of a JSON file, and take out those that are None."""
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def refused(folder: Path, **source) -> str:
    with pytest.raises(RefusalCmpError) as caught:
        ChatModel.load(str(folder), **source)
    message = str(caught.value)
    assert "\n" not in message
    assert folder.name in message
    return message


@pytest.mark.parametrize("kept", [0, 4, 100, 100_000])
def test_weights_that_are_cut_off_are_refused(folder, kept):
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "its weights cannot be read (SafetensorError: " in refused(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\nsize 1\n", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", WEIGHTS])
def test_weights_that_are_something_else_are_refused(folder, name, content):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)
    assert refused(folder).startswith("Cannot load model")


def test_weights_in_a_pickle_are_refused_and_read_once_they_are_converted_as_it_says(folder, tiny, tmp_path):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    message = refused(folder)
    assert "in pytorch_model.bin, a pickle, which can run code when it is read" in message
    assert "read it by from_pretrained of AutoModelForCausalLM, write it by save_pretrained" in message
    with pytest.raises(RefusalCmpError, match="a pickle"):  # before any work, too
        Chat.load(ModelSource(str(folder)))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new" / WEIGHTS, folder)
    assert ChatModel.load(str(folder)).generate([PROMPT], max_new_tokens=4) == tiny.generate([PROMPT], max_new_tokens=4)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"metadata": {}, "weight_map": {"model.norm.weight": "no.safetensors"}}']
)
def test_an_index_of_weights_that_are_not_there_is_refused(folder, index):
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    assert "its weights cannot be read" in refused(folder)


def test_weights_that_are_missing_are_not_random_numbers(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({name: w for name, w in weights.items() if ".3.mlp" not in name}, folder / WEIGHTS, {"format": "pt"})
    assert "3 of its weights are not in its files, such as model.layers.3.mlp." in refused(folder)


def test_weights_of_another_shape_are_refused(folder):
    change(folder / "config.json", vocab_size=100)
    assert "model.embed_tokens.weight is (2048, 160) in its files and (100, 160) by its config" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", "", "\x00"])
def test_a_configuration_that_is_no_mapping_is_refused(folder, file, content):
    (folder / file).write_text(content)
    assert f"cannot be read ({file} " in refused(folder)


@pytest.mark.parametrize("content", ["[]", "null", "{}", "{", ""])
def test_a_tokenizer_that_is_none_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    assert "its tokenizer cannot be read (" in refused(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": ["llama"]},
        {"model_type": "no-such"},
        {"hidden_size": "wide"},
        {"hidden_size": 33},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"vocab_size": 0},
        {"dtype": "float7"},
        {"hidden_act": "no-such"},
        {"pad_token_id": 99_999},
        {"rope_parameters": []},
        {"quantization_config": []},
    ],
)
def test_a_setting_that_no_model_has_is_refused(folder, settings):
    change(folder / "config.json", **settings)
    with pytest.raises(RefusalCmpError):
        ChatModel.load(str(folder))


def test_a_folder_without_a_tokenizer_or_without_anything_is_refused(folder, tmp_path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer cannot be read" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "its configuration cannot be read" in refused(tmp_path / "empty")


def test_the_command_line_says_so_before_any_work(folder, tmp_path):
    (folder / "config.json").write_text("[]")
    command = ["extract", str(folder), "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 2
    assert "config.json holds a list where a mapping is expected" in " ".join(result.output.split())
    assert not list((tmp_path / "runs").glob("*/extract"))


def test_a_model_without_an_end_and_a_padding_token_runs_as_with_them(folder, tiny):
    change(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    for file in ("config.json", "generation_config.json"):
        change(folder / file, eos_token_id=None, pad_token_id=None)
    model = ChatModel.load(str(folder))
    assert model.tokenizer.eos_token is None
    prompts = [PROMPT, "Name a bird that can swim, and say where it lives."]
    assert model.generate(prompts, max_new_tokens=24) == tiny.generate(prompts, max_new_tokens=24)


def test_a_model_whose_template_ends_no_answer_either_runs_to_the_limit(folder):
    change(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    for file in ("config.json", "generation_config.json"):
        change(folder / file, eos_token_id=None, pad_token_id=None)
    model = ChatModel.load(str(folder), chat_template="{{ messages[-1].content }}\nAnswer:\n")
    assert model.stop_ids == frozenset()
    assert [one.finish for one in model.generate([PROMPT, "Name a bird that can swim."], max_new_tokens=3)] == [
        "length"
    ] * 2


def test_several_templates_without_a_default_one_are_named(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": template} for name in ("rag", "tool_use")]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert "several chat templates, rag, tool_use, and none is called default" in refused(folder)
    assert ChatModel.load(str(folder), chat_template=template).render(PROMPT)
    change(folder / "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": template}])
    assert ChatModel.load(str(folder)).render(PROMPT)


SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
TEKKEN_TEMPLATE = (
    "<s>[INST]{{ messages[0].content }}[/INST]{% if messages | length > 1 %}{{ messages[1].content }}</s>{% endif %}"
)


@pytest.fixture
def tekken(folder):
    """The folder with Mistral's tokenizer file only: all bytes, and control tokens before them."""
    for file in (*folder.glob("tokenizer*"), folder / "chat_template.jinja"):
        file.unlink()
    size = len(SPECIAL)
    content = {
        "config": {
            "pattern": r"\p{L}+|\s+|[^\s\p{L}]+",
            "default_vocab_size": 256 + size,
            "default_num_special_tokens": size,
        },
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)],
        "special_tokens": [{"rank": rank, "token_str": token} for rank, token in enumerate(SPECIAL)],
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def test_a_tokenizer_in_mistrals_own_file_reads_the_control_tokens_of_a_given_template(tekken):
    assert "has no chat template" in refused(tekken)
    chat = Chat.load(ModelSource(str(tekken), chat_template=TEKKEN_TEMPLATE))
    assert chat.tokenizer.convert_ids_to_tokens(chat.tokenize(["Hi"])[0]) == ["<s>", "[INST]", "H", "i", "[/INST]"]
    assert chat.tokenizer.decode([max(chat.stop_ids)]) == "</s>"


def test_a_tokenizer_that_reads_its_control_tokens_as_text_is_refused(tekken):
    """As that of mistral-common does."""
    tokenizer = Chat.load(ModelSource(str(tekken), chat_template=TEKKEN_TEMPLATE)).tokenizer
    tokenizer.split_special_tokens = True
    with pytest.raises(RefusalCmpError, match=r"reads \[/INST\], which the chat template writes, letter by letter"):
        Chat(tokenizer, "tekken", None)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.4.mlp.down_proj.weight"])
def test_what_float16_does_not_hold_is_to_be_loaded_in_bfloat16(folder, name):
    weights = load_file(folder / WEIGHTS)
    weights[name] = weights[name].float() * 1e7
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(RefusalCmpError, match="not finite in float16, which ends at 65504; .* bfloat16") as caught:
        ChatModel.load(str(folder), dtype="float16")
    assert caught.value.settings == {"dtype": "bfloat16"}
    assert ChatModel.load(str(folder), dtype="bfloat16").n_layers == 10


def test_weights_that_are_no_numbers_are_broken(folder):
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.9.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        RefusalCmpError, match="leaves block 9 .* not finite in float32, so weights before it are broken"
    ):
        ChatModel.load(str(folder))


def test_weights_in_shards_are_read_and_a_lost_one_is_named(folder, tiny):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert ChatModel.load(str(folder)).generate([PROMPT], max_new_tokens=4) == tiny.generate([PROMPT], max_new_tokens=4)
    shards[1].unlink()
    assert shards[1].name in refused(folder)


def test_a_head_of_its_own_stays_apart_from_the_embedding(folder, tiny):
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    batch = tiny.batch(tiny.tokenize([PROMPT]))
    change(folder / "config.json", tie_word_embeddings=False)
    torch.testing.assert_close(ChatModel.load(str(folder)).last_logits(batch), 2 * tiny.last_logits(batch))
    save_file(
        {name: weight for name, weight in weights.items() if "lm_head" not in name}, folder / WEIGHTS, {"format": "pt"}
    )
    assert "1 of its weights are not in its files, such as lm_head.weight" in refused(folder)


def test_a_folder_in_mistrals_own_format_is_refused_with_what_is_missing(folder):
    for file in folder.iterdir():
        file.rename(folder / "consolidated.safetensors") if file.name == WEIGHTS else file.unlink()
    (folder / "params.json").write_text(json.dumps({"dim": 160, "n_layers": 10, "vocab_size": 2048}))
    (folder / "tekken.json").write_text("{}")
    message = refused(folder)
    assert "is in Mistral's own format, with a params.json and no config.json" in message
    assert "give the copy of it in the format of transformers" in message
