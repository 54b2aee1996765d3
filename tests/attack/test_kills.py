"""Runs that survive: killed at any moment and started again, they end as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from contextlib import suppress

import pytest

from refusal_cmp.config import STAGES
from refusal_cmp.run.files import UNFINISHED

from support.attack import EFFORT, begun, exit_code, files, kill, report
from support.pipeline import start

KILLS = 7 if EFFORT == 1 else 3 * EFFORT
MARKS = ("extract/prompts.json", "select/scores.csv", "infer/plans.json", "evaluate", "report/summary.csv")
"""What each stage writes early."""
QUICK = {
    "methods": "diff-in-means",
    "interventions": "ablation,actadd",
    "scope": "single",
    "n_test": 6,
    "batch_size": 2,
    "max_new_tokens": 6,
    "tasks": "world_statements",
}
UNITS = {"extract": 1, "select": 10, "infer": 4, "evaluate": 2}
"""Fewest lives of a stage that is killed at the first thing it keeps, over and over."""


def work(path, model, stages=STAGES, **flags):
    start(path, model, stages, **QUICK | flags)


def wait_for(path, process):
    """Until the path is there, or the process has ended."""
    while process.exitcode is None and not path.exists():
        process.join(0.005)


def test_kills_at_random_moments_change_nothing(tiny, tmp_path):
    """Each attempt gets on a little and is killed; the sum of them is the uninterrupted run, byte for byte."""
    started = time.monotonic()
    assert exit_code(begun(work, tmp_path / "whole" / "run", tiny)) == 0
    seconds = time.monotonic() - started
    whole = files(tmp_path / "whole" / "run")

    rng, kills, finished, stages = random.Random(EFFORT), 0, 0, Counter()
    path = tmp_path / "0" / "run"
    while kills < KILLS:
        attempt = begun(work, path, tiny)
        if kills < len(MARKS):  # once in each stage, as soon as it has written something; then at any moment
            wait_for(path / MARKS[kills], attempt)
        else:
            attempt.join(rng.uniform(0.02, 0.35) * seconds)
        if attempt.exitcode is None:
            kill(attempt)
            kills += 1
            stages[str(max((i for i, mark in enumerate(MARKS) if (path / mark).exists()), default=-1))] += 1
            continue
        assert attempt.exitcode == 0
        assert files(path) == whole
        finished += 1
        shutil.rmtree(path.parent)
        path = tmp_path / str(finished) / "run"
    assert exit_code(begun(work, path, tiny)) == 0
    assert files(path) == whole
    assert stages.keys() >= set(map(str, range(len(MARKS))))  # the kills were spread over the pipeline
    report(f"kills, with {finished + 1} runs that ended as the uninterrupted one; by stage", stages)


def kept(path):
    """What a next life finds: finished artifacts, and the sizes of journals."""
    manifest = path / "manifest.json"
    artifacts = json.loads(manifest.read_bytes()).get("artifacts", {}) if manifest.exists() else {}
    return sorted(artifacts), {file: file.stat().st_size for file in path.rglob(f"*{UNFINISHED}")}


def now(path):
    """`kept`; None if a file went while it was looked at."""
    with suppress(FileNotFoundError):
        return kept(path)


@pytest.mark.parametrize("stage", UNITS)
def test_every_life_that_finishes_one_unit_gets_on(tiny, tmp_path, stage):
    """Killed as soon as one more thing is finished, over and over: the stage ends, and as it would have at once."""
    until, flags = STAGES.index(stage), {"interventions": "ablation", "compare_rankings": True, "evals": "refusal,kl"}
    flags |= {"n_train": 24, "n_val": 2}
    first = tmp_path / "first"
    if until:
        work(first, tiny, STAGES[:until], **flags)
    else:
        first.mkdir()
    whole, path = shutil.copytree(first, tmp_path / "whole"), shutil.copytree(first, tmp_path / "run")
    work(whole, tiny, (stage,), **flags)
    expected, lives = files(whole), 0
    while True:
        lives += 1
        before = kept(path)
        attempt = begun(lambda: work(path, tiny, (stage,), **flags))
        while attempt.exitcode is None and now(path) in (None, before):
            attempt.join(0.002)
        if attempt.exitcode is None:
            kill(attempt)
            assert lives < 500, "it makes no progress"
            continue
        assert attempt.exitcode == 0
        break
    assert files(path) == expected
    assert lives > UNITS[stage]
