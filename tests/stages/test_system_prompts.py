"""System prompts are plans: what is asked is what the model with that system prompt does, and nothing is edited."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from refusal_cmp.cli import app
from refusal_cmp.commands.export import export_plan
from refusal_cmp.commands.inspect import inspect_prompt
from refusal_cmp.config import STAGES, SYSTEM_PROMPTS, load_config
from refusal_cmp.data import Document
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Subject
from refusal_cmp.evals.capability import Capability
from refusal_cmp.model import ChatModel
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.plan import baseline, prompted
from refusal_cmp.report.data import read_run
from refusal_cmp.report.latex import tables
from refusal_cmp.report.method_text import method_text
from refusal_cmp.run.contents import read_answers, read_plans, read_results
from refusal_cmp.run.session import open_run

from support.pipeline import start

TEXT = "Say yes, and nothing else."
EDIT, ASKED = "diff-in-means/ablation@all", "prompt/own"
SETTINGS = {
    "methods": "diff-in-means",
    "interventions": "ablation",
    "scope": "all",
    "eval_datasets": "harmful,harmless",
    "n_test": 4,
    "n_train": 24,
    "n_val": 4,
    "positions": "-1",
    "layers": "6:8",
    "max_new_tokens": 12,
    "evals": "refusal,coherence,perplexity,kl,geometry",
    "texts": "tiny-general,tiny-answers,on-distribution",
}


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    start(home / "run", tiny, STAGES, **SETTINGS, system_prompts=["less", f"own={TEXT}"])
    return home


@pytest.fixture(scope="module")
def finished(home):
    return open_run(home / "run")


@pytest.fixture(scope="module")
def with_it(tiny):
    """The model as one loads it with the system prompt."""
    return ChatModel(tiny.model, tiny.tokenizer, tiny.name, system=TEXT)


@pytest.mark.parametrize("kind", ["harmful", "harmless"])
def test_completions_are_those_of_the_model_with_that_system_prompt(finished, with_it, kind):
    asked = read_answers(finished, ASKED, kind)
    alone = with_it.generate([one.instruction for one in asked], max_new_tokens=12)
    assert [one.completion for one in asked] == [one.text for one in alone]
    assert [one.completion for one in asked] != [one.completion for one in read_answers(finished, "baseline", kind)]


def test_losses_and_the_kl_are_those_of_the_model_with_that_system_prompt(finished, tiny, with_it):
    values = read_results(finished.run).set_index(["plan", "dataset", "metric"])["value"]
    own = read_answers(finished, "baseline", "harmless")
    found = losses(with_it, [encode(with_it, Document(one.completion, one.instruction)) for one in own])
    mean = sum(one.total for one in found) / sum(one.n_tokens for one in found)
    assert values[ASKED, "on-distribution", "loss"] == pytest.approx(mean, rel=1e-5)
    assert values[ASKED, "on-distribution", "loss"] > values["baseline", "on-distribution", "loss"] + 0.001
    assert values[ASKED, "tiny-general", "loss"] == pytest.approx(values["baseline", "tiny-general", "loss"], rel=1e-6)
    kls = []
    for one in own:
        before, after = (
            model.last_logits(model.batch(model.tokenize([one.instruction])))[0].double().log_softmax(-1)
            for model in (tiny, with_it)
        )
        kls.append(float((before.exp() * (before - after)).sum()))
    assert values[ASKED, "harmless", "kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)


def test_benchmarks_are_asked_with_it_where_they_are_asked_in_the_template(tiny, with_it):
    settings = {"tasks": ("world_facts",), "benchmark_limit": 4, "benchmark_draw": "drawn", "seed": 0}

    def values(model, plan, **more):
        found = Capability(**settings, **more).evaluate(Subject(plan, {}, {}, lambda: model))
        return [one.values for one in found.metrics]

    asked = prompted("own", TEXT)
    assert values(tiny, asked, task_template=True) == values(with_it, baseline(), task_template=True, system=TEXT)
    assert values(tiny, asked) == values(tiny, baseline())


def test_the_model_is_itself_again_also_where_something_fails(tiny):
    before = tiny.render("hello")
    with tiny.edited(prompted("own", TEXT)):
        assert TEXT in tiny.render("hello")
    assert tiny.render("hello") == before
    with pytest.raises(RefusalCmpError, match="one string"), tiny.edited(prompted("own", TEXT)):
        tiny.tokenize("hello")
    assert tiny.render("hello") == before


def test_it_is_a_plan_beside_the_edits_in_tables_and_papers_and_never_the_answer(home, finished):
    data = read_run(finished)
    assert [plan.label for plan in data.unedited] == ["prompt/less", ASKED]
    assert [plan.label for plan in data.edited] == [EDIT]
    assert {plan.label: plan.system for plan, _ in read_plans(finished)}[ASKED] == TEXT
    assert data.versus_baseline(ASKED, "harmful", "refusal") is not None
    page = (home / "run/report/index.html").read_text()
    assert "<h2>System prompts</h2>" in page
    assert TEXT in page
    assert "Where the weights differ" not in page
    assert ASKED not in re.search(r'<header id="answer">.*?</header>', page, re.DOTALL)[0]
    assert TEXT in tables(data)["plans"]
    assert "with the system prompts" in method_text(data)


def test_it_is_inspected_and_not_exported(finished, tmp_path):
    with pytest.raises(RefusalCmpError, match="prompt/own is a system prompt, and changes no weights"):
        export_plan(finished, ASKED, tmp_path / "out")
    answer = read_answers(finished, ASKED, "harmful")[0]
    said = {one.plan: one for one in inspect_prompt(finished, answer.instruction, [ASKED]).responses}
    assert said[ASKED].completion == answer.completion


def test_another_text_under_the_same_name_is_made_again_and_what_is_there_is_kept(home, tiny):
    made = (home / "run/infer/prompt_less/harmful.jsonl").stat().st_mtime_ns
    _, messages = start(home / "run", tiny, ("infer",), **SETTINGS, system_prompts=["less", "own=Say no."])
    assert any("prompt_own" in one and "system has changed" in one for one in messages)
    assert (home / "run/infer/prompt_less/harmful.jsonl").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--system-prompts", "lesser"], "each must be less or more, or NAME=TEXT"),
        (["--system-prompts", "own="], "each must be less or more, or NAME=TEXT"),
        (["--system-prompts", "less", "--system-prompts", "less=Say no."], "two of them are called less"),
        (["--methods", "prompt"], "--system-prompts less,more"),
    ],
)
def test_what_is_no_system_prompt_is_refused_before_any_work(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", "tiny-refuser", "--alias", "new", *options])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()


def test_a_template_without_a_place_for_it_is_refused(tiny):
    template = tiny.tokenizer.chat_template
    tiny.tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}"
    try:
        with pytest.raises(RefusalCmpError, match="takes no system prompt"), tiny.asked("Say no."):
            pass
    finally:
        tiny.tokenizer.chat_template = template


def test_the_option_is_given_once_with_commas_or_several_times_and_a_text_keeps_its_commas():
    assert load_config(None, {"system_prompts": "less,more"}).other_systems == SYSTEM_PROMPTS
    given = ["less", "own=Yes, and no.\nTwo lines."]
    assert load_config(None, {"system_prompts": given}).other_systems == {
        "less": SYSTEM_PROMPTS["less"],
        "own": "Yes, and no.\nTwo lines.",
    }
    assert load_config(None, {}).other_systems == {}
