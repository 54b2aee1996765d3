"""A run directory is one process's at a time, and holds nobody's files but ours."""

from __future__ import annotations

import ast
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

import refusal_cmp
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.directory import RunDir

FORK = multiprocessing.get_context("fork")
AT_WORK = r"Another process is at work in .*run; wait for it"
ROUNDS = 100
"""In which each of several processes tries to be the one at work."""
UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""Modules that Windows has not."""


def hold(path, told):
    with RunDir(path).locked():
        told.send("begun")
        told.poll(60)


@pytest.fixture
def holder(tmp_path):
    """A process at work in an empty run directory, until it is told something; gives the directory and the process."""
    told, ours = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path / "run", told), daemon=True)
    process.start()
    assert ours.recv() == "begun"
    process.tell = ours.send
    yield tmp_path / "run", process
    process.kill()


def enter(path):
    with RunDir(path).locked():
        pass


def test_a_second_process_is_refused_and_a_third_after_it(holder):
    """The second one takes nothing away: the first one's lock would be gone, and the third would work beside it."""
    path, process = holder
    for _ in range(2):
        with pytest.raises(RefusalCmpError, match=AT_WORK):
            enter(path)
        assert path.is_dir()
    process.tell("end")
    process.join(60)
    assert process.exitcode == 0
    enter(path)


def test_a_killed_process_frees_its_lock(holder):
    path, process = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    enter(path)


def alone(path, mark, entered):
    """Try to be the one at work, over and over; the mark is there only while somebody is."""
    for _ in range(ROUNDS):
        try:
            with RunDir(path).locked():
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                mark.unlink()
                with entered.get_lock():
                    entered.value += 1
        except RefusalCmpError as error:
            if "Another process is at work" not in str(error):
                raise


def test_no_two_processes_are_at_work_however_they_come_and_go(tmp_path):
    """Each leaves nothing, so that folder and lock are removed and made anew all the time."""
    entered = FORK.Value("i", 0)
    args = (tmp_path / "runs" / "run", tmp_path / "mark", entered)
    processes = [FORK.Process(target=alone, args=args, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert entered.value >= ROUNDS


def test_a_mistake_before_the_first_file_leaves_no_folder(tmp_path):
    enter(tmp_path / "runs" / "run")
    assert not list(tmp_path.iterdir())


def written(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"mine: {name}")


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_of_somebodys_files_is_no_run(tmp_path):
    written(tmp_path, ["extract/prompts.json", "film.part", ".draft.tmp"])
    before = content(tmp_path)
    with pytest.raises(RefusalCmpError, match=r"is no run, as it has no manifest\.json, and holds other files"):
        enter(tmp_path)
    assert content(tmp_path) == before


def test_a_folder_is_a_run_from_its_first_file_on(tmp_path, monkeypatch):
    """Killed right after it, the run can be gone on with."""
    run = RunDir(tmp_path / "run")
    with run.locked():
        run.note(config={"seed": 1})
        run.write_json("extract/prompts.json", [])
    again = RunDir(tmp_path / "run")
    with again.locked():
        assert again.manifest == {}  # what is noted is written with an artifact that is finished


def test_litter_of_killed_processes_is_swept_and_nothing_else(tmp_path):
    run = RunDir(tmp_path / "run")
    run.write_json("infer/again.json", 1)
    written(run.path, [".refusal-cmp-tmp-abc", "infer/.refusal-cmp-tmp-xyz", "infer/done.json.refusal-cmp-part"])
    written(run.path, [".refusal-cmp-activations-abc/activations.npy", ".refusal-cmp-lock"])
    kept = ["infer/open.json.refusal-cmp-part", "infer/again.json.refusal-cmp-part"]
    mine = [
        "film",
        "film.part",
        ".draft.tmp",
        ".activations-mine/x.npy",
        "a.refusal-cmp-part/x",
        ".refusal-cmp-tmp-d/x",
    ]
    written(run.path, [*kept, *mine])
    run.write_json("infer/done.json", 1)
    os.utime(run.path / "film.part", ns=(0, 0))  # older than its namesake, as a journal that is done with
    os.utime(run.path / "infer/again.json", ns=(0, 0))  # its journal is of later work
    enter(run.path)
    assert set(content(run.path)) == {*kept, *mine, "manifest.json", "infer/again.json", "infer/done.json"}


def test_the_package_asks_for_nothing_that_only_unix_has():
    """So that it can be imported on Windows."""
    asked = {}
    for file in Path(refusal_cmp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            asked |= {name: file.name for name in names if name.split(".")[0] in UNIX_ONLY}
    assert not asked


NAMES = ["null", "NA", "nan", "None", "2024", "1e5", "-0", "true", "inf", "#x", 'a,"b"\n', " x ", "\u2028é"]


@pytest.mark.parametrize("names", [NAMES, *([name] for name in NAMES)], ids=repr)
def test_names_in_tables_are_read_as_they_were_written(tmp_path, names):
    """Whatever they look like; what is empty and a number that is none are missing."""
    columns = ["model", "plan", "against", "method", "dataset", "metric", "first", "second", "scope", "intervention"]
    table = pd.DataFrame(dict.fromkeys(columns, names))
    table["direction"], table["k"], table["value"] = "", pd.array([None] * len(names), "Int64"), math.nan
    run = RunDir(tmp_path)
    run.write_table("results.csv", table)
    read = run.read_table("results.csv")
    for name in columns:
        assert read[name].tolist() == names
    assert read[["direction", "k", "value"]].isna().all(axis=None)
