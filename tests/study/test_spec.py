"""A study's file → its cells, with labels that say what they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.study.spec import Cell, Study, parse_label, read_study

TEXT = st.text("abzAZ019 -_.:/\\=,+%\"'[]{}é—\n", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9, allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def written(tmp_path, content, name="some.yaml"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@given(st.dictionaries(st.sampled_from(["model", "seed", "layers", "method_options"]), VALUES, max_size=3))
def test_a_label_says_which_cell_it_is_and_is_the_name_of_a_folder(keys):
    label = Cell("some-name", keys, {}).label
    assert parse_label(label) == ("some-name", keys)
    assert not set(label) & set('/\\\n\0"?*<>|')
    assert label.isascii()
    assert not label.startswith(".")


def test_cells_are_named_ones_times_every_combination_of_the_grid(tmp_path):
    study = read_study(
        written(
            tmp_path,
            {
                "settings": {"limit": 20, "seed": 7},
                "cells": {"plain": None, "own": {"direction": "own"}},
                "grid": {"model": ["tiny-refuser", "org/Some-Model"], "seed": [1, 2]},
            },
        )
    )
    assert [cell.label for cell in study.cells][:3] == [
        "plain,model=tiny-refuser,seed=1",
        "plain,model=tiny-refuser,seed=2",
        "plain,model=org%2FSome-Model,seed=1",
    ]
    assert len(study.cells) == len(study.by_label) == 8
    assert {cell.subject for cell in study.cells} == {
        f"{name},model={model}" for name in ("plain", "own") for model in ("tiny-refuser", "org%2FSome-Model")
    }
    for cell in study.cells:
        assert cell.config.limit == 20
        assert cell.config.test_seed == 7  # seeds are compared on the same test prompts
        assert cell.config.direction == ("own" if cell.name == "own" else "best")
    assert Study.from_json(json.loads(json.dumps(study.to_json()))).cells == study.cells


def test_more_cells_rename_none(tmp_path):
    grid = {"seed": [1, 2], "kl_threshold": [0.1]}
    few = {cell.label: cell.digest for cell in read_study(written(tmp_path, {"grid": grid})).cells}
    more = {"seed": [3, 1, 2], "kl_threshold": [0.2, 0.1]}
    many = {cell.label: cell.digest for cell in read_study(written(tmp_path, {"grid": more})).cells}
    assert few.items() < many.items()


def test_a_cell_may_begin_with_a_file_of_settings(tmp_path):
    study = read_study(
        written(tmp_path, {"settings": {"config": "published", "dtype": "float16"}, "grid": {"seed": [42]}})
    )
    (cell,) = study.cells
    alike = load_config("published", {"dtype": "float16", "seed": 42, "test_seed": 42})
    assert cell.digest == alike.digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"grid": {"seeds": [1]}}, "Unknown setting 'seeds'"),
        ({"grid": {"kl_threshold": [0.1, -1]}}, "kl-threshold is -1"),
        ({"settings": {"inlp_stop": 3, "prune_layers": 7}, "grid": {"seed": [1]}}, "prune-layers is 7"),
        ({"grid": {"seed": [1, 1]}}, "two cells are seed=1"),
        ({"grid": {"seed": []}}, "no value for seed"),
        ({"grid": {"seed": 3}}, "grid.seed does not hold"),
        ({"settings": {}}, "neither a grid nor cells"),
        ({"gird": {"seed": [1]}}, "Did you mean 'grid'?"),
        ({"grid": {"runs_dir": ["a"]}}, "which is not the study's"),
        ({"grid": {"config": ["published"]}}, "cannot be in the grid"),
        ({"cells": {"a": {"seed": 3}}, "grid": {"seed": [1]}}, "both set seed"),
        ({"cells": {"A b": {}}}, "cannot be called 'A b'"),
        ({"grid": {"seed": [1]}, "until": "select"}, "ends at select"),
        ({"grid": {"seed": [1]}, "until": "never"}, "Unknown stage 'never'"),
        ({"grid": {"seed": [1]}, "resources": {"gpus": -1}}, "resources.gpus does not hold"),
        ({"grid": {"system": ["x" * 400]}}, "too long for a folder"),
        ("- a\n", "must hold settings, grid or cells"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(tmp_path, content, says):
    with pytest.raises(RefusalCmpError) as error:
        read_study(written(tmp_path, content))
    assert says in str(error.value)
    assert str(error.value).count("\n") == 0


def test_what_cells_have_in_common_is_what_their_settings_before_say(tmp_path):
    grid = {"direction": ["best", "own"], "phrases": ["published", "extended"], "induce_threshold": [0.0, 0.5]}
    cells = {
        cell.label: cell.bases for cell in read_study(written(tmp_path, {"grid": grid | {"inlp_c": [0.1, 1.0]}})).cells
    }

    def apart(stage):
        return len({bases[stage] for bases in cells.values()})

    assert apart("extract") == apart("select") == apart("infer") == 2  # by inlp_c alone
    assert apart("evaluate") == 2 * 2 * 2  # and by what plans are made of, and how they are judged
    other = {"grid": {"kl_threshold": [0.1, 0.2]}}
    bases = [cell.bases for cell in read_study(written(tmp_path, other)).cells]
    assert bases[0]["extract"] == bases[1]["extract"]
    assert bases[0]["select"] != bases[1]["select"]  # by default it decides how many directions are scored
    measured = {"settings": {"ranking_rules": "cosmic"}, "grid": {"seed": [1]}}
    assert "select" not in read_study(written(tmp_path, measured)).cells[0].bases  # costs are measured, not borrowed


ROOT = Path(__file__).parents[2]


def test_the_examples_and_the_study_of_the_documentation_are_studies(tmp_path):
    published = read_study(ROOT / "examples/study-published.yaml")
    assert len({cell.config.model for cell in published.cells}) == 5
    assert {cell.config.test_seed for cell in published.cells} == {42}  # the published sample, with every seed
    for cell in published.cells:
        assert cell.config.harmful == load_config("published", {}).harmful
    tiny = read_study(ROOT / "examples/study-tiny.yaml")
    assert len(tiny.cells) == 6
    assert {cell.config.model for cell in tiny.cells} == {"tiny-refuser"}
    (block,) = re.findall(r"```yaml title=\"(.+?)\"\n(.*?)```", (ROOT / "docs/studies.md").read_text(), re.DOTALL)
    assert len(read_study(written(tmp_path, block[1], block[0])).cells) == 4
    job = yaml.safe_load((ROOT / "examples/ray-cluster.yaml").read_text())
    assert "--executor ray" in job["spec"]["entrypoint"]
