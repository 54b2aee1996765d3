"""Thousands of cells: what is listed and reported of them is read in one pass, and their numbers are not all kept."""

from __future__ import annotations

import os

import pytest
import yaml

from refusal_cmp.study.spec import read_study

from support.study import command, synthetic

CELLS = int(os.environ.get("STUDY_CELLS", "400"))
"""10,000 in the figures of docs/studies.md."""
SECONDS = 60
PLANS = [
    f"{method}/{edit}@{scope}"
    for method in ("inlp", "pca")
    for edit in ("ablation", "nullspace")
    for scope in ("single", "all")
]
METRICS = [
    ("harmful", "refusal"),
    ("harmless", "refusal"),
    ("harmless", "kl"),
    ("tiny-answers", "loss"),
    ("world_cloze", "acc"),
    ("harmful", "guard_unsafe"),
]
RUSAGE = """
import re, sys, time
from pathlib import Path
from refusal_cmp.cli import main
began = time.monotonic()
sys.argv = ['refusal-cmp', *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print("took", time.monotonic() - began, time.process_time(), int(peak) / 2**10)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study whose cells are done, all but one."""
    path = tmp_path_factory.mktemp("scale")
    n_models = CELLS // 5
    content = {
        "name": "scale",
        "grid": {"model": [f"org/model-{i}" for i in range(n_models)], "seed": [1, 2, 3, 4, 5]},
        "settings": {"offline": True},
        "until": "evaluate",
    }
    (path / "scale.yaml").write_text(yaml.safe_dump(content))
    study = read_study(path / "scale.yaml")
    synthetic(path / "runs/scale", study, PLANS, METRICS)
    (path / "runs/scale" / study.cells[-1].label / "cell.json").unlink()
    return path


def timed(*arguments, cwd):
    """Seconds of a processor, megabytes at most, and the output of a command."""
    process = command(*arguments, cwd=cwd, code=RUSAGE)
    output, _ = process.communicate(timeout=10 * SECONDS)
    assert process.returncode == 0, output
    *said, last = output.splitlines()
    wall, seconds, megabytes = map(float, last.split()[1:])
    print(f"{' '.join(arguments)}: {CELLS} cells, {wall:.1f} s, {seconds:.1f} s of a processor, {megabytes:.0f} MB")
    return seconds, megabytes, "\n".join(said)


def test_a_dry_run_lists_thousands_of_cells(home):
    seconds, megabytes, said = timed("study", "scale.yaml", "--dry-run", cwd=home)
    assert f"{CELLS} cells: {CELLS - 1} done, 1 to do." in said
    assert "estimated from" in said
    assert seconds < SECONDS
    assert megabytes < 500


def test_a_report_of_thousands_of_cells(home):
    seconds, megabytes, _ = timed("study", "report", "runs/scale", cwd=home)
    table = home / "runs/scale/study.csv"
    with table.open() as file:
        assert sum(1 for _ in file) == 1 + (CELLS - 1) * len(PLANS) * len(METRICS)
    assert f"{CELLS - 1} of {CELLS} cells are done" in (home / "runs/scale/report/index.html").read_text()
    assert (home / "runs/scale/report/index.html").stat().st_size < 2**20
    assert seconds < SECONDS
    assert megabytes < 1500
