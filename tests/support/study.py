"""A study of the embedded model that is as small as they come, and a command line that runs it in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from refusal_cmp.commands.study import How, run_study
from refusal_cmp.study.spec import Study, read_study
from refusal_cmp.terminal import Terminal

SETTINGS = {
    "methods": "diff-in-means",
    "n_train": 16,
    "n_val": 2,
    "n_test": 2,
    "positions": -1,
    "layers": "4:7",
    "interventions": "ablation,actadd",
    "actadd_multipliers": -1,
    "scope": "single",
    "max_new_tokens": 4,
    "eval_datasets": "harmful,harmless",
    "evals": "refusal,kl",
    "filter_prompts": False,
    "device": "cpu",
}
COMMAND = "import sys; from refusal_cmp.cli import main; sys.argv = ['refusal-cmp', *sys.argv[1:]]; main()"


def written(path: Path, seeds=(1, 2), **more) -> Path:
    """A study's file: two named cells × seeds."""
    content = {
        "name": "small",
        "settings": SETTINGS,
        "cells": {"best": {}, "own": {"direction": "own"}},
        "grid": {"seed": list(seeds)},
        "until": "evaluate",
    }
    path.write_text(yaml.safe_dump(content | more, sort_keys=False))
    return path


def run(file: Path, runs: Path, **how) -> tuple[Study, Path, list, list[str]]:
    """Run a study here, in processes of this machine: the study, its folder, what failed, what was said."""
    study, said = read_study(file), []
    home = runs / study.name
    with open(os.devnull, "w") as nowhere:
        failed = run_study(study, home, How(**{"workers": 2, **how}), Terminal(file=nowhere), said.append)
    return study, home, failed, said


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """`refusal-cmp` with these arguments, in a process."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
