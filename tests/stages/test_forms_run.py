"""A run with interventions in several forms, and with one that reads covariances, from extraction to the page."""

from __future__ import annotations

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import file_name
from refusal_cmp.report.data import read_run
from refusal_cmp.report.method_text import method_text
from refusal_cmp.run.contents import covariances_file, read_plans
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.stages import run_stages

from support.attack import files
from support.pipeline import start

FORMS = (
    "ablation,ablation[keep-norm=true],ablation[when=midpoint],ablation[tokens=prompt],angular,transport,"
    "actadd[keep-norm=true,tokens=generated]"
)
HOW = {
    "methods": "diff-in-means",
    "interventions": FORMS,
    "layers": "4:7",
    "positions": "-1",
    "evals": "refusal,kl,perplexity",
    "texts": "tiny-answers",
    "n_train": 24,
    "n_val": 4,
    "n_test": 3,
    "max_new_tokens": 4,
}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("forms") / "tiny-refuser"
    start(path, tiny, **HOW)
    return path


def test_every_form_is_a_plan_with_results_a_file_and_a_place_on_the_page(finished):
    session = open_run(finished)
    plans = {plan.label: plan for plan, _ in read_plans(session)}
    assert len(plans) == 1 + 2 * (1 + 1 + 1 + 1 + 2 + 1 + 2)
    prompt = plans["diff-in-means/ablation[tokens=prompt]@all"]
    assert (prompt.tokens, prompt.intervention) == ("prompt", "ablation[tokens=prompt]")
    results = session.run.read_table("results.csv")
    assert set(results["plan"]) == set(plans)
    page = (finished / "report" / "index.html").read_text()
    for label in plans:
        assert label in page
        assert label == "baseline" or (finished / "infer" / file_name(label) / "plan.safetensors").is_file()
    kl = results[results["metric"] == "kl"].set_index("plan")["value"]
    assert kl["diff-in-means/actadd[keep-norm=true,tokens=generated]:1@all"] < 1e-9, "no prompt is edited"
    assert kl["diff-in-means/ablation[tokens=prompt]@all"] == pytest.approx(kl["diff-in-means/ablation@all"], rel=1e-5)


def test_the_paragraph_on_the_method_says_what_the_forms_are(finished):
    text = method_text(read_run(open_run(finished)))
    assert "ablation[keep-norm=true]} and \\texttt{actadd[keep-norm=true,tokens=generated]} edit is rescaled" in text
    assert "lets through" in text
    assert "lee2025programming" in text
    assert "\\texttt{ablation[tokens=prompt]} edits those of the prompt alone" in text
    assert "share of the way" in text
    assert "vu2025angular" in text


def test_covariances_are_kept_and_what_goes_on_has_the_same_bytes(finished, tiny):
    name = covariances_file("diff-in-means")
    session, _ = start(finished, tiny, **HOW)
    before = files(finished)
    assert name in {str(path) for path in before}
    assert len(session.run.read_tensors(name)[0]) == 10
    (finished / name).unlink()
    start(finished, tiny, stages=("infer",), **HOW)
    assert files(finished)[name] == before[name]
    chosen = int(next(iter(session.run.read_tensors(name)[0])).split(".")[1])
    other = next(layer for layer in (4, 5, 6) if layer != chosen)
    more = {**HOW, "component": f"best,-1,{other}", "interventions": "transport", "scope": "single"}
    start(finished, tiny, stages=("infer",), **more)
    assert len(RunDir(finished).read_tensors(name)[0]) == 20


def test_what_cannot_be_had_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("refusal_cmp.engines.vllm.VLLMEngine.check", classmethod(lambda cls: None))
    for flags, said in (
        ({"interventions": "reflection[when=0]"}, "a gate looks at the stream"),
        ({"interventions": "ablation[tokens=prompt]", "engine": "vllm"}, "edits all tokens alike"),
        ({"interventions": "ablation[norms=kept]"}, "norms"),
    ):
        session = Session(load_config(None, flags), RunDir(tmp_path / "run"))
        with pytest.raises(RefusalCmpError, match=said):
            run_stages(session, ("extract", "select", "infer"))
    assert not (tmp_path / "run").exists()
