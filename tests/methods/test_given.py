"""Directions from elsewhere: what files are taken, where they are put, and that they run like any method."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.methods.given import GivenDirection
from refusal_cmp.model.reading import collect
from refusal_cmp.planning import Chosen, Scope, make_plan
from refusal_cmp.run.contents import read_field, read_selections
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.subspace import Component

from support.models import instructions

AT = Component(-1, 3)
PLACED = {"position": "-1", "layer": "3"}


@pytest.fixture(scope="module")
def activations(tiny):
    prompts = instructions("tiny-harmful", "train", 40), instructions("tiny-harmless", "train", 40)
    return collect(tiny, *prompts, needs="means")


@pytest.fixture
def saved(tmp_path):
    def save(tensors, metadata=PLACED, name="mine"):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
        return tmp_path / f"{name}.safetensors"

    return save


def rows(k: int, d: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed))


def the_subspace(path, activations, at=None):
    field = GivenDirection(path, at).fit_field(activations, "given-mine")
    (component,) = field
    return component, field[component]


@pytest.mark.parametrize(
    ("make", "k"),
    [
        (lambda v: {"direction": v[0]}, 1),
        (lambda v: {"anything": v[0]}, 1),
        (lambda v: {"anything": v[:1]}, 1),
        (lambda v: {"basis": v}, 3),
        (lambda v: {"anything": v.half()}, 3),
        (lambda v: {"basis": v, "direction": v[0].clone(), "other": torch.zeros(7)}, 3),
    ],
)
def test_a_direction_or_a_basis_is_taken_in_its_order(saved, activations, make, k):
    d = activations.means().harmful.shape[-1]
    given = rows(3, d)
    component, subspace = the_subspace(saved(make(given)), activations)
    assert component == AT
    assert subspace.k == k
    assert torch.allclose(subspace.basis @ subspace.basis.T, torch.eye(k).double(), atol=1e-12)
    for j in range(1, k + 1):  # the first j rows span what the first j given ones do
        span = subspace.basis[:j]
        residual = given[:j].double() - given[:j].double() @ span.T @ span
        assert residual.norm() < 1e-2 * given[:j].norm()
    assert torch.nn.functional.cosine_similarity(subspace.direction, given[0].double(), dim=0).abs() > 0.999


def test_its_sign_norm_and_evidence_are_those_of_this_runs_activations(saved, activations):
    harmful, harmless = activations.means().at(AT)
    difference = harmful - harmless
    found = [the_subspace(saved({"direction": sign * difference}), activations)[1] for sign in (-3.0, 0.01)]
    same = DiffInMeans().fit(*activations.moments_at(AT))
    for subspace in found:
        assert torch.allclose(subspace.direction, same.direction, atol=1e-6)
        assert subspace.norm == pytest.approx(same.norm, rel=1e-5)
        assert torch.equal(subspace.evidence, same.evidence)


def test_the_place_is_that_of_the_option_or_of_the_file(saved, activations):
    d = activations.means().harmful.shape[-1]
    assert the_subspace(saved({"direction": rows(1, d)[0]}), activations, at=(-2, 1))[0] == (-2, 1)
    assert the_subspace(saved({"direction": rows(1, d)[0]}, {"layer": "2"}), activations)[0] == (-1, 2)


BASIS = rows(2)


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"direction": torch.zeros(128)}, PLACED, "holds a direction that is zero"),
        ({"direction": torch.full((128,), torch.nan)}, PLACED, "holds a NaN or an infinity"),
        ({"basis": torch.cat([BASIS, BASIS.sum(0, keepdim=True)])}, PLACED, "3 rows of .* span only 2 dimensions"),
        ({"direction": rows(1, 5)[0]}, PLACED, r"have 5 numbers, and the model's residual stream has \d+"),
        ({"direction": rows(1, 5)[0], "basis": rows(2, 6)}, PLACED, "has 5 numbers and its basis 6"),
        ({"direction": rows(1)[0]}, None, "does not say which layer .*; give its place"),
        ({"direction": rows(1)[0]}, {"layer": "x"}, "does not say which layer"),
        ({"direction": rows(1)[0]}, {"layer": "99"}, r"is for component \(-1, 99\), and the model has positions"),
        (
            {"a": rows(1)[0], "b": rows(1)[0]},
            PLACED,
            r"must hold a direction \(d,\) .* and holds a \(128,\), b \(128,\)",
        ),
        ({"mean_diffs": torch.zeros(5, 4, 128)}, PLACED, r"holds mean_diffs \(5, 4, 128\)"),
        ({}, PLACED, "holds no tensor"),
    ],
)
def test_a_mistake_is_one_sentence(saved, activations, tensors, metadata, says):
    with pytest.raises(RefusalCmpError, match=says):
        GivenDirection(saved(tensors, metadata)).fit_field(activations, "given-mine")


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), (b"", ""), (b"\x80\x02pickle", "")])
def test_a_file_that_is_no_safetensors_file_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RefusalCmpError, match=f"Cannot read the direction {re.escape(str(path))}.*{says}"):
        GivenDirection(path).rows()


def test_settings():
    config = load_config(None, {"methods": "inlp", "direction": "own,a/My Dir.safetensors", "direction_at": "-2,14"})
    assert (config.methods, config.direction, config.direction_at) == (("inlp", "given-my-dir"), "own", (-2, 14))
    assert load_config(None, config.model_dump(mode="json")) == config
    alone = load_config(None, {"methods": "given-x", "direction": "x.safetensors"})
    assert (alone.methods, alone.direction) == (("given-x",), "best")
    with pytest.raises(RefusalCmpError, match="two directions are called given-x, so rename one of the files"):
        load_config(None, {"direction": "a/x.safetensors,b/X.safetensors"})


SMALL = {
    "n_train": 40,
    "n_val": 4,
    "n_test": 3,
    "max_new_tokens": 4,
    "interventions": "ablation,actadd,alterrep",
    "scope": "all",
    "evals": "refusal",
}


def start(path, model, **flags):
    session = Session(load_config(None, {**SMALL, **flags}), RunDir(path))
    session.__dict__["model"] = model
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    return session


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run, and one that is given what the first one found: its selected direction, and all its subspaces."""
    home = tmp_path_factory.mktemp("runs")
    first = start(home / "first", tiny, methods="diff-in-means")
    field, selected = read_field(first, "diff-in-means"), read_selections(first)[0].selected
    place = {"position": str(selected.position), "layer": str(selected.layer)}
    save_file({"direction": -2 * field[selected].direction}, home / "Best One.safetensors", place)
    whole = home / "first/extract/diff-in-means.safetensors"
    files = f"{home / 'Best One.safetensors'},{whole}"
    return first, start(home / "second", tiny, methods="given-best-one,given-diff-in-means", direction=files)


def test_a_given_direction_runs_like_the_method_that_found_it(runs):
    first, second = runs
    results = pd.read_csv(second.run.path / "results.csv")
    columns = ["intervention", "strength", "scope", "dataset", "metric"]
    expected = pd.read_csv(first.run.path / "results.csv").query("method == 'diff-in-means'").set_index(columns)
    assert {"ablation", "actadd", "alterrep"} == set(expected.index.get_level_values("intervention"))
    for method in ("given-best-one", "given-diff-in-means"):
        found = results[results["method"] == method].set_index(columns)
        pd.testing.assert_frame_equal(found[["value", "position", "layer"]], expected[["value", "position", "layer"]])


def test_a_whole_runs_subspaces_are_selected_from_again(runs):
    first, second = runs
    given, original = read_field(second, "given-diff-in-means"), read_field(first, "diff-in-means")
    assert list(given) == list(original)
    for component in given:
        assert torch.allclose(given[component].basis, original[component].basis, atol=1e-6)
    assert read_selections(second)[1].ranking == read_selections(first)[0].ranking
    plans = [
        make_plan("actadd", Chosen(field, next(iter(field)), tuple(field)), Scope("all"), strength=1.0)
        for field in (given, original)
    ]
    for place, edit in plans[0].edits.items():
        assert torch.allclose(edit.b, plans[1].edits[place].b, atol=1e-4)


def test_a_changed_file_is_read_again(runs, tiny, tmp_path):
    first, _ = runs
    d = read_field(first, "diff-in-means").means.harmful.shape[-1]
    path = tmp_path / "x.safetensors"
    flags = {**SMALL, "methods": "given-x", "direction": str(path)}
    digests = []
    for seed in (0, 0, 1):
        save_file({"basis": rows(2, d, seed)}, path, PLACED)
        session = Session(load_config(None, flags), RunDir(tmp_path / "run"))
        session.__dict__["model"] = tiny
        run_stages(session, ("extract",))
        digests.append(session.run.digest("extract/given-x.safetensors"))
    assert digests[0] == digests[1] != digests[2]
