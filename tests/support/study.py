"""A study of the embedded model that is as small as they come, and a command line that runs it in a process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from refusal_cmp.commands.study import How, run_study
from refusal_cmp.study.driver import STUDY
from refusal_cmp.study.receipts import Receipt, write_receipt
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
HEADER = (
    "model,plan,method,k,intervention,strength,scope,n_components,n_layers,direction,position,layer,seed,dataset,metric,"
    "value,ci_low,ci_high,n"
)
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


def command(*arguments: str, cwd: Path, code: str = COMMAND) -> subprocess.Popen:
    """`refusal-cmp` with these arguments, in a process."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def synthetic(home: Path, study: Study, plans: Sequence[str], metrics: Sequence[tuple[str, str]]) -> None:
    """The folder of a study whose cells are done, with numbers drawn at random: nothing was run for them."""
    home.mkdir(parents=True)
    (home / STUDY).write_text(json.dumps(study.to_json()))
    rng = np.random.default_rng(0)
    for cell in study.cells:
        rows = [HEADER]
        for plan in plans:
            method, _, rest = plan.partition("/")
            intervention, _, scope = rest.partition("@")
            facts = (
                f"{cell.config.model_name},{plan},{method},1,{intervention},,{scope},1,1,best,-1,3,{cell.config.seed}"
            )
            for dataset, metric in metrics:
                value = round(float(rng.random()), 6)
                rows.append(f"{facts},{dataset},{metric},{value},{value / 2:.6g},{value + 0.1:.6g},100")
        content = ("\n".join(rows) + "\n").encode()
        path = home / cell.label
        path.mkdir()
        (path / "results.csv").write_bytes(content)
        order = rng.permutation(len(plans))
        standings = [
            {
                "plan": plans[i],
                "method": plans[i].partition("/")[0],
                "intervention": plans[i].partition("/")[2].partition("@")[0],
                "suppresses": place < 3,
                "broken": place > len(plans) - 2,
                "answered": 0.5,
                "cost": 0.1,
            }
            for place, i in enumerate(order)
        ]
        results = (len(content), hashlib.sha256(content).hexdigest()[:16])
        seconds = {"extract": 10.0, "select": 20.0, "infer": 60.0, "evaluate": 30.0}
        write_receipt(path, Receipt(cell.label, "done", cell.digest, study.until, seconds, 10**6, results, standings))
