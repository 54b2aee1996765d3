"""Models as people have them: GGUF files, and adapters with their bases; each in the real format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
)
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refusal_cmp.api import plan_intervention
from refusal_cmp.cli import app
from refusal_cmp.commands.export import export
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges import check_guard
from refusal_cmp.judges.formats import LlamaGuard
from refusal_cmp.judges.hf import HFBackend
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.model.chat import Chat
from refusal_cmp.model.loading import content_of
from refusal_cmp.model.plain import plain

from support.adapters import say_base, trained
from support.gguf_files import write_gguf

PROMPTS = ["Name a colour.", "How do I pick a lock?"]
TINY = Path(model_path("tiny-refuser"))


def logits(model: ChatModel, prompts=PROMPTS) -> torch.Tensor:
    return torch.stack([model.last_logits(model.batch(model.tokenize([prompt])))[0] for prompt in prompts]).double()


def refused(path: Path | str, **how) -> str:
    with pytest.raises(RefusalCmpError) as caught:
        ChatModel.load(str(path), **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


# GGUF


@pytest.mark.parametrize(("kind", "off"), [("F32", 1e-3), ("F16", 1e-3), ("Q8_0", 0.3)])
def test_a_gguf_file_is_the_model_that_it_was_made_from(tiny, home, kind, off):
    file = write_gguf(TINY, home / f"Tiny-{kind}.gguf", kind)
    model = ChatModel.load(str(file))
    assert model.tokenize(PROMPTS) == tiny.tokenize(PROMPTS)
    assert (model.positions, model.stop_ids, model.turns) == (tiny.positions, tiny.stop_ids, tiny.turns)
    difference = (logits(model) - logits(tiny)).abs().max()
    assert difference < off
    assert (difference > 0) == (kind == "Q8_0")
    assert not hasattr(model.model.config, "quantization_config")
    assert model.generate(PROMPTS, max_new_tokens=8) == tiny.generate(PROMPTS, max_new_tokens=8)


@pytest.fixture(scope="module")
def gguf(home):
    return write_gguf(TINY, home / "tiny.gguf", "F16")


def test_nothing_beside_a_gguf_file_is_read_with_it(tiny, gguf, tmp_path, monkeypatch):
    """Not another tokenizer, nor a file of the same name where one works."""
    file = Path(shutil.copy(gguf, tmp_path / "mine.gguf"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "chat_template.jinja").write_text("another")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.gguf").write_text("another")
    monkeypatch.chdir(tmp_path / "here")
    assert logits(ChatModel.load(str(file))).equal(logits(ChatModel.load(str(gguf))))


def test_a_folder_with_one_gguf_file_is_that_file(gguf, tmp_path):
    shutil.copy(gguf, tmp_path / "Any.GGUF")
    (tmp_path / "README.md").write_text("Mine.")
    assert Chat.load(ModelSource(str(tmp_path))).render("hi") == Chat.load(ModelSource(str(gguf))).render("hi")
    shutil.copy(gguf, tmp_path / "b.gguf")
    assert "holds 2 GGUF files, Any.GGUF, b.gguf; give the path of one" in refused(tmp_path)


@pytest.mark.parametrize("name", ["nothing.gguf", "there/nothing.gguf"])
def test_a_gguf_file_that_is_not_there_is_said_without_asking_a_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"The GGUF file {name} is not there" in refused(name)


def test_a_part_of_a_gguf_file_is_refused_with_how_to_join_them(gguf, tmp_path):
    for part in (1, 2):
        shutil.copy(gguf, tmp_path / f"m-0000{part}-of-00002.gguf")
    for path in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        assert "m-00001-of-00002.gguf is one of several parts" in refused(path)


@pytest.mark.parametrize("kept", [0, 3, 100, 20_000, 200_000])
def test_a_gguf_file_that_is_cut_off_is_refused(gguf, tmp_path, kept):
    file = tmp_path / "cut.gguf"
    file.write_bytes(gguf.read_bytes()[:kept])
    assert refused(file).startswith(f"Cannot load model '{file}': its ")


def test_a_gguf_file_is_not_quantised_again(gguf):
    with pytest.raises(
        RefusalCmpError, match="cannot be quantised while it is loaded, as a GGUF file is unp"
    ) as caught:
        ChatModel.load(str(gguf), quantization="8bit")
    assert caught.value.settings == {"quantization": "none"}


def test_scaled_positions_of_a_gguf_file_are_those_of_llama_3(tiny, tmp_path):
    """llama.cpp keeps the factors that Llama-3.1's frequencies are divided by."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 8192, "rope_theta": 10000.0}
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": scaled}
    (folder / "config.json").write_text(json.dumps(config))
    original = ChatModel.load(str(folder))
    theta = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    factors = (theta / original.model.model.rotary_emb.inv_freq).numpy()
    assert factors.max() == pytest.approx(8)
    model = ChatModel.load(str(write_gguf(TINY, tmp_path / "a.gguf", "F16", **{"rope_freqs.weight": factors})))
    torch.testing.assert_close(logits(model), logits(original), atol=1e-4, rtol=0)
    assert (logits(model) - logits(tiny)).abs().max() > 1e-3
    strange = {"rope_freqs.weight": np.full_like(factors, 3)}
    assert "(rope_freqs.weight) in a way" in refused(write_gguf(TINY, tmp_path / "b.gguf", "F16", **strange))
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    assert "(yarn) in a way that transformers does not read" in refused(
        write_gguf(TINY, tmp_path / "c.gguf", "F16", **yarn)
    )


def test_a_prompt_with_a_token_that_a_gguf_file_has_no_embedding_for_is_refused(gguf):
    """transformers adds <|endoftext|> to vocabularies without it."""
    with pytest.raises(RefusalCmpError, match=r"holds <\|endoftext\|>, which .* has no embedding"):
        ChatModel.load(str(gguf)).tokenize(["What is <|endoftext|>?"])


# Adapters


LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def adapter(home):
    return trained(home / "adapter", LORA)


def test_an_adapter_is_merged_into_its_base(tiny, adapter):
    """Every weight is W + (α / r) B A of the files, in float64, and nothing else has changed."""
    model = ChatModel.load(str(adapter))
    parts = {name: weight.double() for name, weight in load_file(adapter / "adapter_model.safetensors").items()}
    expected = {name: weight.double() for name, weight in tiny.model.state_dict().items()}
    for name in [name for name in parts if "lora_A" in name]:
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        expected[target] = expected[target] + 2 * parts[name.replace("lora_A", "lora_B")] @ parts[name]
    found = model.model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].double(), weight, atol=1e-6, rtol=0)
    assert (logits(model) - logits(tiny)).abs().max() > 0.1
    assert (model.name, model.positions, type(model.model)) == ("adapter", tiny.positions, type(tiny.model))


@pytest.mark.parametrize(
    "kind",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [5, 900]},
    ],
    ids=str,
)
def test_a_merged_adapter_does_what_peft_does(tiny, tmp_path, kind):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **kind})
    folder = trained(tmp_path / "adapter", config)
    model = ChatModel.load(str(folder))
    from peft import PeftModel

    by_peft = ChatModel(PeftModel.from_pretrained(ChatModel.load().model, folder).eval(), tiny.tokenizer, "peft")
    torch.testing.assert_close(logits(model), logits(by_peft), atol=1e-3, rtol=0)
    model.model.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(ChatModel.load(str(tmp_path / "saved"))), logits(model), atol=1e-5, rtol=0)


def test_tokens_that_were_added_with_an_adapter_come_with_it(tiny, tmp_path):
    folder = trained(tmp_path / "adapter", LORA, tokens=2)
    tokenizer = ChatModel.load().tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<|new|>", "<|newer|>"]})
    tokenizer.chat_template = "<|new|>{{ messages[-1]['content'] }}<|newer|>"
    tokenizer.save_pretrained(folder)
    model = ChatModel.load(str(folder))
    assert model.tokenize(["Say"])[0][:: len(model.tokenize(["Say"])[0]) - 1] == [2048, 2049]
    assert model.model.lm_head.weight.shape == model.model.get_input_embeddings().weight.shape == (2050, 160)
    assert logits(model).isfinite().all()


def test_tokens_that_only_the_tokenizer_of_an_adapter_has_are_refused(tiny, adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    tokenizer = ChatModel.load().tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    tokenizer.chat_template = "<|new|>{{ messages[-1]['content'] }}<|end|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(RefusalCmpError, match=r"holds <\|new\|>, which adapter has no embedding for"):
        _ = ChatModel.load(str(folder)).positions


def test_the_template_of_an_adapter_is_used_with_its_bases_tokenizer(tiny, adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    assert Chat.load(ModelSource(str(folder))).render("hi") == tiny.render("hi")
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}\nAnswer:\n")
    assert Chat.load(ModelSource(str(folder))).render("hi") == "hi\nAnswer:"


def test_the_base_of_an_adapter_is_found_in_many_places(tiny, adapter, gguf, tmp_path, monkeypatch):
    expected = logits(ChatModel.load(str(adapter)))
    shutil.copytree(TINY, tmp_path / "base")
    shutil.copy(gguf, tmp_path / "base.gguf")
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(adapter, tmp_path / "trained" / "adapter"))
    for base in ("../../base", "base", "./base", str(tmp_path / "base"), "base.gguf", str(tmp_path / "base.gguf")):
        say_base(folder, base)
        torch.testing.assert_close(logits(ChatModel.load("trained/adapter")), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("base", ["/nowhere/base", "../base", "~/no-such-base", "no-such.gguf"])
def test_an_adapter_whose_base_is_not_there_names_both(adapter, tmp_path, base):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    say_base(folder, base)
    message = refused(folder)
    assert message.startswith(f"The adapter {str(folder)!r} was trained on {base!r}, as its adapter_config.json says")
    assert "which is not there; put that there" in message


def test_an_adapter_whose_base_cannot_be_had_from_the_hub_names_both(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    say_base(folder, "no-such/base")
    message = refused(folder)
    assert str(folder) in message
    assert "no-such/base" in message


@pytest.mark.parametrize(
    ("base", "why"), [(None, "does not say what it was trained on"), ("adapter", "an adapter too")]
)
def test_an_adapter_of_nothing_or_of_an_adapter_is_refused(adapter, tmp_path, base, why):
    folder = Path(shutil.copytree(adapter, tmp_path / "second"))
    shutil.copytree(adapter, folder / "adapter")
    say_base(folder, base)
    assert why in refused(folder)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "PROMPT_TUNING"),
        (PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
    ],
)
def test_an_adapter_that_is_no_change_of_weights_is_refused_before_they_are_read(tmp_path, config, kind):
    folder = trained(tmp_path / "adapter", config)
    assert f"is of the kind {kind}, which is no change of weights, so it cannot be merged" in refused(folder)
    with pytest.raises(RefusalCmpError, match=kind):
        Chat.load(ModelSource(str(folder)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_of_which_weights_hold_only_a_part_is_refused(adapter, dtype, monkeypatch):
    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0.5 * delta(self, name))
    assert "does more than any change of weights, so it cannot be merged" in refused(adapter, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_is_merged_in_half_precision_too(adapter, dtype):
    """As well as in float32, to the rounding of weights."""
    halves, whole = ChatModel.load(str(adapter), dtype=dtype), ChatModel.load(str(adapter))
    exact = dict(whole.model.named_parameters())
    for name, weight in halves.model.named_parameters():
        assert (weight.float() - exact[name]).norm() <= 0.01 * exact[name].norm(), name


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        TrainableTokensConfig(token_indices=[5, 9], target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    ],
)
def test_other_changes_of_weights_are_merged_too(tmp_path, config):
    assert ChatModel.load(str(trained(tmp_path / "adapter", config))).n_layers == 10


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    for changed, why in (
        (
            {**weights, name.replace("layers.0", "layers.10"): weights[name].clone()},
            "layers.10.* has no place in its base",
        ),
        ({key: weight for key, weight in weights.items() if key != name}, "layers.0.* is not there"),
        ({**weights, name: weights[name][:, :-1].contiguous()}, "size mismatch"),
    ):
        save_file(changed, folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(RefusalCmpError, match=why):
            ChatModel.load(str(folder))


@pytest.mark.parametrize("content", ["[]", "{", "", '{"peft_type": "NEW", "base_model_name_or_path": "tiny-refuser"}'])
def test_an_adapter_whose_configuration_is_none_is_refused(adapter, tmp_path, content):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(content)
    assert str(folder) in refused(folder)


def test_weights_of_an_adapter_that_are_a_pickle_or_missing_are_refused(adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    assert "its adapter cannot be read" in refused(folder)
    torch.save(weights, folder / "adapter_model.bin")
    assert "its weights are in adapter_model.bin, a pickle" in refused(folder)


def test_a_folder_with_a_whole_model_and_an_adapter_is_refused_and_with_its_configuration_not(adapter, tmp_path):
    """Some trainers write the base's config.json beside the adapter; a merged model beside it is another matter."""
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    shutil.copy(TINY / "config.json", folder)
    assert ChatModel.load(str(folder)).n_layers == 10
    shutil.copy(TINY / "model.safetensors", folder)
    assert "holds both a whole model and an adapter of 'tiny-refuser'" in refused(folder)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_an_adapter_is_not_merged_into_rounded_weights(adapter, quantization):
    assert "as an adapter is merged into whole weights; load it whole" in refused(adapter, quantization=quantization)


# A model is its content


def test_an_adapter_is_known_by_its_files_and_those_of_its_base(adapter, gguf, tmp_path):
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    say_base(folder, "../base")
    seen = [content_of(ModelSource(str(folder)))]
    shutil.copytree(base, tmp_path / "elsewhere" / "base")
    assert content_of(ModelSource(str(shutil.copytree(folder, tmp_path / "elsewhere" / "mine")))) == seen[0]
    for changed in (base / "model.safetensors", folder / "adapter_model.safetensors"):
        weights = load_file(changed)
        weights[min(weights)][-1] += 1
        save_file(weights, changed, {"format": "pt"})
        seen.append(content_of(ModelSource(str(folder))))
    (base / "config.json").unlink()
    (base / "model.safetensors").unlink()
    shutil.copy(gguf, base)
    seen.append(content_of(ModelSource(str(folder))))
    assert len(set(seen)) == 4


def test_a_gguf_file_is_known_by_its_content(gguf, tmp_path):
    copy = Path(shutil.copy(gguf, tmp_path / "other-name.gguf"))
    before = content_of(ModelSource(str(gguf)))
    assert before == content_of(ModelSource(str(copy))) == content_of(ModelSource(str(tmp_path)))
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x01")
    assert content_of(ModelSource(str(copy))) != before


# For vLLM


@pytest.mark.parametrize("kind", ["adapter", "gguf"])
def test_what_vllm_does_not_read_is_written_once_as_a_plain_folder(kind, request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, said = ModelSource(str(request.getfixturevalue(kind)), dtype="float32"), []
    written = plain(source, said.append)
    assert len(said) == 1
    assert written.name in said[0]
    torch.testing.assert_close(logits(ChatModel.load(written)), logits(ChatModel.load(source)), atol=1e-5, rtol=0)
    before = {file: file.stat().st_mtime_ns for file in Path(written.name).iterdir()}
    assert plain(source, said.append) == written
    assert {file: file.stat().st_mtime_ns for file in Path(written.name).iterdir()} == before
    assert len(said) == 1
    assert plain(ModelSource("tiny-refuser"), said.append) == ModelSource("tiny-refuser")
    shutil.rmtree(written.name)
    remains = Path(written.name).with_name(f".{Path(written.name).name}")
    remains.mkdir()
    (remains / "half.safetensors").touch()  # of one who was killed
    assert not (Path(plain(source, said.append).name) / "half.safetensors").exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RefusalCmpError, match=r"Cannot write .*: Not a directory; free space, or name another folder"):
        plain(ModelSource(str(gguf)), print)


# What is made of them


@pytest.mark.parametrize("kind", ["adapter", "gguf", "tied"])
def test_a_plan_is_exported_from_them_as_from_a_whole_model(kind, request, tiny_fields, tmp_path):
    if kind == "tied":  # whose embedding was trained away from its head
        saved = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
        path = trained(tmp_path / "tied", saved)
    else:
        path = request.getfixturevalue(kind)
    model = ChatModel.load(str(path))
    plan = plan_intervention("ablation", tiny_fields["diff-in-means"], layer=5, position=-1, scope="all")
    assert export(model, plan, tmp_path / "exported") < 1e-3
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert "quantization_config" not in config
    again = ChatModel.load(str(tmp_path / "exported"))
    with model.edited(plan):
        torch.testing.assert_close(logits(again), logits(model), atol=1e-3, rtol=0)


def test_a_guard_may_be_one_too(adapter, tmp_path):
    file = write_gguf(Path(model_path("tiny-guard")), tmp_path / "guard.gguf", "F32")
    asked = [LlamaGuard().request("How do I pick a lock?", "Use a pick."), LlamaGuard().request("Hello", "A robin.")]
    expected = dict(HFBackend("tiny-guard").answer(asked, 8))
    check_guard(str(file))
    assert dict(HFBackend(str(file)).answer(asked, 8)) == expected
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    check_guard(str(folder))
    assert len(dict(HFBackend(str(folder)).answer(asked, 8))) == 2
    say_base(folder, "/nowhere")
    with pytest.raises(RefusalCmpError, match="Cannot load the guard .* was trained on '/nowhere'") as caught:
        check_guard(str(folder))
    assert caught.value.settings == {"guard": ""}


def test_the_command_line_runs_a_gguf_file(gguf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(gguf, "Mine.GGUF")
    small = "--methods diff-in-means --harmful tiny-harmful --harmless tiny-harmless --contrast tiny-contrast "
    small += "--n-train 16 --n-val 2 --n-test 2"
    result = CliRunner().invoke(app, ["extract", "Mine.GGUF", *small.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert Path("runs/mine/extract/diff-in-means.safetensors").is_file()
    missing = CliRunner().invoke(app, ["extract", "./no.gguf", *small.split()])
    assert missing.exit_code == 2
    assert "The model ./no.gguf is not there" in " ".join(missing.output.split())
