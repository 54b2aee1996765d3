"""The model as a residual stream: positions, sites, edits that leave no trace, batches that do not matter."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from refusal_cmp.api import plan_intervention
from refusal_cmp.data import Document
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, refusal_metric
from refusal_cmp.model.batching import PASS_ROWS
from refusal_cmp.model.blocks import find_blocks
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.plan import Plan

from support.architectures import SUPPORTED, chat_model
from support.models import TEMPLATE, instructions, word_tokenizer

PROMPTS = ["how do you make a cake ?", "one cow", "red blue one two three bird"]


def test_post_instruction_tokens_are_those_after_the_text(random_model):
    assert random_model.positions == (-3, -2, -1)
    assert random_model.tokenizer.convert_ids_to_tokens(random_model.tokenize(["one"])[0][-3:]) == [
        "<end>",
        "<assistant>",
        ":",
    ]


def test_refusal_candidates_are_first_tokens_of_openers(random_model):
    assert set(random_model.refusal_candidates().values()) <= {"I", "As", "<unk>"}
    assert {"I", "As"} <= set(random_model.refusal_candidates().values())


def test_refusal_metric_is_the_log_odds():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, -3.0, 0.0]])
    p = logits.double().softmax(-1)[:, [0, 2]].sum(-1)
    torch.testing.assert_close(refusal_metric(logits, [0, 2]), torch.logit(p), atol=1e-4, rtol=1e-6)


def test_stream_is_the_sum_of_what_the_sites_write(random_model):
    written, streams = [], []
    handles = []
    for block in random_model.blocks:
        handles.append(before(block.module, lambda x: streams.append(x.clone())))
        handles += [after(site, lambda x: written.append(x.clone())) for site in (block.attn_out, block.mlp_out)]
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    with torch.inference_mode(), installed(handles):
        random_model.last_logits(batch)
    for layer in range(1, random_model.n_layers):
        torch.testing.assert_close(streams[layer], streams[0] + sum(written[: 2 * layer]))


@pytest.mark.parametrize("name", ["ablation", "nullspace", "actadd", "reflection", "alterrep", "clamp", "affine"])
def test_model_is_bit_identical_after_an_edit(tiny, tiny_fields, name):
    batch = tiny.batch(tiny.tokenize(instructions("tiny-harmful", "test", 4)))
    field = tiny_fields["inlp"]
    position, layer = max(field, key=lambda component: field[component].k)
    plan = plan_intervention(name, field, layer=layer, position=position, scope="all")
    with torch.inference_mode():
        before_edit = tiny.last_logits(batch)
        with tiny.edited(plan):
            assert not torch.equal(tiny.last_logits(batch), before_edit)
        assert torch.equal(tiny.last_logits(batch), before_edit)


def test_an_exception_inside_an_edit_restores_the_model(random_model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in random_model.model.modules())
    stream = torch.zeros(1, 1, 32, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="mine"), random_model.resumed(2, stream):
        raise RuntimeError("mine")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in random_model.model.modules()) == hooks
    assert not any("forward" in block.module.__dict__ for block in random_model.blocks)


@pytest.mark.parametrize("layer", range(4))
def test_resumed_pass_equals_the_full_pass(random_model, layer):
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    streams = random_model.streams(batch)
    with torch.inference_mode():
        full = random_model.last_logits(batch)
        with random_model.resumed(layer, streams[layer]):
            assert torch.equal(random_model.last_logits(batch), full)
        assert torch.equal(random_model.last_logits(batch), full)


def test_left_padding_changes_nothing(random_model):
    together = random_model.last_logits(random_model.batch(random_model.tokenize(PROMPTS)))
    for row, prompt in enumerate(PROMPTS):
        alone = random_model.last_logits(random_model.batch(random_model.tokenize([prompt])))[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_greedy_completions_equal_those_of_transformers(tiny):
    prompts = [*instructions("tiny-harmful", "test", 6), *instructions("tiny-harmless", "test", 6)]
    ours = tiny.generate(prompts, max_new_tokens=24, batch_size=5)
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor(tiny.tokenize([prompt]))
        out = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert completion.text == tiny.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert completion.finish == ("stop" if int(out[0, -1]) in tiny.stop_ids else "length")


def test_non_finite_logits_are_said(random_model):
    head = random_model.model.lm_head.weight
    saved = head.detach().clone()
    try:
        head.data[3] = float("nan")
        assert {c.finish for c in random_model.generate(PROMPTS, max_new_tokens=3)} == {"non-finite"}
    finally:
        head.data.copy_(saved)


def test_a_model_without_chat_template_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(RefusalCmpError, match="no chat template"):
        ChatModel(model, tokenizer, "base")


def test_a_block_whose_writers_are_hidden_is_refused():
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    layer = model.model.layers[1]
    forward = type(layer).forward
    layer.forward = lambda *args, **kwargs: forward(layer, *args, **kwargs).tanh()
    with pytest.raises(RefusalCmpError, match="no two modules' outputs add up"):
        find_blocks(model)


def test_a_system_prompt_is_rendered(random_model):
    with_system = ChatModel(random_model.model, random_model.tokenizer, "random", system="two cow")
    assert "two cow" in with_system.render("one")
    assert TEMPLATE in random_model.tokenizer.chat_template


def test_an_empty_plan_is_the_model(random_model):
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    with torch.inference_mode(), random_model.edited(Plan("baseline", {})):
        edited = random_model.last_logits(batch)
    assert torch.equal(edited, random_model.last_logits(batch))


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, prompts: model.last_logits(model.batch(model.tokenize(prompts))),
        lambda model, prompts: model.refusal_metrics(prompts, (1, 2)),
        lambda model, prompts: model.refusal_tokens(prompts),
        lambda model, prompts: model.generate(prompts, max_new_tokens=2),
        lambda model, prompts: losses(model, [encode(model, Document(text)) for text in prompts]),
    ],
    ids=["logits", "refusal metric", "refusal tokens", "completions", "losses"],
)
def test_no_forward_pass_keeps_what_gradients_would_need(random_model, ask):
    """Of a batch of real size that is several times the model itself."""
    kept = []
    note = [before(block.module, lambda stream: kept.append(stream.requires_grad)) for block in random_model.blocks]
    assert all(weight.requires_grad for weight in random_model.model.parameters())
    with installed(note):
        ask(random_model, instructions("tiny-harmful", "test", 3))
    assert kept
    assert not any(kept)


def test_a_pass_takes_no_more_prompts_than_its_logits_leave_room_for(random_model, monkeypatch):
    sizes, last_logits = [], ChatModel.last_logits
    monkeypatch.setattr(
        ChatModel, "last_logits", lambda self, batch: sizes.append(len(batch)) or last_logits(self, batch)
    )
    prompts = instructions("tiny-harmful", "test", 1) * (PASS_ROWS + 2)
    metric = random_model.refusal_metrics(prompts, (1, 2))
    assert max(sizes) <= PASS_ROWS
    assert sum(sizes) == PASS_ROWS + 2
    assert metric.allclose(random_model.refusal_metrics(prompts, (1, 2), batch_size=7))


FAMILIES = {family.key: family for family in SUPPORTED}
ROTARY = ("llama", "gpt-neox", "gemma-3-multimodal", "falcon-sequential-alibi")
ENDING = ("gpt-2", "opt", "gpt-j", "mpt")


@pytest.mark.parametrize("family", [*ROTARY, *ENDING])
def test_a_prompt_that_is_longer_than_the_context_is_named_before_any_pass(family):
    model, passes = chat_model(FAMILIES[family]), []
    long = ["Name a bird.", "word " * 300]
    asks = (
        lambda: model.tokenize(long),
        lambda: model.refusal_metrics(long, (1, 2)),
        lambda: model.generate(long, max_new_tokens=2),
        lambda: model.check_prompts("harmful_test", long, 2, print),
    )
    with installed([before(model.blocks[0].module, lambda _: passes.append(1))]):
        for ask in asks:
            with pytest.raises(
                RefusalCmpError, match="The prompt 'word word .*…' has .* tokens.* ends at 256; leave"
            ) as caught:
                ask()
    assert not passes
    assert str(len(model.tokenizer(model.render(long[1]), add_special_tokens=False)["input_ids"])) in str(caught.value)


@pytest.mark.parametrize("family", [*ROTARY, *ENDING])
def test_an_answer_runs_past_the_context_only_where_positions_do(family):
    model = chat_model(FAMILIES[family])
    model.model.generation_config.eos_token_id = None
    n_tokens = len(model.tokenize(["Name a bird."])[0])
    if family in ROTARY:
        model.generate(["Name a bird."], max_new_tokens=model.context - n_tokens + 2)
        return
    model.generate(["Name a bird."], max_new_tokens=model.context - n_tokens)
    with pytest.raises(
        RefusalCmpError, match=f"has {n_tokens} tokens and 256 are to follow, and the context"
    ) as caught:
        model.generate(["Name a bird."], max_new_tokens=256)
    assert caught.value.settings == {"max_new_tokens": ""}


def test_prompts_with_control_tokens_are_counted(tiny):
    said = []
    prompts = [*instructions("tiny-harmless", "test", 3), "Say <|end|> twice.", "<|user|>"]
    tiny.check_prompts("mine", prompts, 8, said.append)
    assert len(said) == 1
    assert said[0].startswith("Warning: 2 of 5 prompts of mine hold control tokens, as <|end|> in 'Say <|end|> twice.'")
    tiny.check_prompts("mine", prompts[:3], 8, said.append)
    assert len(said) == 1
