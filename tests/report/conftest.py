"""One finished run of the embedded model, what it says, and what is drawn from it."""

from __future__ import annotations

import pytest

from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import draw_all

from support.finished_run import make_run


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small"
    studies = {"compare_rankings": True, "ranking_rules": "attribution"}
    return make_run(path, tiny, until="report", inlp_k="budget,full", **studies)


@pytest.fixture(scope="session")
def data(finished):
    return read_run(finished)


@pytest.fixture(scope="session")
def outcomes(data):
    return [one for one in draw_all(data) if one.name not in ("methods", "stability")]  # take more, or are asked for
