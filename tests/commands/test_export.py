"""Folded weights: plain transformers, with the saved folder, does what the hooked model does; or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from refusal_cmp.api import plan_intervention
from refusal_cmp.cli import app
from refusal_cmp.commands import export as exporting
from refusal_cmp.commands.export import export, largest_difference
from refusal_cmp.config import load_config
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import ChatModel, model_path
from refusal_cmp.model.folding import InexactError, fold
from refusal_cmp.plan import Place, Plan, baseline
from refusal_cmp.planning import Setting
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.models import instructions, with_own_code, word_tokenizer

AT = {"layer": 4, "position": -1}
SITES = ("resid_pre", "attn_out", "mlp_out")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 3, "n_positions": 64, "initializer_range": 0.2}
GRANITE = {"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "mlp_bias": False}
OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "word_embed_proj_dim": 32,
       "max_position_embeddings": 64, "init_std": 0.2}  # fmt: skip


def random_chat(name, shape, dtype=torch.float64):
    """A random-weight model, by default in float64, in which identities hold to rounding."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = getattr(transformers, f"{name}Config")(
        **shape, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=2, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases that do nothing would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    return ChatModel(model, tokenizer, name)


def basis(model, k=2):
    return torch.linalg.qr(torch.randn(model.d_model, k, dtype=torch.float64))[0].mT.contiguous()


def projection(model):
    V = basis(model)
    places = [Place(layer, site) for layer in range(model.n_layers) for site in SITES]
    return Plan("projection", {place: LowRankEdit(V=V, A=-V) for place in places})


def addition(model, layer):
    return Plan("addition", {Place(layer, "resid_pre"): LowRankEdit(b=basis(model)[0])})


def changes(model, plan):
    with torch.inference_mode(), model.edited(plan):
        edited = model.last_logits(model.batch(model.tokenize(["one two"])))
    return not torch.allclose(edited, model.last_logits(model.batch(model.tokenize(["one two"]))), atol=1e-3)


FOLDABLE = [
    *(("diff-in-means", label) for label in ("ablation@all", "affine@all", "clamp@all", "actadd@single", "actadd@all")),
    *(("inlp", label) for label in ("nullspace@all", "reflection@all")),
]


@pytest.mark.parametrize(("method", "label"), FOLDABLE)
def test_the_exported_model_in_plain_transformers_is_the_hooked_one(tiny, tiny_fields, tmp_path, method, label):
    name, scope = label.split("@")
    strength = 3.0 if name == "actadd" else None
    plan = plan_intervention(name, tiny_fields[method], scope=scope, strength=strength, **AT)
    difference = export(tiny, plan, tmp_path / "out", "off by {difference}")
    assert difference < 1e-3
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    exported = ChatModel(plain, tokenizer, "exported")
    prompts = instructions("tiny-harmful", "test", 4) + instructions("tiny-harmless", "test", 4)
    with tiny.edited(plan):
        hooked = tiny.generate(prompts, max_new_tokens=16)
    assert exported.generate(prompts, max_new_tokens=16) == hooked
    assert hooked != tiny.generate(prompts, max_new_tokens=16)
    assert plain.lm_head.weight.data_ptr() != plain.model.embed_tokens.weight.data_ptr()
    assert (tmp_path / "out" / "README.md").read_text() == f"off by {difference:.1e}"
    assert not list((tmp_path / "out").glob("*.bin"))


ARCHITECTURES = {
    "Llama": SHAPE,  # biases by configuration
    "Qwen3": SHAPE,
    "Gemma": SHAPE,  # scales the embedding
    "Granite": SHAPE | GRANITE,  # scales the embedding and what is added
    "GPTNeoX": SHAPE,  # parallel attention
    "GPT2": GPT2,  # positions are embedded too, and weights are transposed
    "OPT": OPT,
}
HAVE_BIASES = ("Llama", "Granite", "GPTNeoX", "GPT2", "OPT")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_is_exact_in_every_pre_norm_architecture(name, tmp_path):
    model = random_chat(name, ARCHITECTURES[name])
    plans = [projection(model), addition(model, 0), *([addition(model, 2)] if name in HAVE_BIASES else [])]
    for index, plan in enumerate(plans):
        assert changes(model, plan)
        assert export(model, plan, tmp_path / str(index)) < (1e-4 if name == "Gemma" else 1e-10)  # norms in float32
    if name not in HAVE_BIASES:
        with pytest.raises(RefusalCmpError, match="has no mlp_bias"):
            export(model, addition(model, 2), tmp_path / "refused")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("Gemma2", SHAPE, "comes out of a Gemma2RMSNorm"),
        ("Olmo2", SHAPE, "comes out of a Olmo2RMSNorm"),
        ("Mixtral", SHAPE | {"num_local_experts": 2}, "mixed from experts"),
    ],
)
def test_what_no_weights_can_do_in_an_architecture_is_refused(name, shape, reason, tmp_path):
    model = random_chat(name, shape, torch.float32)  # experts have no float64
    with pytest.raises(RefusalCmpError, match=reason):
        export(model, projection(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("label", "setting", "reason"),
    [
        ("ablation@single", None, "already read unchanged"),
        ("clamp@single", None, "already read unchanged"),
        ("nullspace@top:50", None, "already read unchanged"),
        ("nullspace@all", Setting(sites=("resid_pre",)), "already read unchanged"),
        ("reflection@all", Setting(compose="repeat"), "already read unchanged"),
        ("alterrep@all", None, "reads absolute values"),
    ],
)
def test_plans_that_weights_cannot_do_are_refused_with_the_reason(tiny, tiny_fields, tmp_path, label, setting, reason):
    name, scope = label.split("@")
    plan = plan_intervention(name, tiny_fields["inlp"], scope=scope, setting=setting, **AT)
    with pytest.raises(RefusalCmpError, match=reason):
        export(tiny, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_direction_of_each_layers_own_and_the_baseline_are_refused(tiny, tiny_fields):
    own = plan_intervention("ablation", tiny_fields["diff-in-means"], direction="own", **AT)
    with pytest.raises(InexactError, match="already read unchanged"):
        fold(own, tiny.n_layers)
    with pytest.raises(InexactError, match="edits nothing"):
        fold(baseline(), tiny.n_layers)


def test_weights_that_do_something_else_are_not_left_behind(random_model, tmp_path, monkeypatch):
    """The check on export is of the saved folder itself."""
    plan = projection(random_model)
    config = random_model.model.config
    unfolded = {name: tensor.clone() for name, tensor in random_model.model.state_dict().items()}
    monkeypatch.setattr(exporting, "folded_weights", lambda *_: (config, unfolded))
    with pytest.raises(RefusalCmpError, match="off by up to"):
        export(random_model, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.6, "top_p": 0.9}, {"early_stopping": True}, {"pad_token_id": -1}, {"own": [1]}]
)
def test_a_generation_configuration_that_transformers_does_not_save_is_kept_as_it_came(tmp_path, settings):
    folder = Path(shutil.copytree(model_path("tiny-refuser"), tmp_path / "model"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    model = ChatModel.load(str(folder))
    assert export(model, projection(model), tmp_path / "out") < 1e-3
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == json.loads(file.read_text())
    assert ChatModel.load(str(tmp_path / "out")).stop_ids == model.stop_ids


def test_a_model_with_code_of_its_own_is_exported_with_it(tmp_path, code_cache):
    model = ChatModel.load(str(with_own_code(tmp_path / "model")), trust_remote_code=True)
    assert export(model, projection(model), tmp_path / "out") < 1e-3
    assert type(ChatModel.load(str(tmp_path / "out"), trust_remote_code=True).model).__name__ == "OwnModel"


def test_the_original_is_unchanged(random_model, tmp_path):
    batch = random_model.batch(random_model.tokenize(["one two", "a cake"]))
    before = random_model.last_logits(batch)
    plan = projection(random_model)
    export(random_model, plan, tmp_path / "out")
    assert torch.equal(random_model.last_logits(batch), before)
    assert largest_difference(random_model, baseline(), random_model.model)[0] == 0


def test_a_folder_that_is_there_is_not_written_over(random_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RefusalCmpError, match="is there already"):
        export(random_model, projection(random_model), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_exports_a_plan_of_a_run_with_its_card(tiny, tmp_path):
    flags = {"n_train": 32, "n_val": 4, "n_test": 4, "max_new_tokens": 4, "scope": "all"}
    config = load_config(
        None, {**flags, "methods": "diff-in-means", "interventions": "ablation,alterrep", "evals": "refusal"}
    )
    session = Session(config, RunDir(tmp_path / "runs" / "tiny-refuser"), loaded=tiny)
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    command = ["export", "diff-in-means/ablation@all", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    selection = json.loads((tmp_path / "runs/tiny-refuser/select/selection.json").read_text())["methods"][0]
    assert "diff-in-means/ablation@all" in card
    assert f"| layer | {selection['selected'][1]} |" in card
    assert "| harmful | refusal | " in card
    assert "local bypass" in card
    assert "{" not in card
    for label, message in (("nullspace", "Unknown plan"), ("diff-in-means/alterrep:1@all", "absolute values")):
        refused = CliRunner().invoke(app, ["export", label, str(tmp_path / "no"), *command[3:]], catch_exceptions=False)
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
