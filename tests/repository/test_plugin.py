"""The example plugin, installed as a stranger would install it: found by name, run, and as right as it says it is."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from refusal_cmp.activations import Labelled
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.evals import EVALUATORS
from refusal_cmp.methods import EXTRACTORS

PLUGIN = Path(__file__).parents[2] / "examples/plugin"
METHOD, EVALUATOR = "pca-of-differences", "first-token-entropy"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the plugin is installed in, without a network."""
    pytest.importorskip("setuptools", reason="the plugin's build needs setuptools")
    source = tmp_path_factory.mktemp("source") / "plugin"  # a build leaves files beside what it builds
    shutil.copytree(PLUGIN, source)
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", target, source], check=True, timeout=120
    )
    return target


@pytest.fixture
def plugin(site, monkeypatch):
    """Imported for one test: what it registers is gone after it."""
    monkeypatch.syspath_prepend(site)
    for registry in (EXTRACTORS, EVALUATORS):
        monkeypatch.setattr(registry, "_plugins", {name: registry.get(name) for name in registry})
    yield importlib.import_module("refusal_cmp_example")
    del sys.modules["refusal_cmp_example"]


def refusal_cmp(site, *commands, cwd=None):
    """What the command line prints; one process for all commands, as most of its time goes into imports."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    code = f"from refusal_cmp.cli import app; [app(args, standalone_mode=False) for args in {commands!r}]"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_plugin_is_listed_with_its_package(site):
    shown = refusal_cmp(site, ["methods"], ["evals"]).splitlines()
    for name in (METHOD, EVALUATOR):
        (line,) = [line for line in shown if line.split()[:1] == [name]]
        assert line.split()[-1] == "refusal_cmp_example"


def test_a_run_uses_the_plugin_beside_our_own(site, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"methods: [diff-in-means, '{METHOD}[k=2]']\nevals: [refusal, {EVALUATOR}]\n"
        "interventions: [nullspace]\nscope: [all]\nn_train: 40\nn_val: 2\nn_test: 3\nmax_new_tokens: 6\n"
    )
    shown = refusal_cmp(site, ["run", "--config", "run.yaml", "--until", "evaluate"], cwd=tmp_path)
    results = pd.read_csv(tmp_path / "runs/tiny-refuser/results.csv")
    entropy = results[results["metric"] == "first_token_entropy"]
    assert set(entropy["method"]) == {"baseline", "diff-in-means", f"{METHOD}[k=2]"}
    assert (entropy["value"] > 0).all()
    assert set(results.loc[results["method"] == f"{METHOD}[k=2]", "k"]) == {2}
    assert f"{METHOD}[k=2]/nullspace@all" in shown
    assert "entropy of the first token, nats: mean of −Σ p log p over its prompts" in " ".join(shown.split())


def test_the_component_is_that_of_both_orders_of_every_pair(plugin):
    """The oracle: principal components of D and −D together, from the eigenvectors of their covariance."""
    torch.manual_seed(0)
    x = torch.randn(60, 8, dtype=torch.float64)
    y = torch.arange(60) % 2 == 0
    x[y, 3] += 4
    found = plugin.PCAOfDifferences(k=3).fit(Labelled(x, y), Labelled(x, y))
    differences = x[y] - x[~y]
    covariance = torch.cat([differences, -differences]).mT.cov()
    expected = torch.linalg.eigh(covariance).eigenvectors.mT.flip(0)[:3]
    assert (found.basis @ expected.mT).abs().allclose(torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert (found.basis @ differences.mean(0) > 0).all()
    assert found.evidence[0] > 0.9
    assert found.norm == pytest.approx(float(differences.mean(0) @ found.direction))


def test_coinciding_classes_have_no_component(plugin):
    same = Labelled(torch.ones(12, 8, dtype=torch.float64), torch.arange(12) % 2 == 0)
    with pytest.raises(NoSubspaceError, match="vanish"):
        plugin.PCAOfDifferences().fit(same, same)
