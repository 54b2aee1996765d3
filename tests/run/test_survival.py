"""Runs that survive: killed at any moment and started again, they end as if nothing had happened."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.directory import RunDir

from support.pipeline import start

KILLS = 20
PATIENCE = 120
"""Seconds in which a run of these settings is over on any machine."""
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


def work(path, model):
    start(path, model, **QUICK)


def begun(path, model):
    process = multiprocessing.get_context("fork").Process(target=work, args=(path, model), daemon=True)
    process.start()
    return process


def exit_code(process):
    """Of a process that ends by itself, and soon."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def wait_for(path, process):
    """Until the path is there, or the process has ended."""
    while process.exitcode is None and not path.exists():
        process.join(0.005)


def files(path):
    """Everything a run leaves, by name; wall times are not compared."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    for stage in manifest["stages"].values():
        stage.pop("seconds")
    return found | {"manifest": manifest}


def test_twenty_kills_at_random_moments_change_nothing(tiny, tmp_path):
    """Each attempt gets on a little and is killed; the sum of them is the uninterrupted run, byte for byte."""
    started = time.monotonic()
    assert exit_code(begun(tmp_path / "whole" / "run", tiny)) == 0
    seconds = time.monotonic() - started

    rng, kills, finished, stages = random.Random(0), 0, 0, set()
    path = tmp_path / "0" / "run"
    while kills < KILLS:
        attempt = begun(path, tiny)
        if kills < len(MARKS):  # once in each stage, as soon as it has written something; then at any moment
            wait_for(path / MARKS[kills], attempt)
        else:
            attempt.join(rng.uniform(0.02, 0.35) * seconds)
        if attempt.exitcode is None:
            os.kill(attempt.pid, signal.SIGKILL)
            exit_code(attempt)
            kills += 1
            stages.add(max((i for i, mark in enumerate(MARKS) if (path / mark).exists()), default=-1))
            continue
        assert attempt.exitcode == 0
        assert files(path) == files(tmp_path / "whole" / "run")
        finished += 1
        path = tmp_path / str(finished) / "run"
    assert exit_code(begun(path, tiny)) == 0
    assert files(path) == files(tmp_path / "whole" / "run")
    assert stages >= set(range(len(MARKS)))  # the kills were spread over the pipeline


def test_every_character_of_a_line_survives(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive\rsix\r\nseven"
    run = RunDir(tmp_path)
    run.write_lines("a.jsonl", [{"text": text}, {"text": "b"}])
    assert run.read_lines("a.jsonl") == [{"text": text}, {"text": "b"}]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.write_json("a.json", 1)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusalCmpError, match="Cannot write .*a.json: No space left on device; free space"):
        run.write_json("a.json", 2)
    assert run.read_json("a.json") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "manifest.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RefusalCmpError, match="Cannot write"), RunDir(tmp_path / "run").locked():
        pass
