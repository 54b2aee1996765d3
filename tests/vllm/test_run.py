"""A whole run with `--engine vllm`, and vLLM as users have it: in processes of its own."""

from __future__ import annotations

import pytest

from refusal_cmp.api import plan_intervention
from refusal_cmp.config import load_config
from refusal_cmp.engines.vllm import VLLMEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ModelSource
from refusal_cmp.model.generation import Completion
from refusal_cmp.plan import baseline
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.models import instructions

SMALL = {
    "n_train": 32,
    "n_val": 4,
    "n_test": 6,
    "max_new_tokens": 8,
    "scope": "single,all",
    "interventions": "ablation,actadd",
    "evals": "refusal",
}


def begin(path, engine):
    return Session(load_config(None, {**SMALL, "engine": engine}), RunDir(path))


def answers(path):
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.glob("infer/*/*.jsonl"))}


@pytest.fixture(scope="module")
def by_hf(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny-refuser"
    run_stages(begin(path, "hf"), ("extract", "select", "infer"))
    return path


def test_a_run_has_the_same_answers_with_either_engine(by_hf, tmp_path):
    session = begin(tmp_path / "tiny-refuser", "vllm")
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    assert answers(session.run.path) == answers(by_hf)
    assert len(answers(by_hf)) > 10
    assert session.run.manifest["versions"]["vllm"]
    assert not {"model", "engine"} <= session.__dict__.keys()  # never both in memory
    session.release()


def test_a_run_that_vllm_stops_goes_on_from_what_was_finished(by_hf, tmp_path, monkeypatch):
    session = begin(tmp_path / "tiny-refuser", "vllm")
    whole, made = VLLMEngine._completion, []

    def dies(self, output) -> Completion:
        if len(made) == 16:
            raise RuntimeError("out of memory")
        made.append(output)
        return whole(self, output)

    monkeypatch.setattr(VLLMEngine, "_completion", dies)
    with pytest.raises(RefusalCmpError, match="what is finished is kept"):
        run_stages(session, ("extract", "select", "infer"))
    monkeypatch.undo()
    session.release()
    session = begin(tmp_path / "tiny-refuser", "vllm")
    monkeypatch.setattr(VLLMEngine, "_completion", lambda self, output: made.append(output) or whole(self, output))
    run_stages(session, ("infer",))
    session.release()
    assert answers(session.run.path) == answers(by_hf)
    lost = len(made) - sum(text.count("\n") for text in answers(by_hf).values())
    assert lost <= 16  # those of the step in which it stopped: answers of several plans end at once


def test_vllm_in_processes_of_its_own(tiny, tiny_fields, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    prompts = instructions("tiny-harmful", "test", 12)
    plan = plan_intervention("reflection", tiny_fields["inlp"], layer=5, position=-1)
    engine = VLLMEngine(ModelSource(), tiny)
    try:
        assert type(engine._llm.llm_engine.engine_core).__name__ == "SyncMPClient"
        for one in (baseline(), plan, baseline()):
            with tiny.edited(one):
                assert engine.generate(one, prompts, 16) == tiny.generate(prompts, max_new_tokens=16)
    finally:
        engine.close()
