"""Tiny random-weight models of every decoder family that people bring, and docs/models.md made from them.

    python -m tests.support.architectures     # writes docs/models.md

A family is a configuration of its own class with a few small numbers. Weights are drawn here, for transformers leaves
some at zero or one: a gate that is shut, or a scale that does nothing, would prove nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from refusal_cmp.config import EMBEDDED
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.model.blocks import Block, find_blocks
from refusal_cmp.model.hooks import after, installed
from refusal_cmp.model.loading import auto_class

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}
HEAD: dict[str, Any] = {**LLAMA, "head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    **EXPERTS, "intermediate_size": 48, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A model family: its configuration, and what a reader should know about it."""

    name: str
    model_type: str
    settings: dict[str, Any]
    note: str = ""
    nested: dict[str, Any] | None = None
    """Settings of the text model where it is a part of a multimodal one; `settings` are then the whole's."""

    @property
    def key(self) -> str:
        """The family's name as a test's id and a folder."""
        return self.name.lower().replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")


def _family(name: str, model_type: str, note: str = "", **settings: Any) -> Family:
    return Family(name, model_type, {**SIZES, **settings}, note)


def _wrapper(name: str, model_type: str, text: dict[str, Any], note: str, **settings: Any) -> Family:
    return Family(name, model_type, settings, note, nested={**SIZES, **text})


REQUIRED = (
    _family("Llama", "llama", **LLAMA),
    _family("Mistral", "mistral", "sliding window", **LLAMA, sliding_window=8),
    _family("Mixtral", "mixtral", "mixture of experts", **LLAMA, num_local_experts=4, num_experts_per_tok=2),
    _family("Qwen2", "qwen2", **LLAMA),
    _family(
        "Qwen2-MoE", "qwen2_moe", "mixture of experts with a shared one", **LLAMA, **EXPERTS, num_experts=4,
        shared_expert_intermediate_size=24,
    ),
    _family("Qwen3", "qwen3", "rendered with `enable_thinking=False`", **HEAD),
    _family("Qwen3-MoE", "qwen3_moe", "mixture of experts", **HEAD, **EXPERTS, num_experts=4),
    _family("Gemma", "gemma", "its template refuses a system prompt", **HEAD),
    _family("Gemma-2", "gemma2", "sliding window; its template refuses a system prompt", **HEAD, **SLIDING),
    _family("Gemma-3 (text)", "gemma3_text", "sliding window, rotary embeddings by layer", **HEAD, **SLIDING),
    _wrapper(
        "Gemma-3 (multimodal)", "gemma3", {**HEAD, **SLIDING}, "the language model inside; text only",
        vision_config=VISION, mm_tokens_per_image=4, image_token_index=5, boi_token_index=6, eoi_token_index=7,
    ),
    _family("Phi-3", "phi3", **LLAMA),
    _family("OLMo-2", "olmo2", **LLAMA),
    _family("Cohere", "cohere", **LLAMA, logit_scale=1.0),
    _family("Cohere2", "cohere2", "sliding window", **HEAD, **SLIDING, logit_scale=1.0),
    _family("GPT-NeoX", "gpt_neox", intermediate_size=48),
    _family("GPT-NeoX (sequential)", "gpt_neox", intermediate_size=48, use_parallel_residual=False),
    _family("GPT-2", "gpt2", n_positions=256),
    _family("Falcon", "falcon", "7B", new_decoder_architecture=False),
    _family(
        "Falcon (new decoder)", "falcon", "40B: a norm each", new_decoder_architecture=True, num_kv_heads=2,
    ),
    _family(
        "Falcon (sequential, ALiBi)", "falcon", "RW", new_decoder_architecture=False, parallel_attn=False, alibi=True,
        multi_query=False,
    ),
    _family("StableLM", "stablelm", **LLAMA),
    _family("StableLM (parallel)", "stablelm", **LLAMA, use_parallel_residual=True, qk_layernorm=True),
    _family("Granite", "granite", **LLAMA, residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=2.0),
    _family("DeepSeek-V2", "deepseek_v2", "latent attention, mixture of experts with a shared one", **LATENT),
    _family("DeepSeek-V3", "deepseek_v3", "latent attention, mixture of experts with a shared one", **LATENT),
    _family(
        "gpt-oss", "gpt_oss",
        "mixture of experts; its template opens no answer channel, so `--chat-template` should",
        **HEAD, **SLIDING, num_local_experts=4, num_experts_per_tok=2,
    ),
)  # fmt: skip

EXTRAS = (
    _family("Llama-4 (text)", "llama4_text", "mixture of experts, chunked attention", **HEAD, intermediate_size_mlp=48,
            num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=2, attention_chunk_size=8),
    _family(
        "Qwen3-Next", "qwen3_next", "linear attention in three of four blocks, mixture of experts", **HEAD, **EXPERTS,
        num_experts=4, shared_expert_intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    _family(
        "Gemma-4 (text)", "gemma4_text",
        "every block scales the stream (in this matrix by 0.9) and adds an embedding of the token; blocks share keys "
        "and values, so no pass starts in the middle", **HEAD, **SLIDING, global_head_dim=8, num_kv_shared_layers=1,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=2048,
    ),
    _family("Granite-MoE (shared expert)", "granitemoeshared", "mixture of experts and an MLP beside it", **LLAMA,
            num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=24, residual_multiplier=0.22),
    _family("GLM-4", "glm4", **HEAD),
    _family("GLM-4-MoE", "glm4_moe", "mixture of experts", **HEAD, **EXPERTS, n_routed_experts=4, n_shared_experts=1,
            n_group=1, topk_group=1, first_k_dense_replace=1),
    _family("Phi", "phi", **LLAMA),
    _family("Phi-3.5-MoE", "phimoe", "mixture of experts", **LLAMA, num_local_experts=4, num_experts_per_tok=2),
    _family("SmolLM3", "smollm3", "rendered with `enable_thinking=False`", **LLAMA),
    _family("OLMo", "olmo", **LLAMA),
    _family("OLMo-3", "olmo3", "sliding window", **LLAMA, **SLIDING),
    _family("OLMoE", "olmoe", "mixture of experts", **LLAMA, num_experts=4, num_experts_per_tok=2),
    _family("Nemotron", "nemotron", **HEAD),
    _family("Starcoder2", "starcoder2", **LLAMA),
    _family("EXAONE-4", "exaone4", **LLAMA, **SLIDING),
    _family("ERNIE-4.5", "ernie4_5", **HEAD),
    _family("Seed-OSS", "seed_oss", **HEAD),
    _family("MiniCPM3", "minicpm3", "latent attention", **LATENT),
    _family("OPT", "opt", ffn_dim=48, word_embed_proj_dim=32),
    _family("Bloom", "bloom"),
    _family("MPT", "mpt", n_layers=3, n_heads=4, d_model=32, max_seq_len=256),
    _family("GPT-J", "gptj", rotary_dim=8, n_positions=256),
    _family("Jamba", "jamba", "Mamba in most blocks, mixture of experts", **LLAMA, num_experts=4,
            num_experts_per_tok=2, use_mamba_kernels=False, attn_layer_period=3, attn_layer_offset=1,
            mamba_d_state=4, mamba_dt_rank=4),
    _family("LFM2", "lfm2", "convolution in most blocks", **LLAMA, layer_types=["conv", "full_attention", "conv"]),
    _wrapper("Mistral-3 (multimodal)", "mistral3", {**HEAD, "model_type": "mistral"},
             "the language model inside; text only",
             vision_config={**VISION, "model_type": "pixtral", "head_dim": 8}, image_token_index=5),
    _wrapper("LLaVA", "llava", {**LLAMA, "model_type": "llama"}, "the language model inside; text only",
             vision_config={**VISION, "model_type": "clip_vision_model"}, image_token_index=5),
    _wrapper("Qwen2.5-VL", "qwen2_5_vl",
             {**LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}},
             "the language model inside; text only",
             vision_config={"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
                            "out_hidden_size": 32}),
)  # fmt: skip

REFUSED = (
    _family("Mamba", "mamba", "no attention"),
    _family("Nemotron-H", "nemotron_h", "a block is attention or MLP, not both", **HEAD, mamba_num_heads=8,
            mamba_head_dim=8, hybrid_override_pattern="M*-", ssm_state_size=4, n_groups=2),
    _family("MiniMax-Text", "minimax", "the stream goes on from a norm", **HEAD, num_local_experts=4,
            num_experts_per_tok=2, layer_types=["linear_attention", "full_attention", "linear_attention"]),
    _family("Falcon-H1", "falcon_h1", "attention and Mamba side by side, each with a scale of its own", **HEAD,
            mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, ssm_out_multiplier=0.5,
            attention_out_multiplier=0.8),
    _family("Doge", "doge", "a learned scale for each channel of the stream", **LLAMA),
    _family("OPT-350m", "opt", "norms on the stream itself", ffn_dim=48, word_embed_proj_dim=32,
            do_layer_norm_before=False),
    _family("GPT-1", "openai-gpt", "norms on the stream itself", n_positions=256),
    _family("Gemma-3n", "gemma3n_text", "four streams side by side", **HEAD, num_kv_shared_layers=0,
            layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=8,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=2048, laurel_rank=4,
            activation_sparsity_pattern=[0.0, 0.0, 0.0]),
)  # fmt: skip

SUPPORTED = REQUIRED + EXTRAS


def build(family: Family) -> PreTrainedModel:
    """The family's model with random weights, float32."""
    transformers.logging.set_verbosity_error()
    settings = dict(family.settings)
    if family.nested is not None:
        settings["text_config"] = dict(family.nested)
    config = AutoConfig.for_model(family.model_type, **settings)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto_class(config).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.9)
    return model


@cache
def tokenizer() -> Any:
    """The embedded model's, with its chat template."""
    return AutoTokenizer.from_pretrained(model_path(EMBEDDED))


def chat_model(family: Family) -> ChatModel:
    """The family's model as refusal-cmp sees it."""
    return ChatModel(build(family), tokenizer(), family.key)


def norm_placement(block: Block) -> str:
    """`before` what is written, `after` it, or `both` (sandwich)."""
    norms = {name for name, module in block.module.named_children() if "norm" in type(module).__name__.lower()}
    if not norms & set(block.names):
        return "before"
    return "after" if norms <= set(block.names) else "both"


def is_parallel(model: nn.Module, block: Block) -> bool:
    """Whether the MLP does not see what attention writes: seen by changing that."""
    ids = torch.arange(8)[None]

    def mlp_output(*handles: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        reading = after(block.mlp_out, lambda x: seen.append(x.clone()))
        with torch.inference_mode(), installed([reading, *handles]):
            model(input_ids=ids, use_cache=False)
        return seen[0]

    changed = mlp_output(after(block.attn_out, lambda x: x.flip(-1)))
    return torch.equal(mlp_output(), changed)


def document() -> str:
    """docs/models.md: what the families' tiny models show."""
    rows = ["| family | `model_type` | attn_out | mlp_out | norms | scale | notes |", "|---|---|---|---|---|---|---|"]
    for family in SUPPORTED:
        model = build(family)
        blocks = find_blocks(model)
        attention = ", ".join(dict.fromkeys(f"`{block.names[0]}`" for block in blocks))
        mlp = ", ".join(dict.fromkeys(" + ".join(f"`{name}`" for name in block.names[1:]) for block in blocks))
        notes = ["parallel attention"] if is_parallel(model, blocks[0]) else []
        notes += [family.note] if family.note else []
        rows.append(
            f"| {family.name} | `{family.model_type}` | {attention} | {mlp} | {norm_placement(blocks[0])} "
            f"| {blocks[0].scale:.3g} | {'; '.join(notes)} |"
        )
    refused = ["| family | `model_type` | why | what is said |", "|---|---|---|---|"]
    for family in REFUSED:
        try:
            find_blocks(build(family))
        except RefusalCmpError as error:
            refused.append(f"| {family.name} | `{family.model_type}` | {family.note} | {error} |")
    return INTRODUCTION + "\n".join(rows) + REFUSED_HEADING + "\n".join(refused) + CHOICES


INTRODUCTION = """\
# Models

Generated by `python -m tests.support.architectures` from the architecture matrix, of which every family is a tiny
model with random weights; do not edit. No list of architectures decides what runs: blocks and sites are found in the
model itself (`refusal_cmp/model/blocks.py`), so a family that is not here works if it fits, and is refused with what
was looked for if it does not.

For every family below the tests show that

- the residual stream on entry to every block is that on entry to the first plus everything that `attn_out` and
  `mlp_out` wrote before it, times the scale;
- a direction that is ablated everywhere has no component left on entry to the final norm;
- a pass that starts at any block equals the full pass;
- left padding changes no logits and no completion;
- extract, select, infer and evaluate run, from a saved folder.

## Supported

attn_out and mlp_out are the modules in a block whose outputs are added to the residual stream. Norms: before what is
written, after it, or both (sandwich); where there is one after, its output is the site.

"""
REFUSED_HEADING = """

## Refused

"""
CHOICES = """

## Chat templates

- A template is rendered with `enable_thinking=False` and `thinking=False`, which those that know the words (Qwen3,
  SmolLM3, GLM-4.5, …) take to leave no room for a chain of thought: refusal is read at the first token of the answer.
  What they then put behind the user's text, such as an empty thought, belongs to the post-instruction tokens. For a
  model that always opens a thought or a channel first (gpt-oss, some reasoning models), give a template that ends
  where the answer begins by `--chat-template FILE`.
- `--system TEXT` needs a template with a place for it; one that raises an error (Gemma, Gemma-2) or leaves the text out
  is refused before any work.
- A template that takes the content of a message as a list of parts, as many multimodal ones do, gets it so.
- Two come with us, for published work to be repeated: `--chat-template qwen-1`, as some Qwen-1 repositories have none,
  and `--chat-template llama-2`, whose prompt ends in a space, a post-instruction token more than in Llama-2's own.
- A template is a program, and may fail at some prompts only: whatever it dies of is said with the prompt that it dies
  at, before any work, and it may take two seconds for one. Control tokens of the vocabulary that it writes have to be
  read as such by the tokenizer; prompts that hold some (`<|im_end|>`) are counted, with a warning.
- A prompt longer than the model's context is refused, and so is one that leaves no room for `--max-new-tokens` where
  positions are not rotary. The answers of rotary models may run on beyond it. Of a run's prompt sets, and of texts that
  answer prompts, such prompts are left out; a run says how many, and `prompts.json` counts them.

## Large models

`--device auto` takes the first GPU, and for a model whose weights would fill more than 80 % of its free memory all
GPUs and then the CPU, as accelerate places them; weights are bfloat16 on a GPU unless `--dtype` says otherwise.
`--quantization 8bit` or `4bit` needs bitsandbytes. `--revision` names a branch, tag or commit; the run keeps the commit
that it stood for, when the branch moves and when the hub is away. Code that comes with a model runs only with
`--trust-remote-code`.

A weight that a model's files lack or that has another shape is an error, as no random number takes its place.

## Models as people have them

- **A GGUF file**, `refusal-cmp run model.gguf`, or a folder with one: unpacked by transformers to plain weights, with
  the tokenizer and the chat template that it holds; nothing beside it is read. Llama-3's scaled positions are those of
  llama.cpp; others that are scaled are refused, and so is one part of a split file.
- **An adapter** of PEFT, a folder or on the hub: merged into its base, in the precision of the run. The base is a
  Hugging Face id, a GGUF file, or a folder, also one relative to the adapter or to where one works. Tokenizer and
  template are the adapter's if it has them. What is no change of weights (prompt and prefix tuning), does not fit its
  base, or has a quantised one is refused.
- **A quantised checkpoint**: as transformers reads it here; what it lacks is named. Edits act on its stream. A plan is
  exported where the weights were unpacked (fp8 and mxfp4 without a GPU for them), and refused where they stay packed.
- **A folder with `.bin` weights only** is refused, as a pickle can run code when it is read; the message says how to
  convert it. So is one in Mistral's own format (`params.json`); its `tekken.json` beside a `config.json` is read.

The guard may be any of these too. vLLM reads a GGUF file or an adapter as a plain folder, which is written once, to
`~/.cache/refusal-cmp/models` (or under `$XDG_CACHE_HOME`).

A model is its content, whatever it is called: of a folder or a file its bytes, of an adapter also those of its base,
and on the hub the commit. With others at the same place the run stops.

A template that asks for the day (`strftime_now`) is told 26 July 2024, at every run, by every evaluator and guard, so
that its prompts stay the same bytes; `--date 2025-02-03` tells another, and the manifest has it.
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
