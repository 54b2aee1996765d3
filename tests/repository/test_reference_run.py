"""The committed reference runs, and that this code, on this machine, still gives what that of the tiny model holds.

A cheap part of the pipeline is run again from the configuration that the reference run names: extraction with all its
methods, and selection, completions and refusal for difference in means under its removal edits. The tolerances are
for other processors, whose last bits differ; where nothing else does, the runs agree to 1e-6.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_cmp.commands.compare import Tolerance, compare_runs
from refusal_cmp.config import MachineSettings, load_config
from refusal_cmp.run.contents import PAGE, PROMPTS, read_field, read_selections, read_stability
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.stages import run_stages

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "runs/tiny-refuser"
pytestmark = pytest.mark.skipif(
    not (REFERENCE / "results.csv").is_file(), reason="there is no reference run in runs/tiny-refuser"
)

CHEAP = {
    "methods": ("diff-in-means",),
    "interventions": ("ablation", "nullspace"),
    "scope": ("all",),
    "eval_datasets": ("harmful",),
    "evals": ("refusal",),
    "compare_rankings": False,
}
"""Parts of the grid, so that prompts, subspaces, scores and plans are those of the reference run."""
TOLERANCE = Tolerance(numbers=0.02, completions=0.02)
LARGEST = {"tiny-refuser": 7_700_000, "smol-refuser": 5_000_000}
"""Bytes of the committed runs: mostly completions and the page of the first, and directions of the second."""
COMMITTED = pytest.mark.parametrize("run", [REPOSITORY / "runs" / name for name in LARGEST], ids=lambda run: run.name)
TEXTS = {".json", ".jsonl", ".csv", ".yaml", ".html", ".svg", ".tex"}
MACHINE_PATH = re.compile(r"(?<![\w./:])(/(home|root|tmp|work|var|mnt|opt|private|Users)/|[A-Z]:\\\\Users)")


def rerun(path: Path, **machine: object) -> Session:
    """The cheap part of the reference run, done again in another folder."""
    manifest = RunDir(REFERENCE).manifest
    own = ("runs_dir", "alias", "device")
    stored = {name: value for name, value in manifest["config"].items() if name not in own}
    settings = {**stored, "device": manifest["device"], **machine}
    run_stages(Session(load_config(None, settings), RunDir(path)), ("extract",))
    session = Session(load_config(None, settings | CHEAP), RunDir(path))
    run_stages(session, ("select", "infer", "evaluate"))
    return session


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    return rerun(tmp_path_factory.mktemp("runs") / "again")


def test_the_same_prompts_are_kept(again):
    assert again.run.read_json(PROMPTS) == RunDir(REFERENCE).read_json(PROMPTS)


def test_the_same_subspaces_are_found(again):
    """Ranks, evidence and bases of every method at every component."""
    config = RunDir(REFERENCE).manifest["config"]
    stored = {name: value for name, value in config.items() if name not in MachineSettings.model_fields}
    reference = Session(load_config(None, stored), RunDir(REFERENCE))
    for method in reference.config.methods:
        expected, found = read_field(reference, method), read_field(again, method)
        assert set(found) == set(expected)
        assert found.missing == expected.missing
        for component, one in expected.subspaces.items():
            other = found[component]
            assert other.k == one.k, (method, component)
            assert other.evidence.allclose(one.evidence, atol=0.02, equal_nan=True), (method, component)
            assert other.norm == pytest.approx(one.norm, rel=1e-3)
            cosines = (other.basis * one.basis).sum(-1)
            assert (cosines > 0.999).all(), (method, component, cosines)


def test_the_same_numbers_and_completions_come_out(again):
    """But for ranks, which count what was scored: the reference run has scores of layers that cannot be chosen, too."""
    diff = compare_runs(REFERENCE, again.run.path, TOLERANCE)
    compared = [entry for entry in diff.entries if entry.outcome != "only in A"]
    assert {entry.part for entry in compared} == {"selection", "scores", "metrics", "completions"}
    assert [entry for entry in compared if not entry.agrees and entry.name[-1] != "rank"] == []


@COMMITTED
def test_it_names_no_path_of_the_machine_that_made_it(run):
    for path in run.rglob("*"):
        if path.suffix in TEXTS:
            found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found[0]}"


@COMMITTED
def test_it_is_small_enough_to_be_committed(run):
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("what is committed is known to git only")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", f"runs/{run.name}"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]
    assert f"runs/{run.name}/results.csv" in names
    assert sum((REPOSITORY / name).stat().st_size for name in names) <= LARGEST[run.name]


@COMMITTED
def test_it_says_how_stable_what_it_claims_is(run):
    session = open_run(run)
    found = read_stability(session)
    assert found is not None, "it is of these prompts and subspaces"
    fitted = set(found.directions["method"])
    assert fitted == set(session.config.methods)
    assert set(found.choices["method"]) == {one.method for one in read_selections(session)}
    assert "How stable it is" in (run / PAGE).read_text(encoding="utf-8")


@COMMITTED
def test_every_figure_and_table_is_made_from_it(run, tmp_path):
    """In a clone, from what is committed alone."""
    script = REPOSITORY / "scripts" / "figures.py"
    command = [sys.executable, str(script), "all", str(run), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.stem for path in (tmp_path / run.name).iterdir()}
    figures = {path.stem for path in (run / "report" / "figures").glob("*.png")}
    assert figures <= made
    assert {"plans", "selection"} <= made
