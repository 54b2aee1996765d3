"""A finished run that commands are tried on, and a copy of it for those that write there."""

from __future__ import annotations

import shutil

import pytest

from refusal_cmp.run.session import open_run

from support.finished_run import make_run

JUDGED = {
    "layers": "6:7",
    "n_train": 24,
    "interventions": "ablation,clamp",
    "scope": "all",
    "evals": "refusal,guard",
    "guard": "tiny-guard",
    "compare_rankings": False,
}


@pytest.fixture(scope="package")
def judged(tiny, tmp_path_factory):
    """A run of the embedded model with two judges."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny-refuser", tiny, **JUDGED).run.path


@pytest.fixture
def session(judged, tiny, tmp_path):
    """A session on a copy of it."""
    shutil.copytree(judged, tmp_path / "tiny-refuser")
    found = open_run(tmp_path / "tiny-refuser")
    found.loaded = tiny
    return found
