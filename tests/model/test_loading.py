"""What comes with a model: templates, system prompts, refusal tokens, code of its own, several devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refusal_cmp.api import plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.data import Document
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, loading
from refusal_cmp.model.chat_model import _on_its_device
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session

from support.models import TEMPLATE, instructions, with_own_code, word_tokenizer

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DEAF = TEMPLATE.replace("in messages %}", "in messages if m['role'] == 'user' %}")
PARTS = TEMPLATE.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part.text }}{% endfor %}")
THINKING = (
    TEMPLATE + "{% if add_generation_prompt %} {% if enable_thinking is defined and enable_thinking is false %}"
    "one two {% else %}one {% endif %}{% endif %}"
)


def chat(random_model, template: str, system: str | None = None) -> ChatModel:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return ChatModel(random_model.model, tokenizer, "random", system=system)


@pytest.mark.parametrize(("template", "reason"), [(NO_SYSTEM + TEMPLATE, "System role not supported"), (DEAF, "out")])
def test_a_template_without_a_place_for_a_system_prompt_is_refused(random_model, template, reason):
    assert chat(random_model, template).render("one")
    with pytest.raises(RefusalCmpError, match=f"takes no system prompt .*{reason}") as caught:
        chat(random_model, template, system="two cow")
    assert caught.value.settings == {"system": "", "chat_template": "FILE"}


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m['content'] }}", "hello", "{{ messages + 1 }}"])
def test_a_broken_template_is_one_sentence(random_model, template, tmp_path):
    with pytest.raises(RefusalCmpError, match="give another") as caught:
        chat(random_model, template)
    assert caught.value.settings == {"chat_template": "FILE"}
    file = tmp_path / "template.jinja"
    file.write_text(template)
    config = load_config(None, {"chat_template": str(file)})
    with pytest.raises(RefusalCmpError, match="chat template of tiny-refuser does not work"):
        _ = Session(config, RunDir(tmp_path / "run")).model


def test_another_template_is_used(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[-1]['content'] }}\nAnswer:\n")  # an editor's last line end is no part of it
    model = Session(load_config(None, {"chat_template": str(file)}), RunDir(tmp_path / "run")).model
    assert model.render("Name a bird.") == "Name a bird.\nAnswer:"


@pytest.mark.parametrize(
    ("name", "prompt", "with_system", "answered"),
    [
        ("llama-2", "<s>[INST] one [/INST] ", "<s>[INST] <<SYS>>\ntwo\n<</SYS>>\n\none [/INST] ", "three</s>"),
        (
            "qwen-1",
            "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\ntwo<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
            "three<|im_end|>\n",
        ),
    ],
)
def test_templates_that_come_with_us_write_as_the_published_work_did(random_model, name, prompt, with_system, answered):
    """Llama-2's prompt ends in a space, Qwen-1's has no system prompt that nobody gave."""
    template = Session(load_config(None, {"chat_template": name}), RunDir(Path("run"))).source.chat_template
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.chat_template = template
    assert ChatModel(random_model.model, tokenizer, "random").render("one") == prompt
    assert ChatModel(random_model.model, tokenizer, "random", system="two").render("one") == with_system
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "three"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == prompt + answered


def test_content_in_parts_is_given_to_templates_that_take_it_so(random_model):
    assert chat(random_model, PARTS, "two").render("one cow") == chat(random_model, TEMPLATE, "two").render("one cow")


def test_a_chain_of_thought_is_closed_before_the_answer(random_model):
    model = chat(random_model, THINKING)
    assert model.render("cow").endswith("<assistant> : one two ")
    assert len(model.positions) == 5


def test_refusal_tokens_include_openers_behind_a_space():
    """Of a tokenizer that marks a word's beginning, as Llama-2's, behind a template that does not end in a space."""
    words = ["<unk>", "<s>", "▁I", "I", "▁cannot", "▁As", "▁Sorry", "▁[", "/", "]"]
    letters = "▁abcdefghijklmnopqrstuvwxyzANSU'W+2?"
    pieces = [(word, -1.0) for word in words] + [(letter, -9.0) for letter in letters]
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }} [/]"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    candidates = ChatModel(LlamaForCausalLM(config), tokenizer, "metaspace").refusal_candidates()
    assert {tokenizer.convert_tokens_to_ids(word) for word in ("▁I", "▁As", "▁Sorry")} <= set(candidates)


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    """The embedded model with two of its blocks on disk: accelerate brings their weights for each pass."""
    model = ChatModel.load()
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{layer}": "disk" if layer in (3, 4) else "cpu" for layer in range(model.n_layers)}
    dispatched = dispatch_model(model.model, places, main_device="cpu", offload_dir=tmp_path_factory.mktemp("offload"))
    return ChatModel(dispatched, model.tokenizer, "offloaded")


def test_a_dispatched_model_gives_the_same_numbers(tiny, tiny_fields, offloaded):
    assert next(offloaded.blocks[3].module.parameters()).is_meta
    batch = tiny.batch(tiny.tokenize(instructions("tiny-harmful", "test", 3)))
    plan = plan_intervention("nullspace", tiny_fields["inlp"], layer=4, scope="all")
    with torch.inference_mode():
        full, streams = tiny.last_logits(batch), offloaded.streams(batch)
        assert torch.equal(offloaded.last_logits(batch), full)
        for layer in (2, 4, 6):
            with offloaded.resumed(layer, streams[layer]):
                assert torch.equal(offloaded.last_logits(batch), full)
        assert torch.equal(offloaded.last_logits(batch), full)
        with tiny.edited(plan), offloaded.edited(plan):
            assert torch.equal(offloaded.last_logits(batch), tiny.last_logits(batch))
    assert offloaded.device == torch.device("cpu")
    assert offloaded.generate(["Name a bird."], max_new_tokens=4) == tiny.generate(["Name a bird."], max_new_tokens=4)


def test_an_edit_follows_the_stream_to_its_device():
    apply = _on_its_device(LowRankEdit(b=torch.ones(4)), torch.float32)
    assert apply(torch.zeros(1, 2, 4)).device == torch.device("cpu")
    assert apply(torch.zeros(1, 2, 4, device="meta")).device == torch.device("meta")


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(RefusalCmpError, match=f"no device '{device}' here; give one of auto, cpu"):
        ChatModel.load(device=device)


@pytest.mark.parametrize(("free", "placed"), [(1000, {"": 0}), (100, {"": 0}), (99, "auto")])
def test_a_model_that_does_not_fit_one_gpu_is_placed_by_accelerate(monkeypatch, free, placed):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10_000))
    assert loading._placement(80.0) == placed


def test_the_size_of_the_weights_is_known_before_they_are_loaded(tiny):
    size = sum(parameter.numel() * 2 for parameter in tiny.model.parameters())
    assert loading._size(tiny.model.config, torch.bfloat16, trust_remote_code=False) == size


@pytest.mark.parametrize("flags", [{"quantization": "4bit"}, {"quantization": "8bit"}])
def test_quantization_without_bitsandbytes_is_one_sentence(monkeypatch, flags):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(RefusalCmpError, match="needs the package bitsandbytes"):
        ChatModel.load(**flags)


def test_code_that_comes_with_a_model_is_run_only_on_request(tmp_path, code_cache):
    folder = with_own_code(tmp_path / "model")
    with pytest.raises(RefusalCmpError, match="brings Python code of its own") as caught:
        ChatModel.load(str(folder))
    assert caught.value.settings == {"trust_remote_code": ""}
    assert type(ChatModel.load(str(folder), trust_remote_code=True).model).__name__ == "OwnModel"


def passing(*taken: str, also: str = "", then: str = "") -> str:
    """A forward pass that takes these and no more, as code that is older than transformers' own does."""
    given = ", ".join(f"{name}={name}" for name in taken)
    parameters = ", ".join(f"{name}=None" for name in taken)
    body = f"        out = super().forward({given})\n{then}        return out\n"
    return f"    def forward(self, {parameters}{also}):\n{body}"


OLD = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache")
AS_TUPLES = "        out.past_key_values = tuple((one.keys, one.values) for one in out.past_key_values.layers)\n"


@pytest.mark.parametrize("also", ["", ", num_logits_to_keep=0"])
def test_code_that_makes_all_logits_gives_the_same_ones(tiny, tmp_path, code_cache, also):
    own = ChatModel.load(str(with_own_code(tmp_path / "model", passing(*OLD, also=also))), trust_remote_code=True)
    prompts = instructions("tiny-harmful", "test", 3)
    documents = [Document(text) for text in prompts]
    assert own.generate(prompts, max_new_tokens=12) == tiny.generate(prompts, max_new_tokens=12)
    totals = [[one.total for one in losses(model, [encode(model, one) for one in documents])] for model in (own, tiny)]
    assert totals[0] == pytest.approx(totals[1])
    torch.testing.assert_close(
        own.refusal_metrics(prompts, (5, 6)), tiny.refusal_metrics(prompts, (5, 6)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (passing("input_ids", "attention_mask", "past_key_values", "use_cache"), "takes no position_ids in a forward"),
        (passing("input_ids"), "takes no attention_mask, position_ids, past_key_values, use_cache in"),
        (
            passing(*OLD[:3], also=", past_key_values=None, use_cache=None").replace("ids)", "ids, use_cache=False)"),
            "no cache",
        ),
        (passing(*OLD, then=AS_TUPLES), "returns no cache of keys and values as transformers has them"),
        (passing(*OLD, then="        out = out.to_tuple()\n"), "does not run .AttributeError"),
        (passing(*OLD, then="        raise ZeroDivisionError('mine')\n"), "does not run .ZeroDivisionError: mine"),
        ("    def __init__(self, config):\n        raise ZeroDivisionError('mine')\n", "read .ZeroDivisionError: mine"),
    ],
)
def test_code_that_does_not_do_as_transformers_does_is_refused_before_any_work(tmp_path, code_cache, forward, why):
    with pytest.raises(RefusalCmpError, match=why):
        ChatModel.load(str(with_own_code(tmp_path / "model", forward)), trust_remote_code=True)
