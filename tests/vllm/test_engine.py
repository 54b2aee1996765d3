"""The vLLM engine: the same completions as the hooked model, for every plan, with nothing left of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from refusal_cmp.api import plan_intervention
from refusal_cmp.commands.export import export
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines import vllm as vllm_engine
from refusal_cmp.engines.vllm import VLLMEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.model.chat import Chat
from refusal_cmp.plan import Place, Plan, baseline

from support.adapters import trained
from support.gguf_files import write_gguf
from support.models import instructions

AT = {"layer": 5, "position": -1}
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def engine(tiny):
    engine = VLLMEngine(ModelSource(), tiny)
    yield engine
    engine.close()


@pytest.mark.parametrize("kind", ["adapter", "gguf"])
def test_an_adapter_and_a_gguf_file_run_as_in_this_process(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kind == "adapter":
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        path = trained(tmp_path / "adapter", lora)
    else:
        path = write_gguf(Path(model_path("tiny-refuser")), tmp_path / "tiny.gguf", "F16")
    source, prompts = ModelSource(str(path)), instructions("tiny-harmless", "test", 8)
    engine = VLLMEngine(source, Chat.load(source))
    try:
        found = engine.generate(baseline(), prompts, NEW_TOKENS)
    finally:
        engine.close()
    assert len(disagreements(found, ChatModel.load(source).generate(prompts, max_new_tokens=NEW_TOKENS))) <= 1


def under(model, plan, prompts, max_new_tokens=NEW_TOKENS):
    with model.edited(plan):
        return model.generate(prompts, max_new_tokens=max_new_tokens)


def disagreements(ours, theirs):
    return [index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


def test_completions_are_those_of_the_hooked_model(tiny, tiny_fields, engine):
    """For every method, intervention, strength and scope, 100 prompts; and for the baseline again after the last."""
    prompts = instructions("tiny-harmful", "test", 50) + instructions("tiny-harmless", "test", 50)
    plans = [
        plan_intervention(name, subspaces, scope=scope, strength=strength, **AT)
        for subspaces in tiny_fields.values()
        for name in INTERVENTIONS
        if not INTERVENTIONS.get(name).needs_covariances
        for strength in INTERVENTIONS.create(name).strengths or (None,)
        for scope in ("single", "top:50", "all")
    ]
    plans = list({plan.digest: plan for plan in plans}.values())  # in one dimension, several are the same edit
    assert len(plans) >= 45
    unedited = under(tiny, baseline(), prompts)
    changed = 0
    for plan in [baseline(), *plans, baseline()]:
        theirs = under(tiny, plan, prompts) if plan.edits else unedited
        wrong = disagreements(engine.generate(plan, prompts, NEW_TOKENS), theirs)
        assert len(wrong) <= 1, f"{plan.label}: {wrong}"
        changed += theirs != unedited
    assert changed >= 40


def test_answers_that_are_there_are_not_made_again(tiny, engine):
    prompts = instructions("tiny-harmless", "test", 6)
    whole = engine.generate(baseline(), prompts, NEW_TOKENS)
    kept = whole[2].__class__("kept", 1, "stop")
    done = {2: kept}
    assert engine.generate(baseline(), prompts, NEW_TOKENS, done=done) == [*whole[:2], kept, *whole[3:]]
    assert sorted(done) == list(range(6))


class Interrupted(dict):
    """Answers that are kept until the third comes."""

    def __setitem__(self, index, completion):
        if len(self) == 2:
            raise KeyboardInterrupt
        super().__setitem__(index, completion)


def test_work_that_is_cut_short_keeps_what_is_finished(tiny, engine):
    prompts = instructions("tiny-harmful", "test", 8)
    whole = engine.generate(baseline(), prompts, NEW_TOKENS)
    done = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(baseline(), prompts, NEW_TOKENS, done=done)
    assert len(done) == 2
    assert all(whole[index] == completion for index, completion in done.items())
    assert engine.generate(baseline(), prompts, NEW_TOKENS) == whole


def test_no_keys_and_values_of_an_earlier_plan_are_used(tiny, tiny_fields, engine, monkeypatch):
    """Prompts long enough to fill cache blocks; without the reset the test must see the wrong completions."""
    block = engine._llm.llm_engine.vllm_config.cache_config.block_size
    shared = " ".join(instructions("tiny-harmless", "train", 30))
    prompts = [f"{shared} {prompt}" for prompt in instructions("tiny-harmful", "test", 8)]
    assert min(map(len, tiny.tokenize(prompts))) > 2 * block
    plan = plan_intervention("reflection", tiny_fields["inlp"], **AT)
    expected = under(tiny, plan, prompts)

    engine.generate(baseline(), prompts, NEW_TOKENS)
    assert engine.generate(plan, prompts, NEW_TOKENS) == expected
    engine.generate(baseline(), prompts, NEW_TOKENS)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_forget", lambda: None)
        assert engine.generate(plan, prompts, NEW_TOKENS) != expected
    engine.generate(baseline(), prompts, NEW_TOKENS)
    assert engine.generate(plan, prompts, NEW_TOKENS) == expected


def test_logits_that_are_not_finite_are_said_and_leave_nothing(tiny, engine):
    """An edit that overflows on some prompts only: those that hold a certain token."""
    prompts = instructions("tiny-harmful", "test", 24)
    sequences, embedded = tiny.tokenize(prompts), tiny.model.get_input_embeddings().weight.detach().float()
    word = next(token for token in sequences[0] if sum(token in sequence for sequence in sequences) < 12)
    reading = 10 * embedded[word][None] / embedded[word].norm() ** 2
    coordinates = (embedded @ reading.T).abs()
    coordinates[word] = 0
    most = float(coordinates.max())  # of any other token; that of the word is 10
    assert 1 < most < 9
    writing = torch.full_like(reading, torch.finfo(torch.float32).max / (1.01 * most))
    plan = Plan("overflow", {Place(0, "resid_pre"): LowRankEdit(V=reading, A=writing)})
    expected = under(tiny, plan, prompts)
    assert {completion.finish for completion in expected} == {"non-finite", "length"}
    before = engine.generate(baseline(), prompts, NEW_TOKENS)
    assert engine.generate(plan, prompts, NEW_TOKENS) == expected
    assert engine.generate(baseline(), prompts, NEW_TOKENS) == before


def test_a_prompt_longer_than_the_context_is_one_sentence(tiny, engine):
    with pytest.raises(RefusalCmpError, match="has 2008 tokens, and the context of tiny-refuser ends at 1024"):
        engine.generate(baseline(), ["bread " * 2000], 4)


def test_an_exported_model_in_plain_vllm_gives_the_hooked_completions(tiny, tiny_fields, tmp_path, engine):
    prompts = instructions("tiny-harmful", "test", 20)
    plan = plan_intervention("nullspace", tiny_fields["inlp"], **AT)
    export(tiny, plan, tmp_path / "folded")
    plain = VLLMEngine(ModelSource(str(tmp_path / "folded")), tiny)
    try:
        assert disagreements(plain.generate(baseline(), prompts, NEW_TOKENS), under(tiny, plan, prompts)) == []
    finally:
        plain.close()


def test_too_little_memory_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(vllm_engine, "CPU_CACHE_BYTES", 2**50)
    with pytest.raises(RefusalCmpError, match="lower its share of it") as caught:
        VLLMEngine(ModelSource(), tiny)
    assert {"vllm_gpu_memory_utilization", "engine"} <= set(caught.value.settings)


def test_another_device_than_vllm_is_made_for_is_one_sentence(tiny):
    with pytest.raises(RefusalCmpError, match="runs on cpu, and the device is cuda:1"):
        VLLMEngine(ModelSource(), tiny, device="cuda:1")
