"""Settings that cannot be meant are refused before any work, and what a run was begun with stays its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refusal_cmp.api import load_prompts, plan_intervention
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.planning import Setting
from refusal_cmp.run.contents import RESULTS
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.pipeline import start


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"actadd_multipliers": "1,inf"}, "finite"),
        ({"strengths": {"clamp": [float("nan")]}}, "finite"),
        ({"induce_threshold": float("nan")}, "finite"),
        ({"inlp_k": "0"}, "a number from 1 on"),
        ({"alias": ""}, "name of a folder"),
        ({"alias": ".."}, "name of a folder"),
        ({"alias": "a/b"}, "name of a folder"),
        ({"alias": "a\0b"}, "holds a NUL"),
        ({"alias": "a\ud800"}, "half a character"),
        ({"alias": "a" * 300}, "a name may have 255 bytes"),
        ({"alias": "a\nb"}, "a line break"),
        ({"model": ""}, "must not be empty"),
        ({"model": "x/.."}, "the name of a model"),
        ({"model": "/"}, "the name of a model"),
        ({"model": "é" * 200}, "a name may have 255 bytes, and a path 1024"),
        ({"runs_dir": "a/" * 600}, "a path 1024"),
        ({"system": "Be\0"}, "holds a NUL"),
        ({"harmful": " "}, "must not be empty"),
        ({"eval_datasets": ["harmful", " "]}, "must not be empty"),
        ({"seed": 2**32}, "from 0 to 4294967295"),
        ({"seed": str(2**32)}, "from 0 to 4294967295"),
        ({"seed": -1}, "from 0 to 4294967295"),
        ({"seed": True}, "neither true nor false"),
        ({"n_train": True}, "neither true nor false"),
        ({"induce_multipliers": [1, True]}, "neither true nor false"),
        ({"strengths": {"clamp": [False]}}, "neither true nor false"),
        ({"methods": True}, "neither true nor false"),
        ({"max_new_tokens": 10**30}, "4294967295 at most"),
        ({"refusal_tokens": [10**30]}, "4294967295 at most"),
        ({"n_test": 10**5000}, "too long to be shown.* at most"),
        ({"dev_share": 1e-9}, "greater than or equal to 0.1"),
        ({"dev_share": 0.9999}, "less than or equal to 0.9"),
        ({"inlp_c": 1e308}, "from 1e-08 to 1e\\+08"),
        ({"inlp_c": 1e-308}, "from 1e-08 to 1e\\+08"),
        ({"inlp_k": "9" * 5000}, "a number from 1 on"),
        ({"openai_timeout": 1e300}, "less than or equal to 86400"),
        ({"method_options": {"inlp": {"c": {1, 2}}}}, "made of text, numbers"),
        ({"method_options": {"inlp": {"c": [[[[[[[[[1]]]]]]]]]}}}, "nested too deep"),
        ({"methods": "given[path=../x.safetensors]"}, "part of the names of files"),
        ({"methods": f"inlp[c=0.{'1' * 100}]"}, "part of the names of files"),
        ({"tasks": "mmlu@0,mmlu@5/10"}, "mmlu is given in several variants"),
        ({"evals": "refusal,refusal[phrases=extended]"}, "refusal is given in several variants"),
        ({"direction": "own,best"}, "'best' or 'own'"),
        ({"direction": "own,best,x.safetensors"}, "'best' or 'own'"),
        ({"sites": "resid_pre"}, "composed once"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings, complaint):
    with pytest.raises(RefusalCmpError, match=complaint):
        load_config(None, settings)


def test_an_object_that_holds_itself_is_refused():
    options = {}
    options["inlp"] = {"c": options}
    with pytest.raises(RefusalCmpError, match="nested too deep"):
        load_config(None, {"method_options": options})


@pytest.mark.parametrize(
    ("setting", "given", "once"),
    [
        ("methods", "inlp,inlp,diff-in-means,inlp[]", ("inlp", "diff-in-means")),
        ("methods", "inlp[max_k=5], inlp[ max-k = 5 ]", ("inlp[max-k=5]",)),
        ("interventions", ["ablation", "actadd", "ablation"], ("ablation", "actadd")),
        ("scope", "top:50,single,top:50.0,top:5e1", ("top:50", "single")),
        ("evals", "refusal,refusal", ("refusal",)),
        ("texts", "pile,pile", ("pile",)),
        ("tasks", "mmlu@5,mmlu@5", ("mmlu@5",)),
        ("inlp_k", "full,full,5", ("full", "5")),
        ("actadd_multipliers", "1,1.0,-1,1.0000000001", (1.0, -1.0)),
        ("actadd_multipliers", "0,-0.0", (0.0,)),
        ("induce_multipliers", [1, 1], (1.0,)),
        ("sites", "resid_pre,attn_out,resid_pre,mlp_out", ("resid_pre", "attn_out", "mlp_out")),
        ("eval_datasets", "harmful,a.csv,harmful,a.csv", ("harmful", "a.csv")),
        ("refusal_tokens", "1,2,1", (1, 2)),
        ("column", "goal,goal", ("goal",)),
        ("given", ["a.safetensors", "./a.safetensors"], (Path("a.safetensors"),)),
        ("direction_at", "-1,-1", (-1, -1)),
    ],
)
def test_a_value_that_is_repeated_counts_once(setting, given, once):
    assert getattr(load_config(None, {setting: given}), setting) == once


def test_a_list_of_any_length_is_read_at_once():
    assert load_config(None, {"column": "," * 200_000 + "a" + ",[" * 100}).column == ("a", "[,[" + ",[" * 98)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_least_and_the_largest_seed_do(seed, tiny, tmp_path):
    session, _ = start(
        tmp_path / "run", tiny, ("extract",), seed=seed, methods=f"inlp,random[seed={seed}],shuffled[seed={seed}]"
    )
    assert session.run.read_table("extract/inlp.ranks.csv")["seed"].nunique() == 6


@pytest.mark.parametrize(
    "flags",
    [
        {"dev_share": 0.1, "n_train": 10, "inlp_stop": "0.55"},
        {"dev_share": 0.9, "n_train": 10},
        {"inlp_c": 1e-8},
        {"inlp_c": 1e8},
    ],
)
def test_the_least_and_the_largest_share_and_penalty_do(flags, tiny, tmp_path):
    start(tmp_path / "run", tiny, ("extract",), methods="inlp", filter_prompts=False, **flags)


def test_a_seed_that_is_refused_does_not_bind_the_run(tiny, tmp_path):
    with pytest.raises(RefusalCmpError, match="from 0 to 4294967295"):
        start(tmp_path / "run", tiny, ("extract",), seed=2**32)
    for control in ("random", "shuffled"):
        with pytest.raises(RefusalCmpError, match="from 0 to 4294967295"):
            start(tmp_path / "run", tiny, ("extract",), methods=f"{control}[seed={2**32}]")
    assert not (tmp_path / "run").exists()
    start(tmp_path / "run", tiny, ("extract",), seed=7, methods="diff-in-means")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("My Set.csv", "my-set"), ("a/b.c.json", "b-c"), ("my/v1.5", "v1-5"), ("my/set/", "set"), ("./", "file"),
        ("NULL.csv", "null"), ("harmful.csv", "harmful-file"), ("all.csv", "all-file"), ("日本.csv", "file"),
        (f"{'ab ' * 60}.csv", "ab-" * 19 + "ab"),
    ],
)  # fmt: skip
def test_the_label_of_a_file(name, label):
    assert load_config(None, {"eval_datasets": [name]}).test_sets == (label,)


@pytest.mark.parametrize("sets", ["My Set.csv,my-set.json", "a.csv,./a.csv", "日.csv,本.csv", "all.csv,all-file.csv"])
def test_files_whose_names_make_one_label(sets):
    with pytest.raises(RefusalCmpError, match="two test sets are called .*, so rename one of the files, or leave one"):
        load_config(None, {"eval_datasets": sets})


def test_the_quick_settings_are_for_any_model_and_fetch_nothing_but_prompts():
    own = {"model": "./my-model", "harmful": "my.csv", "harmless": "mine.csv"}
    quick, default = load_config("quick", own), load_config(None, own)
    assert (quick.model, quick.harmful, quick.harmless) == tuple(own.values())
    assert quick.layers is None, "they depend on the model"
    assert not {"guard", "capability"} & set(quick.evals)
    assert (quick.texts, set(quick.test_sets)) == (("on-distribution",), {"harmful", "harmless"})
    for name in ("n_train", "n_val", "n_test", "max_new_tokens", "loss_tokens"):
        assert getattr(quick, name) < getattr(default, name), name


def test_a_quick_run_goes_from_prompts_to_results(tiny, tmp_path):
    flags = {"layers": "4:8", "n_train": 24, "n_val": 4, "n_test": 4, "max_new_tokens": 8}
    session = Session(load_config("quick", flags), RunDir(tmp_path / "run"), loaded=tiny)
    run_stages(session, STAGES[:4])
    results = session.run.read_table(RESULTS)
    plans = 2 * (1 + 2) * 2
    assert results["plan"].nunique() == 1 + plans, "as docs/quick-start.md counts them"
    assert {"refusal", "in_language", "loss", "kl"} <= set(results["metric"])


@pytest.mark.parametrize(
    "settings",
    [{"compose": "repeat"}, {"scope": "single"}, {"interventions": "ablation"}],
)
def test_one_site_is_enough_where_nothing_is_mirrored_once_over_layers(settings):
    assert load_config(None, {"sites": "resid_pre", **settings}).sites == ("resid_pre",)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "./nosuch"}, "is not there"),
        ({"strengths": {"clmp": [2]}}, "Did you mean 'clamp'"),
        ({"strengths": {"ablatoin": [2]}}, "Did you mean 'ablation'"),
        ({"interventions": "ablation[share=0.5]"}, "write it behind a colon"),
        ({"interventions": "clamp[share=0.5]", "calibrate": "kl=0.1"}, "take share out of it"),
        ({"interventions": "clamp[share=2]"}, "less than or equal to 1"),
        ({"rank_key_of": {"inpl": "bypass"}}, "Did you mean 'inlp'"),
        ({"score_sites_of": {"inpl": ["resid_pre"]}}, "Did you mean 'inlp'"),
        ({"method_options": {"inpl": {"c": 1}}}, "Did you mean 'inlp'"),
    ],
)
def test_a_name_that_is_not_there_is_refused_before_any_work(settings, complaint, tmp_path):
    session = Session(load_config(None, settings), RunDir(tmp_path / "run"))
    with pytest.raises(RefusalCmpError, match=complaint):
        run_stages(session, ("extract",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ("inlp[c=x]", "'c' of method 'inlp' is 'x'"),
        ("inlp[c=-1]", "greater than 0"),
        ("inlp[c=1.0e+300]", "from 1e-08 to"),
        ("inlp[max_k=0]", "greater than or equal to 1"),
        ("inlp[stop=2]", "between 0 and 1"),
        ("diff-in-means[data=foo]", "'train' or 'all'"),
        ("random[k=0]", "greater than or equal to 1"),
        ("inlp[max-k=1,max_k=2]", "sets max_k twice; keep one"),
        ("inlp[c=[[[[]", "The option c of .* is not YAML"),
        ("inlp[c=!!python/name:x]", "The option c of .*leave out the tag"),
        ("inlp[c=&a 1,max-k=*a]", "The option max-k of .*write out"),
        ("inlp[c=2020-13-45]", "'c' of method 'inlp' is '2020-13-45'"),
    ],
)
def test_the_values_of_hyper_parameters_are_checked(method, complaint):
    with pytest.raises(RefusalCmpError, match=complaint):
        EXTRACTORS.create(method)


def test_strengths_are_finite(tiny_fields):
    with pytest.raises(RefusalCmpError, match="finite"):
        plan_intervention("actadd", tiny_fields["inlp"], layer=5, strength=float("inf"))


def test_instructions_are_a_list(tiny):
    with pytest.raises(RefusalCmpError, match="not one string"):
        tiny.generate("How do I whistle?")
    assert tiny.generate([]) == []


@pytest.mark.parametrize("n", [-4, 0, 10_000])
def test_no_more_instructions_than_there_are(n):
    with pytest.raises(RefusalCmpError, match="ask for 1 to"):
        load_prompts("tiny-harmful", "test", n)


def test_refusal_tokens_are_the_models(tiny, tmp_path):
    config = load_config(None, {"refusal_tokens": "999999", "n_train": 10, "n_val": 1, "n_test": 1})
    with pytest.raises(RefusalCmpError, match="0 to 2047"):
        run_stages(Session(config, RunDir(tmp_path / "run"), loaded=tiny), ("extract",))


def test_the_content_of_a_chat_template_is_bound_not_its_name(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    config = load_config(None, {"chat_template": str(template)})
    before = config.binding("extract")
    template.write_text("{{ messages }}!", encoding="utf-8")
    assert config.binding("extract")["chat_template"] != before["chat_template"]


def test_a_run_goes_on_in_the_precision_and_commit_it_was_begun_with(tmp_path):
    """`auto` and a branch mean something else on another machine and another day."""
    run = RunDir(tmp_path / "run")
    run.note(model={"dtype": "bfloat16", "revision": None})
    assert Session(load_config(None, {}), run).model.model.dtype == torch.bfloat16
    forced = RunDir(tmp_path / "run", force=("extract",))
    forced.note(model={"dtype": "bfloat16", "revision": None})
    assert Session(load_config(None, {"device": "cpu"}), forced).model.model.dtype == torch.float32


def test_a_batch_size_that_nobody_asked_for_is_found_again_when_a_run_is_repeated(tmp_path, tiny):
    """`config.yaml` names every setting; one that was left open stays so."""

    def engine(**flags):
        return Session(load_config(tmp_path / "config.yaml", flags), RunDir(tmp_path / "run"), loaded=tiny).engine

    (tmp_path / "config.yaml").write_text(load_config(None, {}).to_yaml(), encoding="utf-8")
    assert not engine().rows.fixed
    assert engine(batch_size="7").rows.fixed
    assert engine(batch_size="7").rows.limit == 7


def test_a_forced_stage_takes_the_ground_from_later_ones(tmp_path):
    """What was made from earlier files is not shown beside new ones: it has to be run again first."""
    run = RunDir(tmp_path, force=("select",))
    config = load_config(None, {})
    stages = ("extract", "select", "infer", "evaluate")
    run.note(stages={name: {"state": "done", "settings": config.binding(name)} for name in stages})
    run.save()
    with pytest.raises(RefusalCmpError, match="missing"):
        run_stages(Session(config, run), ("select",))
    states = {name: one["state"] for name, one in run.manifest["stages"].items()}
    assert states == {"extract": "done", "select": "running", "infer": "outdated", "evaluate": "outdated"}
    run.save()
    with pytest.raises(RefusalCmpError, match=r"is not finished \(running\)"):
        run_stages(Session(config, RunDir(tmp_path)), ("report",))


def test_a_guard_that_is_not_there_is_refused_before_the_long_work(tmp_path):
    config = load_config(None, {"guard": str(tmp_path / "Llama-Guard-nosuch")})
    with pytest.raises(RefusalCmpError, match="Cannot load the guard"):
        run_stages(Session(config, RunDir(tmp_path / "run")), ("extract", "select", "infer", "evaluate"))
    assert not (tmp_path / "run").exists()


def test_a_folder_names_its_run_whatever_it_is_called_by(tmp_path, monkeypatch):
    (tmp_path / "My-Model").mkdir()
    monkeypatch.chdir(tmp_path / "My-Model")
    assert load_config(None, {"model": "."}).run_name == "my-model"


def test_layers_that_share_a_subspace_share_its_tensors(tiny_fields):
    """Of a plan at every layer there is one projection in memory, not one for each site."""
    plan = plan_intervention("nullspace", tiny_fields["inlp"], layer=5)
    assert len(plan.edits) == 3 * 10
    assert len({id(edit) for edit in plan.edits.values()}) == 1


def test_every_setting_differs_in_some_intervention():
    """What `Setting` offers, `uses` of the interventions names."""
    used = {name for intervention in INTERVENTIONS for name in INTERVENTIONS.create(intervention).uses}
    assert used == set(vars(Setting()))
