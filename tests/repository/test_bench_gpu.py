"""`make bench-gpu` runs, at toy size and without a GPU, so that a GPU's nine minutes are not spent on finding out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *options]
    without = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured():
    """What is printed of each part, by name."""
    done = run("--toy")
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^(\w+):$", done.stdout, flags=re.MULTILINE)[1:]
    return {
        name: dict(line.split(maxsplit=1) for line in text.strip().splitlines())
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_part_measures_all_of_it(measured):
    assert list(measured) == ["generation", "study", "prefix"]
    assert not any({"unfinished", "failed"} & set(part) for part in measured.values())
    assert measured["generation"]["completions"] == str(8 * 2 * 2)
    assert float(measured["generation"]["same_completions"]) == 1
    assert float(measured["study"]["study_s"]) > 0
    assert int(measured["study"]["inlp_directions"]) > 0
    assert measured["prefix"]["shares"] == "True"
    assert float(measured["prefix"]["relative_difference"]) < 1e-5


def test_what_does_not_fit_in_the_time_is_said():
    done = run("--toy", "--only", "study", "--seconds", "0.01")
    assert done.returncode == 0
    assert "the rest of study did not fit in 0 s" in done.stdout
