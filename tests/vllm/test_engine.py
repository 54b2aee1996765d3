"""The vLLM engine: the same completions as the hooked model, for every plan, with nothing left of the one before."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from refusal_cmp.api import plan_intervention
from refusal_cmp.commands.export import export
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines import _vllm_operator, _vllm_worker
from refusal_cmp.engines import vllm as vllm_engine
from refusal_cmp.engines._vllm_operator import Edits
from refusal_cmp.engines.vllm import VLLMEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model import ChatModel, ModelSource, model_path
from refusal_cmp.model.chat import Chat
from refusal_cmp.model.generation import Completion, Job
from refusal_cmp.plan import Place, Plan, baseline, prompted

from support.adapters import trained
from support.gguf_files import write_gguf
from support.models import instructions

AT = {"layer": 5, "position": -1}
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def told():
    """What the engine said of itself."""
    return []


@pytest.fixture(scope="module")
def engine(tiny, told):
    """Compiled, by Inductor; what is compiled is kept for the other engines of these tests."""
    engine = VLLMEngine(ModelSource(), tiny, say=told.append)
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
    engine = VLLMEngine(source, Chat.load(source), eager=True)
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
    """For every method, intervention, strength and scope, 200 prompts; and for the baseline again after the last."""
    prompts = instructions("tiny-harmful", "test", 100) + instructions("tiny-harmless", "test", 100)
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


def test_plans_that_share_a_batch_are_those_of_one_at_a_time(tiny_fields, engine):
    """Plans of several ranks and sites, one that is a system prompt, and one of which an answer is there."""
    made = [
        plan_intervention(name, tiny_fields[method], scope=scope, **AT)
        for method, name, scope in (
            ("inlp", "nullspace", "all"),
            ("diff-in-means", "ablation", "single"),
            ("inlp", "alterrep", "all"),
            ("diff-in-means", "angular", "all"),
        )
    ]
    plans = [baseline(), *made, prompted("own", "Say yes."), baseline()]
    prompts = instructions("tiny-harmful", "test", 12)
    alone = [engine.generate(plan, prompts, NEW_TOKENS) for plan in plans]
    jobs = [Job(plan, prompts, {}) for plan in plans]
    jobs[1].done[3] = kept = Completion("kept", 1, "stop")
    told, groups = [], []
    install = engine.install
    engine.install = lambda *some: groups.append(len(some)) or install(*some)
    try:
        engine.generate_many(jobs, NEW_TOKENS, finished=told.append)
    finally:
        del engine.install
    assert groups == [len(plans) - 1]  # the baseline is there twice
    assert sorted(map(id, told)) == sorted(map(id, jobs))
    for job, expected in zip(jobs, alone, strict=True):
        wrong = disagreements([job.done[index] for index in range(len(prompts))], expected)
        assert wrong == ([3] if job is jobs[1] else [])
    assert jobs[1].done[3] == kept
    assert alone[0] != alone[2]


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
    """Prompts long enough to fill cache blocks; without its salt the test must see the wrong completions."""
    block = engine._llm.llm_engine.vllm_config.cache_config.block_size
    shared = " ".join(instructions("tiny-harmless", "train", 30))
    prompts = [f"{shared} {prompt}" for prompt in instructions("tiny-harmful", "test", 8)]
    assert min(map(len, tiny.tokenize(prompts))) > 2 * block
    plan = plan_intervention("reflection", tiny_fields["inlp"], **AT)
    expected = under(tiny, plan, prompts)

    engine.generate(baseline(), prompts, NEW_TOKENS)
    assert engine.generate(plan, prompts, NEW_TOKENS) == expected
    with monkeypatch.context() as patched:
        patched.setattr(VLLMEngine, "_salt", lambda *_: "the same")
        engine.generate(baseline(), prompts, NEW_TOKENS)
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
    plain = VLLMEngine(ModelSource(str(tmp_path / "folded")), tiny, eager=True)
    try:
        assert disagreements(plain.generate(baseline(), prompts, NEW_TOKENS), under(tiny, plan, prompts)) == []
    finally:
        plain.close()


def test_too_little_memory_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(vllm_engine, "CPU_CACHE_BYTES", 2**50)
    with pytest.raises(RefusalCmpError, match="lower its share of it") as caught:
        VLLMEngine(ModelSource(), tiny, eager=True)
    assert {"vllm_gpu_memory_utilization", "engine"} <= set(caught.value.settings)


def test_another_device_than_vllm_is_made_for_is_one_sentence(tiny):
    with pytest.raises(RefusalCmpError, match="runs on cpu, and the device is cuda:1"):
        VLLMEngine(ModelSource(), tiny, device="cuda:1")


def test_a_vllm_that_plans_do_not_get_into_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(_vllm_worker, "WORKERS", {"cuda": "vllm.v1.worker.gpu_worker.Worker"})
    with pytest.raises(RefusalCmpError, match=r"workers of vLLM for cuda, and the installed one is for cpu; do"):
        VLLMEngine(ModelSource(), tiny)


def test_it_says_how_it_runs_the_model(engine, told):
    assert "about a minute the first time" in told[0]
    assert re.fullmatch(r"vLLM is ready after \d+ s and runs the model compiled\.", told[1])
    assert engine.versions()["vllm"].endswith(", compiled")


def test_what_is_compiled_is_kept_where_it_outlives_the_machine(engine):
    kept = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert kept != Path(default_cache_dir())
    assert any(kept.rglob("*.so"))


def test_a_compiled_graph_is_looked_up_with_our_hooks_in_its_key(engine):
    """Else vLLM's store of graphs would give plain vLLM ours, whose operator it lacks, or us one without hooks."""

    def keys(worker):
        config = worker.vllm_config
        ours, config.additional_config = config.additional_config, {}
        plain, config.additional_config = config.compute_hash(), ours
        return plain, config.compute_hash()

    [(plain, ours)] = engine._llm.collective_rpc(keys)
    assert plain != ours


def test_a_model_that_is_not_proven_compiled_runs_eagerly_and_says_so(tiny, tiny_fields, monkeypatch):
    """Here because its graph does not ask for the edits that are installed."""
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    prompts, plan = instructions("tiny-harmful", "test", 6), plan_intervention("ablation", tiny_fields["inlp"], **AT)
    told = []

    def hear(said):
        told.append(said)
        if "eager mode" in said:
            monkeypatch.undo()

    monkeypatch.setattr(Edits, "install", lambda *_: None)
    engine = VLLMEngine(ModelSource(), tiny, say=hear)
    try:
        assert "cannot run the model compiled (an edit does not reach the residual stream: 100.0%" in told[1]
        assert told[2].endswith("runs the model in eager mode.")
        assert engine.versions()["vllm"].endswith(", eager")
        assert engine.generate(plan, prompts, NEW_TOKENS) == under(tiny, plan, prompts)
    finally:
        engine.close()


def test_buffers_as_for_cuda_graphs_give_the_same_and_what_they_lack_room_for_runs_eagerly(
    tiny, tiny_fields, monkeypatch
):
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    monkeypatch.setattr(_vllm_worker, "_captures", lambda eager, device: not eager)
    monkeypatch.setattr(_vllm_operator, "RANK", 2)
    prompts, told = instructions("tiny-harmful", "test", 12), []
    small = [
        plan_intervention(name, tiny_fields["diff-in-means"], scope="all", **AT) for name in ("ablation", "actadd")
    ]
    V = torch.linalg.qr(torch.randn(tiny.d_model, 3, generator=torch.Generator().manual_seed(0)))[0].mT
    large = Plan("large", {Place(2, "resid_pre"): LowRankEdit(V=V, A=-V)})
    engine = VLLMEngine(ModelSource(), tiny, say=told.append)
    try:
        for plan in (baseline(), *small, baseline()):
            assert engine.generate(plan, prompts, NEW_TOKENS) == under(tiny, plan, prompts), plan.label
        assert engine.versions()["vllm"].endswith(", compiled")
        assert engine.generate(large, prompts, NEW_TOKENS) == under(tiny, large, prompts)
        assert "large needs the model in eager mode, as it edits along 3 directions" in told[-2]
        assert engine.versions()["vllm"].endswith(", eager")
    finally:
        engine.close()
