"""Sites are found and proven in vLLM's own decoder layers: random-weight models of many architectures."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal_cmp.data import DATASETS
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines.vllm import VLLMEngine
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.plan import Place, Plan, baseline

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": 2048, "n_embd": 64, "n_head": 2, "n_layer": 3, "n_positions": 256, "initializer_range": 0.2}
GEMMA = {"tie_word_embeddings": True, "initializer_range": 0.05, "query_pre_attn_scalar": 32}
GRANITE = {"residual_multiplier": 0.22, "embedding_multiplier": 3.0, "attention_multiplier": 0.1, "logits_scaling": 2.0}
COHERE = {"tie_word_embeddings": True, "initializer_range": 0.05, "logit_scale": 1.0}

MODELS = {
    "Llama": SHAPE,
    "Mistral": SHAPE,
    "Qwen2": SHAPE,
    "Qwen3": SHAPE,
    "Gemma2": SHAPE | GEMMA,  # sandwich norms
    "Granite": SHAPE | GRANITE,  # scales what it adds, and hands on the stream alone
    "StableLm": SHAPE,  # hands on the stream beside a residual that is not to be added
    "Cohere": SHAPE | COHERE,  # parallel attention
    "GPT2": GPT2,
    "GPTNeoX": SHAPE,  # vLLM runs transformers' own blocks
}
SITES = ("resid_pre", "attn_out", "mlp_out")


@pytest.mark.parametrize("name", MODELS)
def test_completions_are_those_of_the_hooked_model(name, tmp_path, monkeypatch):
    """Eager and traced, for an edit at each kind of site, everywhere and at one layer; and the baseline at the end."""
    chat = random_chat(name, tmp_path)
    prompts = [prompt.instruction for prompt in DATASETS.get("tiny-harmful")("test")[:12]]
    generator = torch.Generator().manual_seed(1)
    V = torch.linalg.qr(torch.randn(chat.d_model, 2, generator=generator))[0].mT.contiguous()
    project, mirror = LowRankEdit(V=V, A=-V), LowRankEdit(V=V, A=-2 * V)
    plans = [
        baseline(),
        Plan("everywhere", {Place(layer, site): project for layer in range(chat.n_layers) for site in SITES}),
        *(Plan(site, {Place(1, site): mirror}) for site in SITES),
        Plan("absolute", {Place(2, "resid_pre"): LowRankEdit(V=V, A=-V, B=-V, t=V[:, 0], b=V[0])}),
        Plan("constant", {Place(0, "resid_pre"): LowRankEdit(b=3 * V[0])}),
        baseline(),
    ]
    expected = []
    for plan in plans:  # all of them first: vLLM changes transformers' classes in this process
        with chat.edited(plan):
            expected.append(chat.generate(prompts, max_new_tokens=12))
    assert all(one != expected[0] for one in expected[1:-1])
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # traced as ever, and run as traced: Inductor would take a minute
    for eager in (True, False):
        engine = VLLMEngine(ModelSource(str(tmp_path)), chat, eager=eager)
        try:
            assert engine.versions()["vllm"].endswith("eager" if eager else "compiled")
            for plan, completions in zip(plans, expected, strict=True):
                assert engine.generate(plan, prompts, 12) == completions, plan.label
        finally:
            engine.close()


def random_chat(name, folder):
    """A random-weight model with the embedded tokenizer, saved in the folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODELS[name], bos_token_id=1, eos_token_id=1, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).float()
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases that do nothing would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-refuser"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ChatModel(model, tokenizer, name)
