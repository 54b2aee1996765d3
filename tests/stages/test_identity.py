"""A model in a folder is what is in its files: with others at the same place, no run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import facts
from refusal_cmp.model.identity import fingerprint
from refusal_cmp.model.source import model_path
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.adapters import trained
from support.attack import files
from support.gguf_files import write_gguf

SETTINGS = {
    "model": "./model",
    "guard": "./guard",
    "guard_format": "llama-guard",
    "methods": "diff-in-means",
    "interventions": "ablation",
    "scope": "single",
    "harmful": "tiny-harmful",
    "harmless": "tiny-harmless",
    "eval_datasets": "harmful",
    "n_train": 16,
    "n_val": 2,
    "n_test": 2,
    "max_new_tokens": 4,
    "evals": "refusal,guard",
    "runs_dir": ".",
    "alias": "run",
}
MADE = STAGES[:-1]
LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A model, a guard, and a finished run with them."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(model_path("tiny-refuser"), home / "model")
    shutil.copytree(model_path("tiny-guard"), home / "guard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        start(*MADE)
    return home


@pytest.fixture
def home(original, tmp_path, monkeypatch):
    """All of it copied to another place, where one now is."""
    shutil.copytree(original, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def start(*stages, force=(), **settings):
    config = load_config(None, SETTINGS | settings)
    run_stages(Session(config, RunDir(config.runs_dir / config.run_name, force)), stages)


def train_on(folder):
    """Change one weight a little: the files keep their names and sizes."""
    (path,) = folder.glob("*.safetensors")
    tensors, size = load_file(path), path.stat().st_size
    tensors[min(tensors)][-1] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == size


def test_a_folder_is_known_by_its_files_wherever_it_lies(home):
    before = fingerprint(home / "model")
    assert before == fingerprint(shutil.copytree(home / "model", home / "elsewhere"))
    (home / "model" / "README.md").write_text("Mine.")
    (home / "model" / "checkpoint-1").mkdir()
    assert fingerprint(home / "model") == before
    train_on(home / "model")
    assert fingerprint(home / "model") != before
    (home / "elsewhere" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert fingerprint(home / "elsewhere") != before


@pytest.mark.parametrize("stages", [STAGES, ("extract",), ("select",), ("infer",), ("evaluate",)])
def test_with_new_weights_at_the_same_place_the_run_stops(home, stages):
    train_on(home / "model")
    before = files(home / "run")
    with pytest.raises(RefusalCmpError, match="the model ./model are not those that run was begun with"):
        start(*stages)
    assert files(home / "run") == before


@pytest.mark.parametrize("changed", ["adapter", "model"])
def test_with_another_adapter_or_base_the_run_stops(home, changed):
    trained(home / "adapter", LORA, base="../model")
    settings = {"model": "./adapter", "alias": "merged"}
    start("extract", **settings)
    start("extract", **settings)
    train_on(home / changed)
    with pytest.raises(RefusalCmpError, match="the model ./adapter are not those that merged was begun with"):
        start("select", **settings)


def test_with_another_gguf_file_of_the_same_name_the_run_stops(home):
    settings = {"model": "Tiny.gguf", "alias": None, "guard": "tiny-guard"}
    write_gguf(home / "model", home / "Tiny.gguf", "F16")
    start("extract", **settings)
    assert RunDir(home / "tiny").manifest["model"]["name"] == "Tiny.gguf"
    train_on(home / "model")
    write_gguf(home / "model", home / "Tiny.gguf", "F16")
    with pytest.raises(RefusalCmpError, match=r"the model Tiny.gguf are not those that tiny was begun with"):
        start("select", **settings)


def test_a_guard_that_is_an_adapter_or_a_gguf_file_is_a_setting_by_its_content(home):
    trained(home / "adapter", LORA, base="../model")
    write_gguf(home / "model", home / "guard.gguf", "F16")

    def known(guard):
        return facts(load_config(None, SETTINGS | {"guard": guard}), "guard")["guard"]

    before = {guard: known(guard) for guard in ("adapter", "guard.gguf")}
    train_on(home / "model")
    write_gguf(home / "model", home / "guard.gguf", "F16")
    assert all(known(guard) != before[guard] and known(guard).startswith(f"{guard} (") for guard in before)


def test_with_new_weights_the_whole_run_can_be_done_again(home):
    train_on(home / "model")
    start(*MADE, force=MADE)
    start(*STAGES)


def test_a_new_guard_at_the_same_place_is_another_setting(home):
    train_on(home / "guard")
    with pytest.raises(RefusalCmpError, match=r"guard was './guard \(\w+\)' and is now './guard \(\w+\)'"):
        start("evaluate")


def test_what_only_reads_the_run_needs_no_model(home):
    shutil.rmtree(home / "model")
    start("report")


def test_a_folder_that_is_called_like_a_choice_is_no_model(home):
    for name in ("published", "auto", "hf"):
        (home / name).mkdir()
        (home / name / "config.json").write_text("{}")
    config = load_config(None, SETTINGS)
    assert facts(config, "refusal")["phrases"] == "published"
    assert {"llama-guard", "hf"} <= set(map(str, facts(config, "guard").values()))


def test_a_run_goes_on_with_the_commit_of_the_hub_that_it_was_begun_with(home):
    """huggingface_hub and transformers as they are, on a cache in the hub's own layout; its branch moves on."""
    cache, commits = home / "hub" / "models--me--tiny", ["a" * 40, "b" * 40]
    (cache / "refs").mkdir(parents=True)
    for commit in commits:
        shutil.copytree(home / "model", cache / "snapshots" / commit)
    train_on(cache / "snapshots" / commits[1])
    environment = {**os.environ, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    small = "--methods diff-in-means --harmful tiny-harmful --harmless tiny-harmless --contrast tiny-contrast "
    small += "--n-train 16 --n-val 2 --n-test 2 --alias hub"

    def command(stage, *given):
        line = [
            sys.executable,
            "-c",
            "from refusal_cmp.cli import main; main()",
            stage,
            "me/tiny",
            *small.split(),
            *given,
        ]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return RunDir(home / "runs" / "hub").manifest["model"]["revision"]

    (cache / "refs" / "main").write_text(commits[0])
    assert command("extract") == commits[0]
    (cache / "refs" / "main").write_text(commits[1])
    assert command("select") == commits[0]
    assert command("extract", "--force") == commits[1]


def test_an_adapter_on_the_hub_is_pinned_and_its_base_may_not_move(home, monkeypatch):
    """On a cache in the hub's own layout."""
    cache, commits = home / "cache", ["a" * 40, "b" * 40]
    for name, folder in (
        ("models--me--adapter", trained(home / "adapter", LORA, base="me/base")),
        ("models--me--base", home / "model"),
    ):
        for commit in commits:
            shutil.copytree(folder, cache / name / "snapshots" / commit)
        (cache / name / "refs").mkdir()
        (cache / name / "refs" / "main").write_text(commits[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {"model": "me/adapter", "alias": "hub"}
    start("extract", **settings)
    assert RunDir(home / "hub").manifest["model"]["revision"] == commits[0]
    (cache / "models--me--adapter" / "refs" / "main").write_text(commits[1])
    start("extract", **settings)
    (cache / "models--me--base" / "refs" / "main").write_text(commits[1])
    with pytest.raises(RefusalCmpError, match="the model me/adapter are not those that hub was begun with"):
        start("select", **settings)
