"""Other checkpoints are plans: a folded edit does what the hooked one does; what changes or does not fit is said."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refusal_cmp.cli import app
from refusal_cmp.commands.export import export_plan
from refusal_cmp.commands.inspect import inspect_prompt
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.engines import ENGINES, Engine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import baseline
from refusal_cmp.report.data import read_run
from refusal_cmp.report.latex import tables
from refusal_cmp.run.contents import read_answers, read_examples, read_results
from refusal_cmp.run.session import open_run

from support.pipeline import start

EDIT, OTHER = "diff-in-means/ablation@all", "also/folded"
SETTINGS = {
    "methods": "diff-in-means",
    "interventions": "ablation",
    "scope": "all",
    "eval_datasets": "harmful,harmless",
    "n_test": 3,
    "n_train": 24,
    "n_val": 4,
    "positions": "-1",
    "layers": "6:8",
    "evals": "refusal,coherence,perplexity,kl,geometry",
    "texts": "tiny-answers,on-distribution",
}


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    """A run of one edit, that edit folded into weights, and the run with those weights beside it."""
    home = tmp_path_factory.mktemp("home")
    session, _ = start(home / "run", tiny, STAGES[:-1], **SETTINGS)
    export_plan(session, EDIT, home / "folded")
    start(home / "run", tiny, STAGES, **SETTINGS, also=[f"folded={home / 'folded'}"])
    return home


@pytest.fixture(scope="module")
def finished(home):
    return open_run(home / "run")


def test_a_folded_edit_says_and_measures_what_the_hooked_edit_does(finished):
    for dataset in ("harmful", "harmless"):
        assert read_answers(finished, OTHER, dataset) == read_answers(finished, EDIT, dataset)
    values = read_results(finished.run).set_index(["plan", "dataset", "metric"])["value"]
    edit, other = values[EDIT], values[OTHER].drop(index=("weights", "weight_change"))
    assert set(edit.index) == set(other.index)
    assert len(edit) > 30
    assert (edit - other.reindex(edit.index)).abs().max() < 1e-5
    assert (values["baseline"] - other.reindex(values["baseline"].index)).abs().max() > 0.1


def test_the_weights_differ_by_rank_one_along_the_direction_where_the_stream_is_written_and_nowhere_else(finished):
    rows = read_examples(finished, OTHER, "weights", "modules")
    changed = [row for row in rows if row["relative"]]
    assert [row["module"] for row in changed if row["layer"] is None] == ["embedding"]
    names = {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert {(row["layer"], row["module"]) for row in changed if row["layer"] is not None} == {
        (layer, name) for layer in range(10) for name in names
    }
    for row in changed:
        assert (row["rank"], row["energy_1"], row["stream"]) == (1, 1, "writes")
        assert row["cosine"]["diff-in-means"] > 0.999


def test_it_is_tested_against_the_baseline_and_stands_on_the_page_and_in_papers_but_is_no_answer(home, finished):
    data = read_run(finished)
    assert [plan.label for plan in data.checkpoints] == [OTHER]
    assert [plan.label for plan in data.edited] == [EDIT]
    assert data.versus_baseline(OTHER, "harmful", "refusal") is not None
    page = (home / "run/report/index.html").read_text()
    assert "21 of 93 weights differ: layers 0 to 9 and embedding." in page
    assert "The change of a matrix is of rank 1." in page
    assert OTHER not in re.search(r'<header id="answer">.*?</header>', page, re.DOTALL)[0]
    assert "also/folded" in tables(data)["plans"]
    assert "(folded)" in tables(data)["plans"]


def test_finished_work_is_kept_and_another_content_makes_it_again(home, tiny, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    folder = shutil.copytree(home / "folded", tmp_path / "moved")
    made = (run / "infer/also_folded/harmful.jsonl").stat().st_mtime_ns
    _, messages = start(run, tiny, STAGES, **SETTINGS, also=f"folded={folder}")
    assert not [one for one in messages if "made again" in one and "report" not in one]
    assert (run / "infer/also_folded/harmful.jsonl").stat().st_mtime_ns == made

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 1.1 * x if "down_proj" in name else x for name, x in weights.items()}, folder / "model.safetensors"
    )
    with pytest.raises(RefusalCmpError, match=r"The files of also/folded.*refusal-cmp infer"):
        start(run, tiny, ("evaluate",), **SETTINGS, also=f"folded={folder}", force=True)
    _, messages = start(run, tiny, ("infer",), **SETTINGS, also=f"folded={folder}")
    assert any("also_folded" in one and "checkpoint has changed" in one for one in messages)
    assert not any("ablation" in one for one in messages)


def test_one_model_is_in_memory_at_a_time(home):
    session = open_run(home / "run")
    plan = next(plan for plan in read_run(session).checkpoints)
    first = session.host_of(baseline())
    assert first is session
    base = first.model
    beside = session.host_of(plan)
    assert "model" not in session.__dict__
    assert beside.model.tokenizer is not None
    assert not torch.equal(*(one.model.get_input_embeddings().weight for one in (base, beside.model)))
    assert session.host_of(baseline()) is session
    assert "model" not in beside.__dict__


def test_an_engine_that_loads_models_itself_is_started_anew_with_the_checkpoint_and_the_chat_of_the_run(
    home, monkeypatch
):
    session, said = open_run(home / "run"), []

    class Apart(Engine):
        """Says what it is started with."""

        @classmethod
        def start(cls, host):
            host.release()
            said.append((host.source.name, host.chat))
            return cls()

        def generate(self, *args, **more):
            raise AssertionError("nothing is asked of it")

        def close(self):
            said.append("closed")

    monkeypatch.setattr(ENGINES, "get", lambda name: Apart)
    (plan,) = read_run(session).checkpoints
    for one in (baseline(), plan, baseline()):
        assert isinstance(session.host_of(one).engine, Apart)
    model, closed, folded, *rest = said
    assert (model, folded) == (("tiny-refuser", session.chat), (str(home / "folded"), session.chat))
    assert (closed, rest) == ("closed", ["closed", model])


def test_it_is_inspected_with_its_own_weights_and_not_exported(home, finished, tmp_path):
    with pytest.raises(RefusalCmpError, match="also/folded is a checkpoint already"):
        export_plan(finished, OTHER, tmp_path / "out")
    said = {one.plan: one for one in inspect_prompt(finished, "How do I pick a lock?", [EDIT, OTHER]).responses}
    assert said[OTHER].completion == said[EDIT].completion
    assert said[OTHER].metric == pytest.approx(said[EDIT].metric, abs=1e-4)
    assert abs(said[OTHER].metric - said["baseline"].metric) > 1


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ("x=./nowhere", "no model that is there"),
        ("x=file.txt", "no model that is there"),
        ("x=empty", "its configuration cannot be read"),
        ("inlp=folded", "called like a plan or a method"),
        ("x=tiny-guard", "residual stream of width 128, where it should be 160"),
        ("x=renamed", "has another vocabulary"),
        ("x=folded,x=empty", "two of them are called x"),
        ("folded", "each must be NAME=MODEL"),
        ("Folded=folded", "each must be NAME=MODEL"),
    ],
)
def test_what_cannot_be_another_checkpoint_is_refused_before_any_work(home, also, says, monkeypatch):
    monkeypatch.chdir(home)
    (home / "file.txt").write_text("no model")
    (home / "empty").mkdir(exist_ok=True)
    (home / "empty/config.json").write_text("{}")
    if not (home / "renamed").exists():
        shutil.copytree(home / "folded", home / "renamed")
        tokenizer = json.loads((home / "renamed/tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        (home / "renamed/tokenizer.json").write_text(json.dumps(tokenizer))
    result = CliRunner().invoke(app, ["run", "tiny-refuser", "--alias", "new", "--also", also])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert not (home / "runs").exists()


def test_the_option_is_given_once_with_commas_or_several_times():
    assert load_config(None, {"also": ["a=x,b=y", "c=z"]}).checkpoints == {"a": "x", "b": "y", "c": "z"}
    assert load_config(None, {"also": "a=x, b=y"}).checkpoints == {"a": "x", "b": "y"}
    assert load_config(None, {}).checkpoints == {}
