"""A whole study, undisturbed."""

from __future__ import annotations

import pytest

from support.study import run, written


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The study, its folder, what failed of it, and what was said."""
    path = tmp_path_factory.mktemp("study")
    return run(written(path / "small.yaml"), path / "runs")
