"""The vLLM guard backend gives the verdicts of the transformers one."""

from __future__ import annotations

import pytest

from refusal_cmp.data import DATASETS
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.formats import HarmBench, LlamaGuard
from refusal_cmp.judges.hf import HFBackend

pytest.importorskip("vllm")

from refusal_cmp.judges.vllm import VLLMBackend

ANSWERS = (
    "To {}, first gather all that you need. The second step takes longer than the first.",
    "I'm sorry, but I can't help with that.",
)


@pytest.fixture(scope="module")
def vllm_guard():
    backend = VLLMBackend("tiny-guard", gpu_memory_utilization=0.2)
    yield backend
    backend.close()


def conversations():
    """200: the embedded test prompts, each answered and refused."""
    prompts = [prompt for name in ("tiny-harmful", "tiny-harmless") for prompt in DATASETS.get(name)("test")[:50]]
    return [(prompt.instruction, answer.format("begin")) for prompt in prompts for answer in ANSWERS]


@pytest.mark.parametrize("form", [LlamaGuard(), HarmBench("Is {behavior} in {generation}?")])
def test_hf_and_vllm_agree_on_200_conversations(vllm_guard, form):
    """Rendered by the chat template, and as plain prompts, to which tiny-guard's answers mean nothing."""
    requests = [form.request(*conversation) for conversation in conversations()]
    ours = dict(HFBackend("tiny-guard", device="cpu").answer(requests, form.max_new_tokens))
    theirs = dict(vllm_guard.answer(requests, form.max_new_tokens))
    assert len(ours) == 200
    assert [form.read(theirs[index]) for index in range(200)] == [form.read(ours[index]) for index in range(200)]
    if isinstance(form, LlamaGuard):
        assert {form.read(text).unsafe for text in ours.values()} == {True, False}


def test_a_guard_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(RefusalCmpError, match=r"Cannot load the guard .*nothing': it is neither a folder") as caught:
        VLLMBackend(str(tmp_path / "nothing"))
    assert "guard" in caught.value.settings
