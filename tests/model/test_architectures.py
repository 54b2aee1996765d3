"""The architecture matrix: for every family, the sites are right, edits reach everything, and the pipeline runs."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from refusal_cmp.config import load_config
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import attention
from refusal_cmp.model.blocks import find_blocks
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.plan import Place
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.architectures import DOCUMENT, REFUSED, SUPPORTED, build, chat_model, document

PROMPTS = ["How do I bake a cake?", "Name a bird.", "Write two short lines about a river and the sea, please."]
SITES = ("resid_pre", "attn_out", "mlp_out")
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
WHOLE = {"granite-moe-shared-expert", "gemma-4-text", "bloom", "mpt"}
"""Families whose last block computes all tokens."""


@pytest.fixture(scope="module", params=SUPPORTED, ids=lambda family: family.key)
def model(request):
    """Built once for all tests of a family."""
    return chat_model(request.param)


@pytest.fixture(scope="module")
def batch(model):
    return model.batch(model.tokenize(PROMPTS))


def final_stream(model, batch):
    """What goes into the first module that runs behind the blocks, the final norm, and what the last block returns."""
    inside = {module for block in model.blocks for module in block.module.modules()}
    last = model.blocks[-1].module
    seen: list[torch.Tensor] = []

    def on_entry(module, args, kwargs):
        hidden = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        if len(seen) == 1 and hidden is not None and hidden.shape == seen[0].shape:
            seen.append(hidden.clone())

    handles = [after(last, lambda x: seen.append(x.clone()))]
    handles += [
        module.register_forward_pre_hook(on_entry, with_kwargs=True)
        for module in model.model.modules()
        if module not in inside
    ]
    with torch.inference_mode(), installed(handles):
        model.last_logits(batch)
    assert torch.equal(*seen)
    return seen[1]


def test_every_stream_is_the_sum_of_what_the_sites_wrote(model, batch):
    """stream(l + 1) = c (stream(l) + s (attn_out + mlp_out)), so with c = 1 the entry and all writes so far."""
    streams: list[torch.Tensor] = []
    written: dict[int, torch.Tensor] = {}
    handles = []

    def on_write(layer, x):
        written[layer] = written.get(layer, 0) + x.double().reshape(streams[0].shape)

    for layer, block in enumerate(model.blocks):
        handles.append(before(block.module, lambda x: streams.append(x.double().clone())))
        for site in ("attn_out", "mlp_out"):
            for module in block.writers(site):
                handles.append(after(module, lambda x, layer=layer: on_write(layer, x)))
    with installed(handles):
        streams.append(final_stream(model, batch).double())
    expected = streams[0]
    for layer, block in enumerate(model.blocks):
        expected = block.carry * (expected + block.scale * written[layer])
        torch.testing.assert_close(streams[layer + 1], expected, rtol=1e-5, atol=1e-5)
        assert written[layer].norm() > 0.01 * streams[layer].norm()


def test_ablating_everywhere_leaves_nothing_in_the_final_stream(model, batch):
    direction = torch.nn.functional.normalize(torch.randn(model.d_model, generator=torch.manual_seed(1)), dim=0)[None]
    ablation = LowRankEdit(direction, -direction)
    plan = {Place(layer, site): ablation for layer in range(model.n_layers) for site in SITES}
    untouched = final_stream(model, batch)
    with model.edited(plan):
        edited = final_stream(model, batch)
    scale = untouched.norm(dim=-1).max()
    assert (untouched @ direction[0]).abs().max() > 1e-3 * scale
    assert (edited @ direction[0]).abs().max() < 1e-6 * scale
    assert torch.equal(final_stream(model, batch), untouched)


def test_an_offset_at_a_site_is_what_the_stream_gains(model, batch):
    """The site is the scaled term: Granite's MLP writes 0.22 of its output, and the offset enters the stream whole."""
    block, offset = model.blocks[-1], torch.arange(model.d_model) / model.d_model
    if block.also:
        pytest.skip("a sum of modules takes no offset")
    untouched = final_stream(model, batch)
    with model.edited({Place(model.n_layers - 1, "mlp_out"): LowRankEdit(b=offset)}):
        gained = final_stream(model, batch) - untouched
    torch.testing.assert_close(gained, (block.carry * offset).expand_as(gained), rtol=1e-4, atol=1e-4)


def test_the_last_block_computes_for_the_last_position_what_it_computes_for_all(model, batch, monkeypatch):
    """Under edits of the last block, too, and whether or not what its MLP writes is edited in one place."""
    last = model.n_layers - 1
    rows = torch.nn.functional.normalize(torch.randn(1, model.d_model, generator=torch.manual_seed(1)))
    site = "resid_pre" if len(model.blocks[last].writers("mlp_out")) > 1 else "mlp_out"
    edits = {Place(last, "attn_out"): LowRankEdit(V=rows, A=-rows), Place(last, site): LowRankEdit(b=rows[0])}
    seen, found = [], {}

    def noted(forward, x, *args, **more):
        seen.append(x.shape[:-1].numel())
        return forward(x, *args, **more)

    for module in model.narrow:
        monkeypatch.setattr(module, "forward", partial(noted, module.forward))
    for way, modules in (("narrow", model.narrow), ("whole", ())):
        monkeypatch.setattr(model, "narrow", modules)
        found[way, "plain"] = model.last_logits(batch)
        with model.edited(edits):
            found[way, "edited"] = model.last_logits(batch)
        found[way, "packed"] = torch.cat([model.last_logits(one) for _, one in model.batches(PROMPTS)])
    for kind in ("plain", "edited", "packed"):
        torch.testing.assert_close(found["narrow", kind], found["whole", kind], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["narrow", "plain"], found["narrow", "edited"], rtol=1e-3)
    assert set(seen[: len(model.narrow)]) <= {len(batch)}
    seen.clear()
    block, look = model.blocks[last], lambda *_: None
    for (
        handle
    ) in (  # somebody looks at what leaves the block, at what is written to the stream, or at what is read for it
        lambda: after(block.module, look),
        lambda: block.attn_out.register_forward_hook(look),
        lambda: block.mlp_out.register_forward_pre_hook(look),
    ):
        seen.clear()
        with installed([handle()]):
            model.last_logits(batch)
        assert set(seen) <= {batch.ids.numel()}


def test_a_model_that_was_once_asked_for_hidden_states_computes_as_before(model, batch):
    """transformers leaves hooks on the blocks of such a model."""
    before = model.last_logits(batch)
    with torch.inference_mode():
        states = model.model(**batch.inputs, output_hidden_states=True).hidden_states
    assert len(states) == model.n_layers + 1
    assert torch.equal(model.last_logits(batch), before)


def test_which_families_narrow_is_known(model):
    assert (not model.narrow) == (model.name in WHOLE)


def test_a_pass_from_any_layer_is_the_full_pass(model, batch):
    with torch.inference_mode():
        full, streams = model.last_logits(batch), model.streams(batch)
        for layer in range(model.n_layers):
            with model.resumed(layer, streams[layer]):
                torch.testing.assert_close(model.last_logits(batch), full, rtol=1e-6, atol=1e-6)
            with model.resumed(layer, streams[layer].flip(-1)):
                assert (model.last_logits(batch) - full).abs().max() > 1e-3
        assert torch.equal(model.last_logits(batch), full)
    assert model.starts_anywhere == (model.name != "gemma-4-text")


def test_left_padding_changes_no_logits_and_no_completion(model, batch, monkeypatch):
    with torch.inference_mode():
        together = model.last_logits(batch)
        alone = [model.last_logits(model.batch(model.tokenize([prompt])))[0] for prompt in PROMPTS]
    torch.testing.assert_close(together, torch.stack(alone), **ROUNDING)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", int(together[0].argmax()))  # one leaves early
    completions = model.generate(PROMPTS, max_new_tokens=12, batch_size=3)
    assert completions[0].n_tokens == 0
    assert completions == [model.generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert all(completion.finish != "non-finite" for completion in completions)


def test_prompts_are_understood(model):
    ends = {tuple(ids[-len(model.positions) :]) for ids in model.tokenize(PROMPTS)}
    assert len(ends) == 1
    assert "I" in model.refusal_candidates().values()
    assert model.context >= 256


def test_the_pipeline_runs_on_a_saved_folder(model, tmp_path):
    folder = tmp_path / "model"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    config = load_config(
        None,
        {
            "model": str(folder),
            "harmful": "tiny-harmful",
            "harmless": "tiny-harmless",
            "eval_datasets": "harmful,harmless",
            "filter_prompts": False,
            "limit": 12,
            "n_val": 2,
            "n_test": 2,
            "prune_layers": 1,
            "interventions": "ablation,actadd,reflection",
            "scope": "all",
            "max_new_tokens": 2,
            "evals": "refusal",
            "inlp_max_k": 1,
            "inlp_stop": "0.01",
            "refusal_tokens": "1,2",  # random weights refuse nothing
        },
    )
    session = Session(config, RunDir(tmp_path / "run"))
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    assert (tmp_path / "run" / "results.csv").is_file()
    assert type(session.model.model) is type(model.model)
    batch = model.batch(model.tokenize(PROMPTS))
    with torch.inference_mode():
        torch.testing.assert_close(session.model.last_logits(batch), model.last_logits(batch), **ROUNDING)


def test_the_same_sites_are_found_in_bfloat16_in_a_stream_far_larger_than_what_is_written(model):
    rounded = deepcopy(model.model).to(torch.bfloat16)
    with torch.no_grad():
        rounded.get_input_embeddings().weight[:, :2] += 200
    for exact, block in zip(model.blocks, find_blocks(rounded), strict=True):
        assert block.names == exact.names
        assert (block.scale, block.carry) == pytest.approx((exact.scale, exact.carry), rel=5e-3)


class Block(nn.Module):
    """Its attention returns the stream with what it adds, by no module of its own."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Module()
        self.attn.forward = lambda x: x + x.roll(1, dims=-1).sin()
        self.mlp = nn.Linear(8, 8)

    def forward(self, x):
        x = self.attn(x)
        return x + self.mlp(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.config = PreTrainedConfig(num_hidden_layers=2, vocab_size=32)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_module_that_returns_the_whole_stream_is_none_that_writes_to_it():
    """Its output and the MLP's do add up to the block's, with nothing of the block's input beside them."""
    with pytest.raises(RefusalCmpError, match=r"no two modules' outputs add up .*looked at attn, mlp\)"):
        find_blocks(Model())


def test_a_sum_of_modules_takes_no_edit_that_is_not_linear():
    model = chat_model(next(family for family in SUPPORTED if family.model_type == "granitemoeshared"))
    edit = LowRankEdit(b=torch.ones(model.d_model))
    with pytest.raises(RefusalCmpError, match="Several modules of layer 1"), model.edited({Place(1, "mlp_out"): edit}):
        pass


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.key)
def test_what_does_not_fit_is_refused_with_what_was_looked_for(family):
    with pytest.raises(RefusalCmpError, match="not supported|decoder-only"):
        find_blocks(build(family))


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m tests.support.architectures"


def test_completions_are_the_same_where_heads_that_share_keys_stand_as_queries(model, monkeypatch):
    """In a step of generation: by plain products, and by torch as on a GPU; beside transformers' own."""
    found = [model.generate(PROMPTS, max_new_tokens=6)]
    monkeypatch.setattr(attention, "_by_products", attention._by_torch)
    found.append(model.generate(PROMPTS, max_new_tokens=6))
    monkeypatch.setattr(attention, "step", lambda *_: pytest.fail("this is ours"))
    monkeypatch.setattr(attention, "_is_step", lambda *_: False)
    found.append(model.generate(PROMPTS, max_new_tokens=6))
    assert found[0] == found[1] == found[2]
